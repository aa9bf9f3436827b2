"""A client of resumable tunnels by hand, one capsule at a time, and a wire that is cut."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from http2tcp.address import TCPAddress
from http2tcp.net.streams import SocketStream, reset_on_close
from http2tcp.protocol.capsule import Reset
from http2tcp.protocol.resume import Resumable, Terms
from http2tcp.protocol.resume_outgoing import End
from http2tcp.protocol.resume_wire import KEY_SIZE, Challenge, FirstCapsule, Hello, Mark
from tests.support.loopback import TOKEN, open_raw, upgrade

TERMS = Terms(keepalive=25_000, window=1024 * 1024, grace=900)


def asks(destination: str = "", session: str | None = None, *fields: str, token: str | None = TOKEN) -> bytes:
    """A request of a client that can resume, and one that asks for a session."""
    more = ["Http2tcp-Resume: ?1", *fields]
    if session is not None:
        more.append(f"Http2tcp-Session: {session}")
    return upgrade(f"/?addr={destination}", *more, token=token, transport="connect-tcp")


class Opening:
    """A connection up to its first capsule."""

    def __init__(self, stream: trio.SocketStream, rest: bytes) -> None:
        self.stream = stream
        self.rest = rest

    async def first(self) -> Hello | Challenge | Reset | Mark:
        """The first capsule that is not read yet. Raises BrokenResourceError where the connection ends."""
        reader = FirstCapsule()
        data = self.rest
        while (event := reader.receive(data)) is None:
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                raise trio.BrokenResourceError("the connection ended")
        self.rest = reader.rest
        return event


async def opening(address: TCPAddress, request: bytes) -> Opening:
    """The 101 is there."""
    opened = Opening(*await open_raw(address, request))
    _OPENED.append(opened.stream)
    return opened


# Each connection of a test, which `close_all` ends.
_OPENED: list[trio.SocketStream] = []


def close_all() -> None:
    """The test is over."""
    while _OPENED:
        _OPENED.pop().socket.close()


@dataclass
class Peer:
    """One client of one session. Nothing happens by itself."""

    address: TCPAddress
    machine: Resumable
    stream: trio.SocketStream
    token: str | None = TOKEN
    received: bytearray = field(default_factory=bytearray)
    end: End | None = None

    @property
    def session(self) -> str:
        return self.machine.session

    async def flush(self) -> None:
        """Write what is due."""
        while wire := self.machine.data_to_send():
            await self.stream.send_all(wire)

    async def send(self, data: bytes) -> None:
        self.machine.give(data)
        await self.flush()

    async def finish(self) -> None:
        """FINAL_DATA."""
        self.machine.give_end()
        await self.flush()

    def take(self, data: bytes, *, acknowledges: bool = True) -> None:
        """What the connection brought is handed on."""
        for part in self.machine.receive(data, self.machine.attachment):
            self.received += part.payload
            if acknowledges:
                self.machine.sink_took(len(part.payload))
            if part.end is not None:
                self.end = part.end
                if acknowledges:
                    self.machine.sink_ended()

    async def until(self, received: bytes) -> None:
        """Read until this, and nothing else, has arrived in all."""
        with trio.fail_after(10):
            while len(self.received) < len(received) and await self.read():
                pass
        assert self.received == received

    async def read(self, *, acknowledges: bool = True) -> bytes:
        """One read; b"" where the connection has ended. What is due is written."""
        data = bytes(await self.stream.receive_some(65536))
        self.take(data, acknowledges=acknowledges)
        if acknowledges:
            self.machine.acknowledge()
        await self.flush()
        return data

    async def until_end(self) -> End:
        """Read until the direction's end."""
        with trio.fail_after(10):
            while self.end is None:
                assert await self.read(), "the connection ended without an end"
        return self.end

    def cut(self) -> None:
        """The connection is gone, by a reset."""
        self.machine.detach(self.machine.attachment)
        abort(self.stream)

    async def attempt(
        self, *, secret: bytes | None = None, session: str | None = None, token: str | None = None
    ) -> Opening:
        """Ask for the session, and answer the challenge, with another secret where one is given."""
        request = asks("", session or self.session, token=token or self.token)
        opened = await opening(self.address, request)
        challenged = await opened.first()
        assert isinstance(challenged, Challenge), challenged
        if self.machine.attached:
            self.machine.detach(self.machine.attachment)
        before = self.machine._secret
        self.machine._secret = secret or before
        self.pending = self.machine.answer(challenged.nonce, secrets.token_bytes(KEY_SIZE))
        self.machine._secret = before
        await opened.stream.send_all(self.pending.capsule)
        return opened

    async def resume(self) -> None:
        """Go on by another connection."""
        opened = await self.attempt()
        hello = await opened.first()
        assert isinstance(hello, Hello), hello
        self.machine.resume(self.pending, hello)
        self.stream = opened.stream
        self.take(opened.rest)
        await self.flush()


def abort(stream: trio.SocketStream) -> None:
    """Close with a reset."""
    reset_on_close(stream.socket._sock)  # type: ignore[attr-defined]
    stream.socket.close()


async def begin(address: TCPAddress, destination: str, *, token: str | None = TOKEN, terms: Terms = TERMS) -> Peer:
    """A new tunnel, which both sides know to be resumable."""
    opened = await opening(address, asks(destination, token=token))
    hello = await opened.first()
    assert isinstance(hello, Hello), hello
    peer = Peer(address, Resumable.agree(hello, terms), opened.stream, token)
    peer.take(opened.rest)
    await peer.flush()
    return peer


class Wire:
    """What a client's connections go through, and what cuts them."""

    def __init__(self, server: TCPAddress) -> None:
        self._server = server
        self._ends: set[SocketStream] = set()
        #: Connections are refused while it is False.
        self.up = True
        self.connections = 0
        self.url = ""

    def cut(self) -> None:
        """Each connection is reset on both sides."""
        for end in list(self._ends):
            end.abort()
        self._ends.clear()

    async def _serve(self, stream: trio.SocketStream) -> None:
        if not self.up:
            abort(stream)
            return
        self.connections += 1
        one = SocketStream(stream.socket._sock)  # type: ignore[attr-defined]
        there = await trio.open_tcp_stream(self._server.host, self._server.port)
        other = SocketStream(there.socket._sock)  # type: ignore[attr-defined]
        ends = {one, other}
        self._ends |= ends
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_copy, one, other)
                nursery.start_soon(_copy, other, one)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._ends -= ends
            one.abort()
            other.abort()


async def _copy(source: SocketStream, sink: SocketStream) -> None:
    while data := await source.receive_some():
        await sink.send_all(data)
    await sink.send_eof()


@asynccontextmanager
async def wire(server: TCPAddress) -> AsyncIterator[Wire]:
    """A wire to this server."""
    made = Wire(server)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    made.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, made._serve, [listener])
        yield made
        nursery.cancel_scope.cancel()
