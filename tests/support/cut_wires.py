"""A resumable tunnel over wires that are cut: real pumps, real descriptors, small kernel buffers."""

from __future__ import annotations

import random
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from http2tcp.net.relay import Outcome, Traffic, relay
from http2tcp.net.resumable import ResumableStream
from http2tcp.net.resume_handshake import AttemptRefused, read_first, receive_claim, resume
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.protocol.resume import Bounds, Resumable, Terms
from http2tcp.protocol.resume_wire import KEY_SIZE, Hello, ResumeError

# What the kernel gives at least; it doubles what is asked for.
KERNEL = 2048
BOUNDS = Bounds(1024, 1 << 26, 512)


def pair() -> tuple[SocketStream, SocketStream]:
    """Two ends of a connection with small buffers."""
    ends = socket.socketpair()
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL)
    return SocketStream(ends[0]), SocketStream(ends[1])


@dataclass
class Fate:
    """What happens to one wire: it is cut after so many bytes, of both directions together."""

    budget: float
    #: Seconds that its first byte takes.
    delay: float = 0.0
    #: Whether it may be cut by now.
    ripe: Callable[[], bool] = lambda: True


async def carry(fate: Fate, one: SocketStream, other: SocketStream) -> None:
    """Copy between the two, until the wire is cut or both have ended."""

    async def direction(source: SocketStream, sink: SocketStream) -> None:
        while True:
            data = await source.receive_some(random.randint(1, 3000))
            if not data:
                await sink.send_eof()
                return
            if len(data) >= fate.budget and fate.ripe():
                await sink.send_all(data[: max(0, int(fate.budget))])
                nursery.cancel_scope.cancel()
                return
            fate.budget -= len(data)
            await sink.send_all(data)

    try:
        await trio.sleep(fate.delay)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(direction, one, other)
            nursery.start_soon(direction, other, one)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        one.abort()
        other.abort()


@dataclass
class Tunnel:
    """A client and a server with a session between them; `fates` says what becomes of each wire, in turn."""

    nursery: trio.Nursery
    fates: list[Fate]
    window: int = 16 * 1024
    grace: int = 30
    keepalive: float = 25.0
    #: Chance of an attempt that is left alone while a newer one is made.
    doubled: float = 0.0
    random: random.Random = field(default_factory=random.Random)
    client: ResumableStream | None = None
    server: ResumableStream | None = None
    wires: int = 0
    refused: list[str] = field(default_factory=list)

    def wire(self) -> tuple[SocketStream, SocketStream]:
        """The client's and the server's end of another connection."""
        client, one = pair()
        other, server = pair()
        fate = self.fates.pop(0) if self.fates else Fate(float("inf"))
        if not self.wires:
            # Before the client has confirmed the session, a break is the end of it.
            fate.ripe = lambda: self.server is not None and self.server.machine.confirmed
        self.wires += 1
        self.nursery.start_soon(carry, fate, one, other)
        return client, server

    @property
    def terms(self) -> Terms:
        """Both sides have the same."""
        return Terms(keepalive=int(self.keepalive * 1000), window=self.window, grace=self.grace)

    async def open(self) -> None:
        """The first connection, which nothing cuts before the server knows that the client knows the session."""
        client, server = self.wire()
        machine = Resumable.offer(f"{secrets.token_hex(6)}", secrets.token_bytes(KEY_SIZE), self.terms, bounds=BOUNDS)
        await server.send_all(machine.data_to_send())
        self.server = self._stream(machine, server, client=False)
        hello = await read_first(client)
        assert isinstance(hello, Hello)
        self.client = self._stream(Resumable.agree(hello, self.terms, bounds=BOUNDS), client, client=True)

    def _stream(self, machine: Resumable, carrier: Stream, *, client: bool) -> ResumableStream:
        revive = self.revive if client else None
        return ResumableStream(
            machine, carrier, keepalive=self.keepalive, peer_keepalive=None, client=client, revive=revive
        )

    async def revive(self) -> None:
        """As a client does, without the pauses."""
        assert self.client is not None
        while True:
            try:
                if self.random.random() < self.doubled:
                    # An attempt whose answer comes late: the client has long given it up.
                    with trio.move_on_after(self.random.random() * 0.01):
                        await self._attempt()
                        return
                await self._attempt()
                return
            except AttemptRefused as refused:
                self.refused.append(str(refused))
                if not self.client.machine.may_retry(refused.said):
                    raise trio.BrokenResourceError(f"refused: {refused}") from None
            except ResumeError as error:
                raise trio.BrokenResourceError(str(error)) from error
            except trio.BrokenResourceError:
                pass
            await trio.sleep(0.001)

    async def _attempt(self) -> None:
        assert self.client is not None
        carrier, server = self.wire()
        self.nursery.start_soon(self.serve, server)
        try:
            await resume(self.client, carrier)
        except BaseException:
            carrier.abort()
            raise

    async def serve(self, carrier: SocketStream) -> None:
        """As a server does with an attempt."""
        stream = self.server
        assert stream is not None
        try:
            if stream.machine.finished:
                await self._tell_finished(stream, carrier)
                return
            hello, nonce = await receive_claim(carrier)
            attachment = stream.replace(hello, nonce, carrier)
        except ResumeError as error:
            try:
                await carrier.send_all(error.capsule())
                await carrier.linger()
            except trio.BrokenResourceError:
                pass
            carrier.abort()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            carrier.abort()
        else:
            await stream.wait_detached(attachment)

    async def _tell_finished(self, stream: ResumableStream, carrier: SocketStream) -> None:
        """The session is over here, and the client does not know."""
        tombstone = stream.machine.tombstone(0, "")
        hello, nonce = await receive_claim(carrier)
        await carrier.send_all(tombstone.answer(hello, nonce))
        await carrier.linger()
        carrier.abort()


async def conversation(tunnel: Tunnel, application: Stream, target: Stream) -> tuple[Outcome, Outcome]:
    """Both relays, from beginning to end: the client's outcome and the server's."""
    await tunnel.open()
    return await both_relays(tunnel, application, target)


async def both_relays(tunnel: Tunnel, application: Stream, target: Stream) -> tuple[Outcome, Outcome]:
    """As `conversation`, through a tunnel that is open."""
    assert tunnel.client is not None
    assert tunnel.server is not None
    client, server = tunnel.client, tunnel.server
    outcomes: dict[str, Outcome] = {}

    async def run(name: str, left: Stream, right: Stream) -> None:
        outcomes[name] = await relay(left, right, Traffic())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "client", application, client)
        nursery.start_soon(run, "server", server, target)
    return outcomes["client"], outcomes["server"]
