"""`open_tunnel`: what a program gets that has no relay of ours around its stream."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from http2tcp import (
    ClientSettings,
    DestinationForbidden,
    Limits,
    ServerSettings,
    SettingsError,
    Token,
    open_tunnel,
    parse_endpoint,
    parse_listen,
    parse_rule,
    serve,
)
from http2tcp.address import TCPAddress
from http2tcp.net import unattended
from http2tcp.net.resumable import ResumableStream
from http2tcp.net.streams import Stream
from tests.support.loopback import TOKEN, echo, read_all, reset, served, target


async def test_a_program_may_be_silent_for_long_without_being_given_up() -> None:
    heads: list[bytes] = []

    async def accept(stream: trio.SocketStream) -> None:
        heads.append(await stream.receive_some(4096))
        fields = b"Connection: Upgrade\r\nUpgrade: connect-tcp\r\nProxy-Status: http2tcp\r\n\r\n"
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n" + fields)
        await stream.receive_some()

    async with target(accept) as address:
        async with await open_tunnel(f"http://{address}/", "db:5432", token=TOKEN):
            (head,) = heads
    assert b"\r\nUpgrade: connect-tcp\r\n" in head
    # Nobody sends keepalives for the program. A server gives up who has announced some and is silent.
    assert b"keepalive" not in head.lower()


async def test_settings_say_all_that_a_url_and_options_say_and_the_deadlines_too() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    alice = Token(
        name="alice",
        digest=hashlib.sha256(TOKEN.encode()).digest(),
        allow=[parse_rule("127.0.0.0/30:*")],
        max_tunnels=1,
    )
    server = ServerSettings(
        listen=parse_listen("127.0.0.1:0"),
        tokens=[alice],
        deny=[parse_rule("127.0.0.2:*")],
        limits=Limits(max_rate=1e6),
    )
    async with target(echo) as where, trio.open_nursery() as nursery:
        (address,) = await nursery.start(serve, server)
        client = ClientSettings(endpoint=parse_endpoint(f"http://{address}/"), token=TOKEN, answer_timeout=5.0)
        async with await open_tunnel(client, where) as tunnel:
            await tunnel.send_all(b"hello")
            assert await tunnel.receive_some() == b"hello"
        for elsewhere in ("127.0.0.2:22", "127.0.0.9:22"):
            with pytest.raises(DestinationForbidden):
                await open_tunnel(client, elsewhere)
        nursery.cancel_scope.cancel()


async def test_an_option_beside_settings_is_a_mistake_that_is_named() -> None:
    client = ClientSettings(endpoint=parse_endpoint("http://127.0.0.1:1/"))
    with pytest.raises(SettingsError, match="ClientSettings"):
        await open_tunnel(client, token=TOKEN)  # type: ignore[call-overload]


# --- tunnels that come back -------------------------------------------------------------------------


class Front:
    """A front end that can be made to cut every connection that it has."""

    def __init__(self, server: TCPAddress) -> None:
        self._server = server
        self._ends: list[trio.SocketStream] = []
        self.connections = 0

    async def serve(self, client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream(self._server.host, self._server.port)
        self._ends += [client, server]
        self.connections += 1

        async def pass_on(one: trio.SocketStream, other: trio.SocketStream) -> None:
            async for data in one:
                await other.send_all(data)
            await other.send_eof()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pass_on, client, server)
                nursery.start_soon(pass_on, server, client)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def cut(self) -> None:
        for end in self._ends:
            trio.lowlevel.notify_closing(end.socket)
            reset(end)
        self._ends.clear()


@asynccontextmanager
async def front_of_a_server() -> AsyncIterator[tuple[Front, str]]:
    async with served() as server:
        front = Front(server.address)
        async with target(front.serve) as address:
            try:
                yield front, f"http://{address}/"
            finally:
                front.cut()


async def test_a_program_s_tunnel_goes_on_after_its_connection_was_cut() -> None:
    async with target(echo) as where, front_of_a_server() as (front, url):
        async with await open_tunnel(url, where, token=TOKEN, resume=True) as tunnel:
            for number in range(3):
                await tunnel.send_all(b"%d" % number)
                assert await tunnel.receive_some() == b"%d" % number
                front.cut()
            await tunnel.send_eof()
            with trio.fail_after(10):
                assert await tunnel.receive_some() == b""
    assert front.connections == 4


async def test_so_does_one_of_settings_that_say_for_how_long() -> None:
    async with target(echo) as where, front_of_a_server() as (front, url):
        settings = ClientSettings(endpoint=parse_endpoint(url), token=TOKEN, resume=5.0)
        async with await open_tunnel(settings, where) as tunnel:
            await tunnel.send_all(b"before")
            assert await tunnel.receive_some() == b"before"
            front.cut()
            with trio.fail_after(10):
                await tunnel.send_all(b"after")
                assert await tunnel.receive_some() == b"after"


async def test_a_program_that_does_not_ask_for_it_learns_of_the_cut() -> None:
    async with target(echo) as where, front_of_a_server() as (front, url):
        tunnel = await open_tunnel(url, where, token=TOKEN)
        await tunnel.send_all(b"before")
        assert await tunnel.receive_some() == b"before"
        front.cut()
        with pytest.raises(trio.BrokenResourceError):
            await tunnel.receive_some()
        tunnel.abort()


async def test_a_program_that_only_sends_is_not_stopped_by_a_full_window_nor_by_a_cut() -> None:
    """The acknowledgements that make room come with what it does not receive."""
    megabyte = bytes(range(256)) * 4096

    async def count(stream: trio.SocketStream) -> None:
        await stream.send_all(hashlib.sha256(await read_all(stream)).digest())
        await stream.send_eof()

    async with target(count) as where, front_of_a_server() as (front, url):
        async with await open_tunnel(url, where, token=TOKEN, resume=True) as tunnel:
            with trio.fail_after(30):
                for number in range(16):
                    if number in (5, 11):
                        front.cut()
                    await tunnel.send_all(megabyte)
                await tunnel.send_eof()
                assert await read_all(tunnel) == hashlib.sha256(megabyte * 16).digest()
    assert front.connections == 3


async def send_in_pieces(tunnel: Stream, data: bytes) -> None:
    for start in range(0, len(data), 65536):
        await tunnel.send_all(data[start : start + 65536])
    await tunnel.send_eof()


async def test_nor_by_a_target_that_sends_as_much_meanwhile() -> None:
    """The acknowledgements stand behind bytes that the program does not take before it has sent everything."""
    sixteen = bytes(range(256)) * 4096 * 16

    async def both(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sixteen)
            digests.append(hashlib.sha256(await read_all(stream)).digest())
        await stream.send_eof()

    digests: list[bytes] = []
    async with target(both) as where, served() as server:
        async with await open_tunnel(f"http://{server.address}/", where, token=TOKEN, resume=True) as tunnel:
            with trio.fail_after(30):
                await send_in_pieces(tunnel, sixteen)
                assert await read_all(tunnel) == sixteen
    assert digests == [hashlib.sha256(sixteen).digest()]


async def test_a_cut_is_mended_while_nothing_more_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    sixteen = bytes(range(256)) * 4096 * 16
    # The cut comes before that: in a lapse it would be a gap.
    monkeypatch.setattr(unattended, "LAPSE_AFTER", 3.0)

    async def both(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sixteen)
            digests.append(hashlib.sha256(await read_all(stream)).digest())
        await stream.send_eof()

    digests: list[bytes] = []
    async with target(both) as where, front_of_a_server() as (front, url):
        async with await open_tunnel(url, where, token=TOKEN, resume=True) as tunnel, trio.open_nursery() as nursery:
            assert isinstance(tunnel, unattended.UnattendedStream)
            with trio.fail_after(40):
                nursery.start_soon(send_in_pieces, tunnel, sixteen)
                while len(tunnel._ahead) < 1024 * 1024 or tunnel.machine.room > 0:
                    await trio.sleep(0.005)
                front.cut()
                while front.connections == 1:
                    await trio.sleep(0.005)
                assert await read_all(tunnel) == sixteen
    assert front.connections == 2
    assert digests == [hashlib.sha256(sixteen).digest()]


async def test_one_task_may_send_while_another_one_receives_through_cuts() -> None:
    data = bytes(range(256)) * 4096 * 8
    async with target(echo) as where, front_of_a_server() as (front, url):
        async with await open_tunnel(url, where, token=TOKEN, resume=True) as tunnel, trio.open_nursery() as nursery:

            async def send() -> None:
                for start in range(0, len(data), 65536):
                    if start in (65536 * 20, 65536 * 90):
                        front.cut()
                    await tunnel.send_all(data[start : start + 65536])
                await tunnel.send_eof()

            nursery.start_soon(send)
            with trio.fail_after(30):
                assert await read_all(tunnel) == data


async def test_a_resumable_program_may_be_silent_too() -> None:
    async with target(echo) as where, served() as server:
        async with await open_tunnel(f"http://{server.address}/", where, token=TOKEN, resume=True) as tunnel:
            assert isinstance(tunnel, ResumableStream)
            # Nobody sends keepalives for it: the server has to wait for as long as nobody is ever waited for.
            assert tunnel.machine.terms.keepalive >= 24 * 3600 * 1000
