"""The forwarder's story: listen → (SOCKS5) → open a tunnel → relay, for each local connection.

`forward` listens on all of its addresses, or, if one fails, on none. `_Connection.run` handles one local connection.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Sequence

import trio

from http2tcp.address import TCPAddress
from http2tcp.client.connector import Connector, Tunnel, load_failure_words, why_it_ended
from http2tcp.client.forwards import Forward
from http2tcp.client.settings import ClientSettings
from http2tcp.errors import TunnelError
from http2tcp.net.last_answer import LINGER, send_last_answer
from http2tcp.net.listen import Listener, open_listeners
from http2tcp.net.relay import Traffic, relay
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.socks5 import ACCEPTED, Negotiation, SocksError, refuse

logger = logging.getLogger("http2tcp.forwarder")

# Seconds. The SOCKS client is usually a program on this machine, which names its destination at once.
_SOCKS_TIMEOUT = 10.0
# The longest SOCKS5 greeting and the longest request together, in bytes.
_SOCKS_READ = 2 + 255 + 4 + 1 + 255 + 2
# The mode of a Unix socket's file. Like ssh's forwards, only the file's owner can connect to it, while any user of this
# machine can connect to a loopback port.
_UNIX_MODE = 0o600


async def forward(
    settings: ClientSettings, *, task_status: trio.TaskStatus[Sequence[Forward]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Listen for all of `settings.forwards` and give each connection a tunnel of its own, until cancelled.

    If a tunnel fails, log the failure and reset its local connection (with SOCKS5: send a refusal first). The listeners
    stay open. Start this with `nursery.start`, which returns the forwards with the actual addresses of the listeners.
    Raises ListenError, and then listens on no address.
    """
    load_failure_words()
    listeners = await _listen(settings.forwards)
    connector = Connector(settings)
    try:
        async with trio.open_nursery() as connections:

            def accepted(forward: Forward, sock: socket.socket, peer: TCPAddress | None) -> None:
                name = "unix" if peer is None else str(peer)
                connections.start_soon(_Connection(connector, forward, SocketStream(sock), name).run)

            for forward, listener in listeners:
                connections.start_soon(listener.accept_forever, functools.partial(accepted, forward))
            task_status.started([forward._replace(listen=listener.address) for forward, listener in listeners])
    finally:
        _close(listeners)


async def _listen(forwards: Sequence[Forward]) -> list[tuple[Forward, Listener]]:
    listeners: list[tuple[Forward, Listener]] = []
    for forward in forwards:
        try:
            listeners += [(forward, listener) for listener in await open_listeners(forward.listen, _UNIX_MODE)]
        except BaseException:
            _close(listeners)
            raise
    return listeners


def _close(listeners: Sequence[tuple[Forward, Listener]]) -> None:
    for _, listener in listeners:
        listener.close()


class _Connection:
    """One connection from a program on this machine."""

    def __init__(self, connector: Connector, forward: Forward, stream: SocketStream, peer: str) -> None:
        self._connector = connector
        self._forward = forward
        self._stream = stream
        self._peer = peer

    async def run(self) -> None:
        """Open the connection's tunnel and relay until it ends. A failure is logged, not raised."""
        try:
            tunnel = await self._open_tunnel()
            traffic = Traffic()
            outcome = await relay(self._stream, tunnel.stream, traffic)
            failure = why_it_ended(tunnel, outcome, traffic)
            if failure is not None:
                raise failure
            logger.debug("%s: done, %d bytes up, %d down", self._peer, traffic.bytes_up, traffic.bytes_down)
        except _Departed:
            logger.debug("%s: left before its tunnel was open", self._peer)
        except SocksError as error:
            logger.warning("%s: %s", self._peer, error)
        except TunnelError as error:
            logger.error("%s: %s: %s", self._peer, error.hop, error)
        except Exception:
            # A bug in one connection must not end the others.
            logger.exception("%s: failed; please report this", self._peer)
        finally:
            self._stream.abort()

    async def _open_tunnel(self) -> Tunnel:
        if not self._forward.socks:
            return await self._connector.connect(self._forward.destination)
        try:
            destination = await self._ask()
            logger.debug("%s: asks for %s", self._peer, destination)
            tunnel = await self._connector.connect(destination)
        except SocksError as error:
            await self._answer(error.reply)
            raise
        except TunnelError as error:
            await self._answer(refuse(error))
            raise
        try:
            await self._stream.send_all(ACCEPTED)
        except BaseException as error:
            tunnel.stream.abort()
            if isinstance(error, trio.BrokenResourceError):
                raise _Departed from None
            raise
        return tunnel

    async def _ask(self) -> TCPAddress:
        negotiation = Negotiation()
        try:
            with trio.fail_after(_SOCKS_TIMEOUT):
                while (destination := negotiation.next_event()) is None:
                    await self._stream.send_all(negotiation.take_outgoing())
                    data = await self._stream.receive_some(_SOCKS_READ)
                    if not data:
                        raise _Departed
                    negotiation.receive(data)
                await self._stream.send_all(negotiation.take_outgoing())
        except trio.TooSlowError:
            raise SocksError(f"the client did not say within {_SOCKS_TIMEOUT:g} s where it wants to go") from None
        except trio.BrokenResourceError:
            raise _Departed from None
        self._stream.unread(negotiation.trailing_data)
        return destination

    async def _answer(self, reply: bytes) -> None:
        """Send the reply, and wait until the program has read it, for at most `LINGER` seconds."""
        with trio.move_on_after(LINGER):
            await send_last_answer(self._stream, reply)


class _Departed(Exception):
    """The program closed or broke the connection before its tunnel was open."""
