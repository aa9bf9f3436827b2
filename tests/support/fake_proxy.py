"""HTTP and SOCKS5 proxies on loopback that remember what they were asked, and can be told to misbehave."""

from __future__ import annotations

import socket
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import trio

CONNECTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
GONE = (trio.BrokenResourceError, trio.ClosedResourceError)

AnyStream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass
class FakeProxy:
    """Where it listens, and what it was asked for."""

    port: int
    #: `host:port` as asked for, in order. Over SOCKS an address is `ip host:port`.
    asked: list[str] = field(default_factory=list)
    #: The heads of the CONNECT requests.
    heads: list[bytes] = field(default_factory=list)
    #: `user:password`, where they were sent.
    logins: list[bytes] = field(default_factory=list)

    def url(self, scheme: str, login: str = "", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{login}{host}:{self.port}"


@asynccontextmanager
async def fake_proxy(
    scheme: str,
    *,
    tls: ssl.SSLContext | None = None,
    hosts: Mapping[str, str] | None = None,
    answer: bytes = CONNECTED,
    extra: bytes = b"",
    login: bytes | None = None,
    unreachable: tuple[str, ...] = (),
) -> AsyncIterator[FakeProxy]:
    """A proxy that works: for http and https (`tls` is its context), socks5 and socks5h.

    `hosts` says where a `host:port` really is; `answer` is its word of success over HTTP, and `extra` goes
    out in the same segment; `login` is `user:password`, without which a SOCKS client is turned away;
    `unreachable` are addresses to which it answers that they are.
    """
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = FakeProxy(listener.socket.getsockname()[1])
    where = hosts or {}

    async def connection(client: trio.SocketStream) -> None:
        stream: AnyStream = client if tls is None else trio.SSLStream(client, tls, server_side=True)
        try:
            if scheme.startswith("socks5"):
                asked = await _socks(stream, proxy, extra, login, unreachable)
            else:
                asked = await _connect(stream, proxy, answer + extra)
            if asked:
                host, _, port = where.get(asked, asked).removeprefix("ip ").rpartition(":")
                async with await trio.open_tcp_stream(host, int(port)) as server:
                    await _pump_both(stream, server)
        except (*GONE, OSError):
            pass  # the client left, or is none of TLS
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, connection, [listener])
        yield proxy
        nursery.cancel_scope.cancel()


async def _connect(stream: AnyStream, proxy: FakeProxy, answer: bytes) -> str:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some(4096)
        if not data:
            return ""
        head += data
    assert head.endswith(b"\r\n\r\n"), "the client spoke before the answer"
    proxy.heads.append(head)
    lines = head.decode().split("\r\n")
    proxy.asked.append(lines[0].split(" ")[1])
    proxy.logins += [b64decode(line.rpartition(" ")[2]) for line in lines if line.startswith("Proxy-Authorization: ")]
    await stream.send_all(answer)
    return proxy.asked[-1]


async def _socks(
    stream: AnyStream, proxy: FakeProxy, extra: bytes, login: bytes | None, unreachable: tuple[str, ...]
) -> str:
    _, count = await _exactly(stream, 2)
    methods = await _exactly(stream, count)
    if login is not None:
        if 2 not in methods:
            await stream.send_all(b"\x05\xff")
            return ""
        await stream.send_all(b"\x05\x02")
        _, length = await _exactly(stream, 2)
        user = await _exactly(stream, length)
        password = await _exactly(stream, *await _exactly(stream, 1))
        proxy.logins.append(user + b":" + password)
        await stream.send_all(b"\x01" + bytes([proxy.logins[-1] != login]))
        if proxy.logins[-1] != login:
            return ""
    else:
        await stream.send_all(b"\x05\x00")
    *_, kind = await _exactly(stream, 4)
    if kind == 3:
        host = (await _exactly(stream, *await _exactly(stream, 1))).decode()
    elif kind == 1:
        host = f"ip {IPv4Address(await _exactly(stream, 4))}"
    else:
        host = f"ip {IPv6Address(await _exactly(stream, 16))}"
    proxy.asked.append(f"{host}:{int.from_bytes(await _exactly(stream, 2), 'big')}")
    if host.removeprefix("ip ") in unreachable:
        await stream.send_all(b"\x05\x04\x00\x01" + bytes(6))
        return ""
    # Its own address as a name, which is the form of no fixed length.
    await stream.send_all(b"\x05\x00\x00\x03\x05proxy\x00\x00" + extra)
    return proxy.asked[-1]


async def _exactly(stream: AnyStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise trio.BrokenResourceError("the client left")
        data += more
    return data


async def _pump_both(client: AnyStream, server: trio.SocketStream) -> None:
    async with trio.open_nursery() as both:

        async def upwards() -> None:
            try:
                async for data in client:
                    await server.send_all(data)
                await server.send_eof()
            except GONE:
                both.cancel_scope.cancel()

        both.start_soon(upwards)
        try:
            async for data in server:
                await client.send_all(data)
            if isinstance(client, trio.SSLStream):
                await client.aclose()
                both.cancel_scope.cancel()
            else:
                await client.send_eof()
        except GONE:
            both.cancel_scope.cancel()


class Names(trio.abc.HostnameResolver):
    """The look-up of names, as a table; what is not in it has no address."""

    def __init__(self, **names: list[str]) -> None:
        self._names = names
        #: What was looked up.
        self.asked: list[str] = []

    async def getaddrinfo(  # type: ignore[no-untyped-def]
        self, host, port, family=0, type=0, proto=0, flags=0
    ):
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        found = [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, type, 6, "", (address, port))
            for address in self._names.get(name, [])
        ]
        found = [each for each in found if family in (0, each[0])]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return found

    async def getnameinfo(self, sockaddr: tuple[str, int] | tuple[str, int, int, int], flags: int) -> tuple[str, str]:
        raise NotImplementedError
