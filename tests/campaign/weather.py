"""The network between the two ends: a relay that shapes, delays, cuts by RST or FIN, and flips bits.

Where it does not strike it is honest: an end is passed on as an end, a reset as a reset.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.campaign.cases import CLEAR, Cut, Way, Weather
from tests.support.loopback import reset

_CHUNK = 64 * 1024
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)
#: How long a connection that was cut by FIN is still read from, so that no reset follows.
_LINGER = 20.0


class Leg:
    """One connection's way through the weather."""

    def __init__(self, weather: Weather, port: int) -> None:
        """`port`: where the weather leads to; and where it is entered, once `raging` has opened it."""
        self.weather = weather
        self.port = port
        #: Whether it cut the connection, or flipped a bit.
        self.struck = False

    async def carry(self, client: trio.SocketStream, destination: int) -> None:
        """Carry one connection until it is over."""
        try:
            server = await trio.open_tcp_stream("127.0.0.1", destination)
        except OSError:
            reset(client)
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, client, server, Way.UP, nursery.cancel_scope)
                nursery.start_soon(self._pass_on, server, client, Way.DOWN, nursery.cancel_scope)
            if self.weather.cut is Cut.FIN and self.struck:
                await _end(client, server)
        finally:
            client.socket.close()
            server.socket.close()

    async def _pass_on(
        self, source: trio.SocketStream, sink: trio.SocketStream, way: Way, both: trio.CancelScope
    ) -> None:
        weather, count = self.weather, 0
        strikes_here = weather.strikes and weather.way is way
        try:
            while True:
                shaped = weather.piece is not None and count < weather.shaped
                data = bytearray(await source.receive_some(weather.piece if shaped else _CHUNK))
                if not data:
                    await sink.send_eof()
                    return
                if shaped and weather.delay:
                    await trio.sleep(weather.delay)
                if strikes_here and count <= weather.at < count + len(data):
                    self.struck = True
                    if weather.cut is None:
                        data[weather.at - count] ^= 1 << weather.at % 8
                    else:
                        await sink.send_all(data[: weather.at - count])
                        if weather.cut is Cut.RST:
                            reset(source)
                            reset(sink)
                        both.cancel()
                        return
                await sink.send_all(data)
                count += len(data)
        except _GONE:
            # An end that has left has reset the connection. What is on its way in the other direction is lost, as it
            # would be without a relay.
            reset(source)
            reset(sink)
            both.cancel()


async def _end(*streams: trio.SocketStream) -> None:
    """Send FIN both ways, and drop what still arrives."""

    async def drop(stream: trio.SocketStream) -> None:
        try:
            await stream.send_eof()
            while await stream.receive_some(_CHUNK):
                pass
        except _GONE:
            pass

    with trio.move_on_after(_LINGER):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(drop, stream)


@asynccontextmanager
async def raging(weather: Weather, destination: int) -> AsyncIterator[Leg]:
    """A leg that leads to this port of 127.0.0.1. Without weather it is the port itself."""
    leg = Leg(weather, destination)
    if weather == CLEAR:
        yield leg
        return
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    leg.port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:

        async def carry(client: trio.SocketStream) -> None:
            await leg.carry(client, destination)

        nursery.start_soon(trio.serve_listeners, carry, [listener])
        yield leg
        nursery.cancel_scope.cancel()
