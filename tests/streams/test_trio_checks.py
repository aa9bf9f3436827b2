"""trio's own checks of a stream, on every stream that `open_tunnel` can give, and on their peers."""

from __future__ import annotations

import math
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing
import trustme

from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.paced import PacedStream
from http2tcp.net.stdio import StdioStream
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.net.tls import TLSStream, bare_context, open_tls
from http2tcp.net.tls_over import ByRecords, TLSOverStream, open_tls_over
from http2tcp.net.tls_server import accept_tls
from http2tcp.net.websocket import WebSocketStream
from tests.support.processes import PATIENCE

#: The client's and the server's.
Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
Pair = tuple[Stream, Stream]
Sockets = Callable[[], tuple[socket.socket, socket.socket]]
#: Makes a connection, with the client's stream before the server's.
Maker = Callable[[], Awaitable[Pair]]

# DATA of more bytes than any test sends. What follows it on the wire is payload.
_ENDLESS_CAPSULE = b"\x00" + (0xC0 << 56 | 1 << 40).to_bytes(8, "big")
# The same of one WebSocket message: binary, of 16 MiB, and masked by zeros where a client sends it.
_ENDLESS_MESSAGE = b"\x82\x7f" + (16 << 20).to_bytes(8, "big")
_ENDLESS_MASKED_MESSAGE = b"\x82\xff" + (16 << 20).to_bytes(8, "big") + bytes(4)


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    """The client's and the server's."""
    authority = trustme.CA()
    client, server = bare_context(ssl.PROTOCOL_TLS_CLIENT), bare_context(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(client)
    authority.issue_cert("localhost").configure_cert(server)
    return client, server


def connection() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return client, server


# --- the streams ------------------------------------------------------------------------------


async def tcp() -> Pair:
    client, server = connection()
    return SocketStream(client), SocketStream(server)


async def unix() -> Pair:
    client, server = socket.socketpair()
    return SocketStream(client), SocketStream(server)


async def paced() -> Pair:
    client, server = connection()
    return PacedStream(client, 1e9), PacedStream(server, 1e9)


def over_tls(contexts: Contexts, sockets: Sockets = connection) -> Maker:
    async def make() -> Pair:
        client, server = sockets()
        made: list[Stream] = []

        async def accept() -> None:
            made.append(await accept_tls(SocketStream(server), contexts[1]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            ours = await open_tls(SocketStream(client), contexts[0], "localhost")
        return ours, made[0]

    return make


def over_tls_over(contexts: Contexts) -> Maker:
    """A session with the endpoint through one with an https proxy."""

    async def make() -> Pair:
        client, server = await over_tls(contexts)()
        records = ByRecords(server)
        tls = trio.SSLStream(records, contexts[1], server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.do_handshake)
            ours = await open_tls_over(client, contexts[0], "localhost")
        return ours, TLSOverStream(server, records, tls)

    return make


def in_capsules(make: Maker, *, confirms: bool = True) -> Maker:
    async def wrap() -> Pair:
        client, server = await make()
        return (
            CapsuleStream(client, keepalive=math.inf, peer_keepalive=None, confirms=confirms, client=True),
            CapsuleStream(server, keepalive=math.inf, peer_keepalive=None, confirms=confirms),
        )

    return wrap


def in_websocket(make: Maker) -> Maker:
    async def wrap() -> Pair:
        client, server = await make()
        return (
            WebSocketStream(client, client=True, keepalive=math.inf),
            WebSocketStream(server, client=False, keepalive=math.inf),
        )

    return wrap


@pytest.fixture
def stdio() -> Iterator[Maker]:
    """Two processes' standard streams, joined by pipes."""
    descriptors: list[int] = []

    async def make() -> Pair:
        up, down = os.pipe(), os.pipe()
        pair = StdioStream(up[0], down[1]), StdioStream(down[0], up[1])
        # A closed stream leaves /dev/null at its numbers, which are closed below.
        descriptors.extend((*up, *down))
        return pair

    yield make
    for fd in descriptors:
        os.close(fd)


# --- clogging them ----------------------------------------------------------------------------


def clogged(make: Maker) -> Maker:
    """Neither of the two streams can send anything more, until the other one receives."""

    async def clog() -> Pair:
        pair = await make()
        for stream in pair:
            await fill(stream)
        return pair

    return clog


async def fill(stream: Stream) -> None:
    bare = stream
    while isinstance(bare, CapsuleStream | WebSocketStream):
        bare = bare.inner
    carrier = stream.inner if isinstance(stream, CapsuleStream) else stream
    if isinstance(carrier, WebSocketStream):
        await bare.send_all(_ENDLESS_MESSAGE if carrier.ends.half_close else _ENDLESS_MASKED_MESSAGE)
    if isinstance(stream, CapsuleStream):
        await bare.send_all(_ENDLESS_CAPSULE)
    assert isinstance(bare, SocketStream | TLSStream)
    # Send on the socket itself: cancelling a send of the stream would tear the stream.
    with suppress(BlockingIOError, ssl.SSLWantWriteError):
        while True:
            bare.socket.send(bytes(16 * 1024))


# --- the checks -------------------------------------------------------------------------------


async def check(make: Maker, clogged_make: Maker | None) -> None:
    """Of a stream that can half-close, all; of others, all but that."""
    sides = await make()
    half_close = all(stream.ends.half_close for stream in sides)
    for stream in sides:
        stream.abort()
    with trio.fail_after(PATIENCE):
        if half_close:
            await trio.testing.check_half_closeable_stream(make, clogged_make)
        else:
            await trio.testing.check_two_way_stream(make, clogged_make)


@pytest.mark.parametrize("carrier", [tcp, paced])
async def test_raw_bytes(carrier: Maker) -> None:
    await check(carrier, clogged(unix))


async def test_raw_bytes_over_a_unix_socket() -> None:
    await check(unix, clogged(unix))


async def test_raw_bytes_over_tls(contexts: Contexts) -> None:
    """Only the server's end can half-close."""
    await check(over_tls(contexts), clogged(over_tls(contexts, socket.socketpair)))


async def test_raw_bytes_over_tls_through_an_https_proxy(contexts: Contexts) -> None:
    # trio.SSLStream sends here, which cannot be clogged without being torn.
    await check(over_tls_over(contexts), None)


@pytest.fixture(params=["tcp", "tls", "tls through a proxy"])
def carriers(request: pytest.FixtureRequest, contexts: Contexts) -> tuple[Maker, Maker | None]:
    """What framing is put on, and the same by Unix sockets, which can be clogged to the last byte."""
    makers: dict[str, tuple[Maker, Maker | None]] = {
        "tcp": (tcp, unix),
        "tls": (over_tls(contexts), over_tls(contexts, socket.socketpair)),
        "tls through a proxy": (over_tls_over(contexts), None),
    }
    return makers[request.param]


@pytest.mark.parametrize("confirms", [True, False], ids=["acknowledged", "not acknowledged"])
async def test_capsules(confirms: bool, carriers: tuple[Maker, Maker | None]) -> None:
    carrier, small = carriers
    make = in_capsules(carrier, confirms=confirms)
    await check(make, small and clogged(in_capsules(small, confirms=confirms)))


async def test_websocket(carriers: tuple[Maker, Maker | None]) -> None:
    carrier, small = carriers
    await check(in_websocket(carrier), small and clogged(in_websocket(small)))


async def test_capsules_in_websocket(carriers: tuple[Maker, Maker | None]) -> None:
    carrier, small = carriers
    await check(in_capsules(in_websocket(carrier)), small and clogged(in_capsules(in_websocket(small))))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, threads read and write, and cannot be woken")
async def test_standard_input_and_output(stdio: Maker) -> None:
    await check(stdio, None)
