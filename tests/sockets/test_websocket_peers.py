"""WebSocket with somebody else at the other end: the `websockets` package, as a client and as a server."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

import http2tcp
from http2tcp.client.connector import connect as open_client
from http2tcp.errors import FrontEndFailed
from http2tcp.net.relay import End, Traffic, relay
from http2tcp.net.streams import HalfCloseUnsupported
from http2tcp.protocol.transport import Transport
from tests.support.loopback import (
    TOKEN,
    Served,
    client_settings,
    echo,
    greet_and_close,
    read_all,
    read_until_broken,
    reset,
    served,
    target,
)
from tests.support.memory_stream import memory_pair

MIB = 1024 * 1024

# Its own log has every header field, and the token's is not ours to leak.
QUIET = logging.Logger("peer", logging.CRITICAL)


# --- as a client ------------------------------------------------------------------------------


async def as_client(server: Served, where: str, talk: Callable[[ClientConnection], Any], **options: Any) -> Any:
    """What `talk` returns of a connection through our server; its thread is given up after 20 s."""
    options |= {"logger": QUIET}
    options.setdefault("additional_headers", {"Authorization": f"Bearer {TOKEN}"})

    def run() -> Any:
        with connect(f"ws://{server.address}/?addr={where}", close_timeout=5, **options) as connection:
            return talk(connection)

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(run, abandon_on_cancel=True)


def receive_exactly(connection: ClientConnection | ServerConnection, size: int) -> bytes:
    received = b""
    while len(received) < size:
        message = connection.recv(timeout=10)
        assert isinstance(message, bytes)
        received += message
    return received


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 3 * MIB])
async def test_a_plain_client_s_messages_reach_the_target_and_come_back(size: int) -> None:
    data = os.urandom(size)

    def talk(connection: ClientConnection) -> tuple[Any, bytes]:
        connection.send(data)
        # Not asked for, and neither is compression, which this client offers.
        assert connection.subprotocol is None
        assert not connection.protocol.extensions
        return connection.subprotocol, receive_exactly(connection, size)

    async with target(echo) as where, served() as server:
        assert await as_client(server, where, talk) == (None, data)


async def test_a_plain_client_may_send_fragments_and_pings() -> None:
    def talk(connection: ClientConnection) -> bytes:
        answered = connection.ping(b"are you there")
        connection.send([b"in ", b"three ", b"pieces"])
        assert answered.wait(10)
        return receive_exactly(connection, 15)

    async with target(echo) as where, served() as server:
        assert await as_client(server, where, talk) == b"in three pieces"


async def test_a_target_that_ends_closes_a_plain_client_s_connection_well() -> None:
    def talk(connection: ClientConnection) -> tuple[str | bytes, int | None]:
        greeting = connection.recv(timeout=10)
        with pytest.raises(ConnectionClosedOK) as caught:
            connection.recv(timeout=10)
        assert caught.value.rcvd is not None
        return greeting, caught.value.rcvd.code

    async with target(greet_and_close) as where, served() as server:
        assert await as_client(server, where, talk) == (b"hello\n", 1000)


async def test_a_plain_client_that_closes_ends_the_target(caplog: pytest.LogCaptureFixture) -> None:
    ended = trio.Event()

    async def until_eof(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b"bye"
        ended.set()

    async with target(until_eof) as where, served() as server:
        await as_client(server, where, lambda connection: connection.send(b"bye"))
        with trio.fail_after(5):
            await ended.wait()
            while "reason=closed" not in caplog.text:
                await trio.sleep(0.01)


async def test_a_plain_client_is_told_that_the_target_broke() -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        reset(stream)

    def talk(connection: ClientConnection) -> tuple[int, str]:
        connection.send(b"go")
        with pytest.raises(ConnectionClosedError) as caught:
            connection.recv(timeout=10)
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code, caught.value.rcvd.reason

    async with target(break_off) as where, served() as server:
        code, reason = await as_client(server, where, talk)
    assert code == 1011
    assert "reset" in reason.lower()


@pytest.mark.parametrize(
    ("message", "code"), [("text is not for tunnels", 1003), (bytes(16 * MIB + 1), 1009)], ids=["text", "too big"]
)
async def test_a_plain_client_is_told_what_it_did_wrong(message: str | bytes, code: int) -> None:
    def talk(connection: ClientConnection) -> int:
        def send_and_wait() -> None:
            connection.send(message)
            connection.recv(timeout=10)

        with pytest.raises(ConnectionClosedError) as caught:
            send_and_wait()
        assert caught.value.rcvd is not None
        return caught.value.rcvd.code

    async def until_broken(stream: trio.SocketStream) -> None:
        got.append(await read_until_broken(stream))
        done.set()

    got: list[bytes] = []
    done = trio.Event()
    async with target(until_broken) as where, served() as server:
        assert await as_client(server, where, talk) == code
        with trio.fail_after(5):
            await done.wait()
    # Nothing of it reached the target, which does not take what it got for whole.
    assert got == [b""]


async def test_a_silent_plain_client_is_pinged() -> None:
    def talk(connection: ClientConnection) -> bool:
        with pytest.raises(TimeoutError):
            connection.recv(timeout=0.5)
        return pinged.is_set()

    pinged = threading.Event()

    class Noticing(ClientConnection):
        def process_event(self, event: Any) -> None:
            if getattr(event, "opcode", None) == 9:
                pinged.set()
            super().process_event(event)

    async with target(echo) as where, served(keepalive=0.1) as server:
        assert await as_client(server, where, talk, create_connection=Noticing)


async def test_a_plain_client_that_offers_other_subprotocols_gets_none() -> None:
    def talk(connection: ClientConnection) -> tuple[Any, bytes]:
        connection.send(b"raw")
        return connection.subprotocol, receive_exactly(connection, 3)

    async with target(echo) as where, served() as server:
        assert await as_client(server, where, talk, subprotocols=["binary", "base64"]) == (None, b"raw")


@pytest.mark.parametrize("origin", ["https://evil.example", "https://good.example.evil.example", "http://good.example"])
async def test_a_web_page_from_elsewhere_opens_no_tunnel(origin: str) -> None:
    async with target(echo) as where, served(allow_origins=["https://good.example"]) as server:
        with pytest.raises(InvalidStatus) as caught:
            await as_client(server, where, lambda connection: None, origin=origin)
    assert caught.value.response.status_code == 403


async def test_a_web_page_that_the_server_lists_opens_a_tunnel() -> None:
    def talk(connection: ClientConnection) -> bytes:
        connection.send(b"from a page")
        return receive_exactly(connection, 11)

    origins = ["https://other.example", "https://good.example"]
    async with target(echo) as where, served(allow_origins=origins) as server:
        assert await as_client(server, where, talk, origin="https://good.example") == b"from a page"


async def test_two_hundred_plain_clients_at_once_do_not_mix() -> None:
    def talk(connection: ClientConnection) -> None:
        data = os.urandom(20_000)
        connection.send(data)
        assert receive_exactly(connection, len(data)) == data

    async with target(echo) as where, served() as server:
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(as_client, server, where, talk)


# --- as a server ------------------------------------------------------------------------------


@asynccontextmanager
async def plain_server(handler: Callable[[ServerConnection], Any], **options: Any) -> AsyncIterator[str]:
    """A WebSocket server that knows nothing of ours: its URL."""
    failures: list[BaseException] = []

    def handle(connection: ServerConnection) -> None:
        try:
            handler(connection)
        except ConnectionClosedOK:
            pass
        except BaseException as error:
            failures.append(error)
            raise

    # Compression stays on its list of what it would take.
    server = serve(handle, "127.0.0.1", 0, close_timeout=5, logger=QUIET, **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        host, port = server.socket.getsockname()[:2]
        yield f"http://{host}:{port}/tunnel"
    finally:
        server.shutdown()
        thread.join(5)
    assert failures == []


def send_back(connection: ServerConnection) -> None:
    for message in connection:
        connection.send(message)


async def plain_tunnel(url: str) -> http2tcp.net.streams.Stream:
    return await http2tcp.open_tunnel(url, token=TOKEN, transport=Transport.WEBSOCKET)


async def test_our_client_talks_with_a_plain_server() -> None:
    data = os.urandom(3 * MIB)
    async with plain_server(send_back) as url, await plain_tunnel(url) as stream:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                received = b""
                while len(received) < len(data):
                    received += await stream.receive_some()
        assert received == data
        # Here a Close would end both directions, and a program that relies on half-close has to know.
        assert not stream.ends.half_close
        with pytest.raises(HalfCloseUnsupported):
            await stream.send_eof()


async def test_a_plain_server_that_requires_its_own_subprotocol_is_not_misunderstood() -> None:
    async with plain_server(send_back, subprotocols=["chat"]) as url:
        with pytest.raises(http2tcp.TunnelError):
            await plain_tunnel(url)


async def test_a_plain_server_s_pings_are_answered() -> None:
    def handler(connection: ServerConnection) -> None:
        assert connection.ping(b"there?").wait(10)
        connection.send(b"yes")

    async with plain_server(handler) as url, await plain_tunnel(url) as stream:
        with trio.fail_after(10):
            assert await read_all(stream) == b"yes"


async def test_a_plain_server_that_gives_up_is_an_error_with_its_reason() -> None:
    def handler(connection: ServerConnection) -> None:
        connection.send(b"part")
        connection.close(1011, "the disk is full")

    async with plain_server(handler) as url, await plain_tunnel(url) as stream:
        assert await stream.receive_some() == b"part"
        with pytest.raises(trio.BrokenResourceError, match="1011: the disk is full"):
            await stream.receive_some()


async def test_text_from_a_plain_server_is_refused_and_it_is_told() -> None:
    told: list[Any] = []

    def handler(connection: ServerConnection) -> None:
        connection.send("text")
        with pytest.raises(ConnectionClosedError) as caught:
            connection.recv(timeout=10)
        told.append(caught.value.rcvd)

    async with plain_server(handler) as url:
        async with await plain_tunnel(url) as stream:
            with pytest.raises(trio.BrokenResourceError, match="text message"):
                await stream.receive_some()
    assert told[0].code == 1003


async def test_a_plain_server_is_closed_well_where_the_program_closes() -> None:
    ended: list[Any] = []

    def handler(connection: ServerConnection) -> None:
        try:
            connection.recv(timeout=10)
        except ConnectionClosedOK as error:
            ended.append(error.rcvd)

    async with plain_server(handler) as url:
        async with await plain_tunnel(url):
            pass
    assert ended[0].code == 1000


async def test_silence_after_the_end_of_input_towards_a_plain_server_is_a_failure() -> None:
    async with plain_server(send_back) as url:
        tunnel = await open_client(client_settings(url, transport=Transport.WEBSOCKET))
        tunnel.stream.ends = tunnel.stream.ends._replace(eof_patience=0.2)
        near, application = memory_pair(eof_patience=math.inf)
        await application.send_all(b"question")
        await application.send_eof()
        with trio.fail_after(10):
            outcome = await relay(near, tunnel.stream, Traffic())
        assert outcome.end is End.EOF_NOT_RELAYED
        assert await application.receive_some() == b"question"


async def test_what_answers_without_speaking_websocket_is_noticed() -> None:
    async def lies(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        await stream.send_all(f"{head}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n".encode())
        await read_all(stream)

    async with target(lies) as where:
        with pytest.raises(FrontEndFailed, match="Sec-WebSocket-Accept"):
            await plain_tunnel(f"http://{where}/")
