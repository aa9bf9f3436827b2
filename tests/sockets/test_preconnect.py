"""The way to the endpoint that is begun before trio is loaded."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import trio

from http2tcp.address import TCPAddress
from http2tcp.client.connector import connect
from http2tcp.errors import ConnectFailed, ResolveFailed
from http2tcp.net.dial import dial, resolve
from http2tcp.net.preconnect import HeadStart, other
from tests.support.loopback import client_settings, closed_port, echo, served, target


async def test_the_connection_that_was_begun_is_the_one_that_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        head_start = HeadStart("127.0.0.1", port)
        dialled = await dial(TCPAddress("127.0.0.1", port), head_start=head_start)
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
    loopback = [("127.0.0.1", where.port), ("::1", where.port)]
    assert [sockaddr for *_, sockaddr in head_start.known] == loopback
    assert [candidate.sockaddr for candidate in await resolve(where)] == loopback
    head_start.close()


class Resolver:
    """Takes the place of `socket.getaddrinfo` for one name: each family is answered when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **addresses: str) -> None:
        self._real = socket.getaddrinfo
        self._addresses = {socket.AF_INET: addresses.get("ipv4"), socket.AF_INET6: addresses.get("ipv6")}
        self.answers = {socket.AF_INET: threading.Event(), socket.AF_INET6: threading.Event()}
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)

    def _getaddrinfo(self, host: Any, port: Any, family: Any = 0, type: Any = 0, proto: int = 0, flags: int = 0) -> Any:
        if host != b"site.example" or flags:
            return self._real(host, port, family, type, proto, flags)
        self.answers[family].wait(10)
        address = self._addresses[family]
        if address is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self._real(address, port, family, type, proto, flags)


async def test_a_slow_name_server_holds_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, ipv4="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        head_start = HeadStart("site.example", port)
        assert not head_start.done(socket.AF_INET)

        async def reach() -> None:
            dialled = await dial(TCPAddress("site.example", port), head_start=head_start)
            dialled.stream.abort()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reach)
                await trio.sleep(0)
                for answer in resolver.answers.values():
                    answer.set()
        head_start.close()


@pytest.mark.parametrize("dropped", [socket.AF_INET, socket.AF_INET6])
async def test_a_resolver_that_drops_one_family_holds_up_no_head_start(
    dropped: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the connection that the head start has begun is the one that is used."""
    resolver = Resolver(monkeypatch, ipv4="127.0.0.1", ipv6="::1")
    kept = other(dropped)
    with socket.create_server(("127.0.0.1" if kept == socket.AF_INET else "::1", 0), family=kept) as listener:
        port = listener.getsockname()[1]
        head_start = HeadStart("site.example", port)
        resolver.answers[kept].set()
        peer, name = listener.accept()
        with trio.fail_after(10):
            dialled = await dial(TCPAddress("site.example", port), head_start=head_start)
        assert dialled.stream.socket.getsockname()[:2] == name[:2]
        dialled.stream.abort()
        peer.close()
        resolver.answers[dropped].set()


async def test_a_dial_that_comes_before_the_head_start_has_begun_makes_the_only_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver = Resolver(monkeypatch, ipv4="127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        head_start = HeadStart("site.example", listener.getsockname()[1])
        assert head_start.settle() is None
        for answer in resolver.answers.values():
            answer.set()
        while not all(map(head_start.done, resolver.answers)):
            await trio.sleep(0.001)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert head_start.take() is None


async def test_what_nobody_used_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        head_start = HeadStart("127.0.0.1", listener.getsockname()[1])
        head_start.close()
        peer, _ = listener.accept()
        assert peer.recv(1) == b""
        peer.close()
