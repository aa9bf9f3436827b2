"""The way to the endpoint that is begun before trio is loaded."""

from __future__ import annotations

import socket
import threading

import pytest
import trio

from http2tcp.address import TCPAddress
from http2tcp.client.connector import connect
from http2tcp.errors import ConnectFailed, ResolveFailed
from http2tcp.net.dial import dial_first, resolve
from http2tcp.net.preconnect import HeadStart
from tests.support.loopback import client_settings, closed_port, echo, served, target


async def test_the_connection_that_was_begun_is_the_one_that_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        head_start = HeadStart("127.0.0.1", port)
        head_start.addresses()
        dialled = await dial_first(await resolve(TCPAddress("127.0.0.1", port), head_start))
        assert dialled.address == TCPAddress("127.0.0.1", port)
        peer, name = listener.accept()
        assert dialled.stream.socket.getsockname() == name
        assert head_start.take() is None
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        peer.close()
        await dialled.stream.aclose()


async def test_a_tunnel_opens_over_it() -> None:
    async with target(echo) as where, served() as server:
        settings = client_settings(server.url, where)
        tunnel = await connect(settings, HeadStart(server.address.host, server.address.port))
        async with tunnel.stream:
            await tunnel.stream.send_all(b"x")
            assert await tunnel.stream.receive_some() == b"x"


async def test_a_refusal_is_told_as_without_it() -> None:
    port = closed_port()
    head_start = HeadStart("127.0.0.1", port)
    head_start.addresses()
    with pytest.raises(ConnectFailed, match="connection refused"):
        await connect(client_settings(f"http://127.0.0.1:{port}/", "localhost:22"), head_start)


async def test_a_name_without_an_address_is_told_as_without_it() -> None:
    head_start = HeadStart("no-such-name.invalid", 80)
    with pytest.raises(ResolveFailed):
        await connect(client_settings("http://no-such-name.invalid/", "localhost:22"), head_start)


async def test_localhost_needs_no_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    where = TCPAddress("localhost", closed_port())
    head_start = HeadStart(where.host, where.port)
    for candidates in (await resolve(where, head_start), await resolve(where)):
        assert [candidate.sockaddr for candidate in candidates] == [("127.0.0.1", where.port), ("::1", where.port)]
    head_start.close()


async def test_a_slow_name_server_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    real = socket.getaddrinfo

    def slow(*args: object, **kwargs: object) -> object:
        answer.wait(10)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        head_start = HeadStart("127.0.0.1", port)
        assert not head_start.done
        candidates = []

        async def look_up() -> None:
            candidates.extend(await resolve(TCPAddress("127.0.0.1", port), head_start))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            await trio.sleep(0)
            answer.set()
        assert candidates[0].head_start is head_start
        head_start.close()


async def test_what_nobody_used_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        head_start = HeadStart("127.0.0.1", listener.getsockname()[1])
        head_start.addresses()
        head_start.close()
        peer, _ = listener.accept()
        assert peer.recv(1) == b""
        peer.close()
