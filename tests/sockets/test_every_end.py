"""Every way in which a stream can end, whatever this side is doing with it: what comes out, of it and of a relay.

A peer can cause nothing but BrokenResourceError, or a clean EOF where it promised one. ClosedResourceError is for
this side's own caller, who has closed the stream before: from a peer it would end a tunnel as a bug of ours.
"""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.paced import PacedStream
from http2tcp.net.relay import End, Outcome, Traffic, relay
from http2tcp.net.streams import HalfCloseUnsupported, SocketStream, Stream
from http2tcp.net.tls import TLSStream, bare_context, open_tls
from http2tcp.net.tls_over import ByRecords, TLSOverStream, open_tls_over
from http2tcp.net.tls_server import accept_tls
from http2tcp.net.websocket import WebSocketStream


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """Jumps sooner than that of the other tests: an end that comes late is another one of those that are walked."""
    return trio.testing.MockClock(autojump_threshold=0.001)


@dataclass(frozen=True)
class Contexts:
    client: ssl.SSLContext
    server: ssl.SSLContext


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    authority = trustme.CA()
    client, server = bare_context(ssl.PROTOCOL_TLS_CLIENT), bare_context(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("localhost").configure_cert(server)
    return Contexts(client, server)


# --- the streams ------------------------------------------------------------------------------


@dataclass
class Pair:
    """A stream, its peer of the same kind, and the peer's socket below all of it."""

    ours: Stream
    theirs: Stream
    socket: socket.socket


async def _sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # Small, so that a peer that does not read soon holds up who sends.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        ours = socket.socket()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


async def _plain(contexts: Contexts) -> Pair:
    ours, theirs = await _sockets()
    return Pair(SocketStream(ours), SocketStream(theirs), theirs)


async def _paced(contexts: Contexts) -> Pair:
    ours, theirs = await _sockets()
    return Pair(PacedStream(ours, 1e9), SocketStream(theirs), theirs)


async def _at_once(*tasks: Callable[[], Awaitable[Any]]) -> list[Any]:
    results: list[Any] = [None] * len(tasks)

    async def run(number: int, task: Callable[[], Awaitable[Any]]) -> None:
        results[number] = await task()

    async with trio.open_nursery() as nursery:
        for number, task in enumerate(tasks):
            nursery.start_soon(run, number, task)
    return results


async def _tls(contexts: Contexts) -> Pair:
    ours, theirs = await _sockets()
    client, server = await _at_once(
        lambda: open_tls(SocketStream(ours), contexts.client, "localhost"),
        lambda: accept_tls(SocketStream(theirs), contexts.server),
    )
    return Pair(client, server, server.socket)


async def _server_tls(contexts: Contexts) -> Pair:
    pair = await _tls(contexts)
    assert isinstance(pair.ours, TLSStream)
    return Pair(pair.theirs, pair.ours, pair.ours.socket)


async def _tls_over(contexts: Contexts) -> Pair:
    below = await _tls(contexts)
    records = ByRecords(below.theirs)
    tls = trio.SSLStream(records, contexts.server, server_side=True)
    client, _ = await _at_once(
        lambda: open_tls_over(below.ours, contexts.client, "localhost"),
        tls.do_handshake,
    )
    return Pair(client, TLSOverStream(below.theirs, records, tls), below.socket)


def _websocket(pair: Pair, *, client: bool) -> Pair:
    pair.ours = WebSocketStream(pair.ours, client=client, keepalive=25)
    pair.theirs = WebSocketStream(pair.theirs, client=not client, keepalive=25)
    return pair


def _capsules(pair: Pair, *, confirms: bool) -> Pair:
    pair.ours = CapsuleStream(pair.ours, keepalive=25, peer_keepalive=None, confirms=confirms)
    pair.theirs = CapsuleStream(pair.theirs, keepalive=25, peer_keepalive=None, confirms=confirms)
    return pair


_BASES = {"socket": _plain, "paced": _paced, "tls": _tls, "server tls": _server_tls, "tls over": _tls_over}
_LAYERS: dict[str, Callable[[Pair], Pair]] = {
    "": lambda pair: pair,
    "capsules": lambda pair: _capsules(pair, confirms=True),
    "unconfirmed capsules": lambda pair: _capsules(pair, confirms=False),
    "websocket server": lambda pair: _websocket(pair, client=False),
    "websocket client": lambda pair: _websocket(pair, client=True),
    "capsules, websocket server": lambda pair: _capsules(_websocket(pair, client=False), confirms=True),
    "capsules, websocket client": lambda pair: _capsules(_websocket(pair, client=True), confirms=True),
}
_KINDS = [
    *((base, "") for base in _BASES),
    *((base, "capsules") for base in ("socket", "tls", "server tls", "tls over")),
    ("socket", "unconfirmed capsules"),
    *((base, "websocket server") for base in ("socket", "server tls")),
    *((base, "websocket client") for base in ("socket", "tls", "tls over")),
    *((base, "capsules, websocket server") for base in ("socket", "server tls")),
    *((base, "capsules, websocket client") for base in ("tls", "tls over")),
]


def _id(kind: tuple[str, str]) -> str:
    return " over ".join(filter(None, reversed(kind)))


@asynccontextmanager
async def made(kind: tuple[str, str], contexts: Contexts) -> AsyncIterator[Pair]:
    base, layer = kind
    pair = _LAYERS[layer](await _BASES[base](contexts))
    try:
        yield pair
    finally:
        pair.ours.abort()
        pair.theirs.abort()
        pair.socket.close()


# --- what the peer does -----------------------------------------------------------------------


def _below(stream: Stream) -> Stream:
    return stream.inner if isinstance(stream, CapsuleStream | WebSocketStream) else stream


def _fin(pair: Pair) -> None:
    # An SSLSocket's own shutdown would forget its TLS, and what it sends after that would be no TLS.
    socket.socket.shutdown(pair.socket, socket.SHUT_WR)


def _raw(pair: Pair, data: bytes) -> None:
    socket.socket.send(pair.socket, data)


async def _ends(pair: Pair) -> None:
    await (pair.theirs.send_eof() if pair.theirs.ends.half_close else pair.theirs.aclose())


async def _closes(pair: Pair) -> None:
    await pair.theirs.aclose()


async def _resets(pair: Pair) -> None:
    pair.theirs.abort()


async def _is_cut(pair: Pair) -> None:
    _fin(pair)


async def _stops_half_way(pair: Pair) -> None:
    # The first byte of a message, of a capsule and of a TLS record of application data.
    if _below(pair.theirs) is pair.theirs:
        _raw(pair, b"\x17")
    else:
        await _below(pair.theirs).send_all(b"\x82")
    _fin(pair)


async def _talks_nonsense(pair: Pair) -> None:
    await _below(pair.theirs).send_all(b"\xff" * 64)
    _fin(pair)


async def _loses_its_mind(pair: Pair) -> None:
    _raw(pair, b"\xff" * 64)
    _fin(pair)


async def _talks_after_its_end(pair: Pair) -> None:
    await _ends(pair)
    _raw(pair, b"\xff" * 64)


_WAYS = {
    "ends": _ends,
    "closes": _closes,
    "resets": _resets,
    "is cut": _is_cut,
    "stops half-way": _stops_half_way,
    "talks nonsense": _talks_nonsense,
    "loses its mind": _loses_its_mind,
    "talks after its end": _talks_after_its_end,
}
#: After these an EOF would be false. On bare TCP a cut looks like an end, and nonsense like data.
_NO_END = {"resets", "is cut", "stops half-way", "talks nonsense", "loses its mind"}


def _may_end(kind: tuple[str, str], way: str) -> bool:
    bare = kind in (("socket", ""), ("paced", ""))
    # Nonsense inside TLS alone is data, and then comes a cut.
    return way not in _NO_END or (bare and way != "resets")


async def _meanwhile(pair: Pair, way: str) -> None:
    try:
        await _WAYS[way](pair)
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        pass  # the way was cut already, by us


# --- what this side does ----------------------------------------------------------------------


class Walk:
    """One stream, everything that is tried with it, and what came out."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.found: list[str] = []
        self.ended = False
        self.broken = False
        self.shut = False

    async def try_(self, name: str, operation: Callable[[], Awaitable[Any]]) -> bool:
        """Whether it could be done. A peer that is silent is waited for, for a while."""
        try:
            with trio.move_on_after(1.5) as patience:
                await operation()
        except trio.BrokenResourceError as error:
            self.broken = True
            if not str(error):
                self.found.append(f"{name}: without a word")
            return False
        except trio.ClosedResourceError:
            if not self.shut:
                self.found.append(f"{name}: ClosedResourceError")
            return False
        except HalfCloseUnsupported:
            if name != "send_eof" or self.stream.ends.half_close:
                self.found.append(f"{name}: HalfCloseUnsupported")
            return False
        except Exception as error:
            self.found.append(f"{name}: {error!r}")
            return False
        return not patience.cancelled_caught

    async def receive(self) -> None:
        async def all_of_it() -> None:
            while await self.stream.receive_some():
                pass
            # The kernel tells of a reset once, and of an EOF after it.
            self.ended = self.ended or not self.broken

        await self.try_("receive_some", all_of_it)

    async def send(self) -> None:
        async def much() -> None:
            for _ in range(3):
                await self.stream.send_all(bytes(100_000))

        await self.try_("send_all", much)

    async def half_close(self) -> None:
        self.shut = await self.try_("send_eof", self.stream.send_eof) or self.shut

    async def close(self) -> None:
        self.shut = True
        await self.try_("aclose", self.stream.aclose)

    async def attend(self) -> None:
        await self.try_("attend", self.stream.attend)

    async def all_else(self) -> None:
        """Each of the operations, after it has ended."""
        stream = self.stream
        await self.receive()
        await self.send()
        await self.try_("wait_send_all_might_not_block", stream.wait_send_all_might_not_block)
        await self.half_close()
        await self.receive()
        await self.send()
        await self.try_("wait_acknowledged", stream.wait_acknowledged)
        stream.acknowledge_eof()
        await self.try_("finish", stream.finish)
        await self.try_("flush", stream.flush)
        self.shut = True
        await self.try_("send_reason", lambda: stream.send_reason("it is over"))
        await self.try_("linger", stream.linger)
        await self.close()
        await self.receive()
        await self.send()
        await self.half_close()
        await self.close()


_DOINGS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "receiving": ("receive",),
    "sending": ("send",),
    "both": ("receive", "send"),
    "attending": ("attend", "receive"),
    "half-closed": ("half_close", "receive"),
    "closing": ("close",),
}


@pytest.mark.parametrize("kind", _KINDS, ids=_id)
async def test_a_peer_s_end_is_an_eof_or_a_break_whatever_this_side_is_doing(
    kind: tuple[str, str], contexts: Contexts, patient_clock: trio.testing.MockClock
) -> None:
    for way, (doing, operations) in itertools.product(_WAYS, _DOINGS.items()):
        for first in ("peer", "we") if operations else ("peer",):
            async with made(kind, contexts) as pair:
                walk = Walk(pair.ours)
                async with trio.open_nursery() as nursery:
                    if first == "peer":
                        nursery.start_soon(_meanwhile, pair, way)
                        await trio.testing.wait_all_tasks_blocked()
                    for operation in operations:
                        nursery.start_soon(getattr(walk, operation))
                        await trio.testing.wait_all_tasks_blocked()
                    if first == "we":
                        nursery.start_soon(_meanwhile, pair, way)
                await walk.all_else()
            assert not walk.found, (way, doing, first)
            if not _may_end(kind, way):
                assert not walk.ended, (way, doing, first)


_FAR_SIDES = ("silent", "sends", "reads nothing", "has ended", "resets")


@pytest.mark.parametrize("kind", _KINDS, ids=_id)
async def test_a_relay_over_it_has_an_outcome_and_raises_nothing(
    kind: tuple[str, str], contexts: Contexts, patient_clock: trio.testing.MockClock
) -> None:
    for way, far_side in itertools.product(_WAYS, _FAR_SIDES):
        for half_closes in (False, True):
            async with made(kind, contexts) as pair:
                one, other = await _sockets()
                near, far = SocketStream(one), SocketStream(other)
                outcomes: list[Outcome] = []
                async with trio.open_nursery() as nursery:

                    async def run() -> None:
                        outcomes.append(await relay(pair.ours, near, Traffic()))  # noqa: B023

                    nursery.start_soon(run)
                    nursery.start_soon(_behave, far, far_side)
                    if half_closes and pair.theirs.ends.half_close:
                        await pair.theirs.send_eof()
                    await trio.testing.wait_all_tasks_blocked()
                    await _meanwhile(pair, way)
                    if way in ("ends", "talks after its end"):
                        # It still listens.
                        with trio.move_on_after(10):
                            await _meanwhile_take(pair.theirs)
                    if far_side in ("silent", "sends", "reads nothing"):
                        await trio.sleep(1)
                        far.abort()
                    # A relay waits for ever for a peer that is there and reads nothing.
                    await trio.sleep(10)
                    pair.theirs.abort()
                far.abort()
            assert len(outcomes) == 1, (way, far_side, half_closes)
            if not _may_end(kind, way) and not (half_closes and pair.theirs.ends.half_close):
                assert outcomes[0].end is not End.CLOSED, (way, far_side, half_closes)


async def _meanwhile_take(stream: Stream) -> None:
    try:
        while await stream.receive_some():
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _behave(far: SocketStream, how: str) -> None:
    try:
        match how:
            case "sends":
                await far.send_all(bytes(300_000))
                await far.linger()
            case "has ended":
                await far.send_eof()
                await far.linger()
            case "resets":
                await far.send_all(b"part")
                await trio.sleep(0.1)
                far.abort()
            case "silent":
                await far.linger()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
