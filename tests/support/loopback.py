"""Targets, servers and raw HTTP on loopback, in the test's own process."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from http2tcp.address import TCPAddress, parse_destination, parse_endpoint, parse_listen
from http2tcp.client.forwarder import forward
from http2tcp.client.forwards import Forward
from http2tcp.client.settings import ClientSettings
from http2tcp.net.streams import reset_on_close
from http2tcp.protocol.transport import Transport
from http2tcp.server.server import Server
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import prepare

#: No log may ever show it.
TOKEN = "tok-5ecret-Zm9vYmFy"

Handler = Callable[[trio.SocketStream], Awaitable[object]]


# --- targets, each with one habit -------------------------------------------------------------


async def echo(stream: trio.SocketStream) -> None:
    """Send everything back, EOF included."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def greet_and_close(stream: trio.SocketStream) -> None:
    """Say a line and close, as a target does that ends a conversation first."""
    await stream.send_all(b"hello\n")
    await stream.aclose()


def reset(stream: trio.SocketStream) -> None:
    """Close with RST."""
    reset_on_close(stream.socket._sock)  # type: ignore[attr-defined]
    stream.socket.close()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything until EOF."""
    parts = []
    while data := await stream.receive_some(256 * 1024):
        parts.append(bytes(data))
    return b"".join(parts)


async def read_until_broken(stream: trio.abc.ReceiveStream) -> bytes:
    """What arrives before the stream breaks. An EOF is a failure."""
    received = b""
    while True:
        try:
            data = await stream.receive_some(256 * 1024)
        except trio.BrokenResourceError:
            return received
        assert data, f"a clean end after {len(received)} bytes"
        received += data


async def send_until_broken(stream: trio.abc.SendStream, data: bytes) -> None:
    """Send again and again until the peer is gone, for 5 seconds at most."""
    with trio.fail_after(5):
        while True:
            try:
                await stream.send_all(data)
            except trio.BrokenResourceError:
                return


@asynccontextmanager
async def target(handler: Handler) -> AsyncIterator[str]:
    """A service on loopback, as `host:port`. A connection that breaks is no matter; at the end all are cancelled."""

    async def handle(stream: trio.SocketStream) -> None:
        try:
            await handler(stream)
        except trio.BrokenResourceError:
            pass

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        host, port = listener.socket.getsockname()[:2]
        yield f"{host}:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    """An http2tcp server on loopback with TOKEN; keywords as in `ServerSettings`."""
    settings.setdefault("listen", parse_listen("127.0.0.1:0"))
    settings.setdefault("tokens", (TOKEN,))
    drain = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            await server.server.run(drain=drain, task_status=task_status)
            server.ended.set()

        server = Served(Server(ServerSettings(**settings)), drain, nursery.cancel_scope)
        server.addresses = await nursery.start(run)
        yield server
        nursery.cancel_scope.cancel()


@dataclass
class Served:
    """A server that runs."""

    server: Server
    drain: trio.Event
    scope: trio.CancelScope
    addresses: Any = ()
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def address(self) -> TCPAddress:
        address = self.addresses[0]
        assert isinstance(address, TCPAddress)
        return address

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    def reload(self, **changes: Any) -> None:
        """As SIGHUP does, with these settings changed."""
        self.server.state.reload(prepare(replace(self.server.state.settings, **changes)))


@asynccontextmanager
async def forwarding(url: str, destination: str | None, **settings: Any) -> AsyncIterator[TCPAddress]:
    """A forwarder on loopback: where it listens."""
    async with trio.open_nursery() as nursery:
        settings.setdefault("forwards", [Forward(parse_listen("0"))])
        listening = await nursery.start(forward, client_settings(url, destination, **settings))
        yield listening[0].listen
        nursery.cancel_scope.cancel()


def client_settings(url: str, destination: str | None = None, **settings: Any) -> ClientSettings:
    """A client's settings, with TOKEN and raw bytes unless others are given."""
    settings.setdefault("token", TOKEN)
    settings.setdefault("transport", Transport.TCP)
    return ClientSettings(
        endpoint=parse_endpoint(url),
        destination=None if destination is None else parse_destination(destination),
        **settings,
    )


# --- raw HTTP ---------------------------------------------------------------------------------


def upgrade(path: str = "/", *fields: str, token: str | None = TOKEN, transport: str = "tcp") -> bytes:
    """A request head as a client would send it, with further fields."""
    lines = [f"GET {path} HTTP/1.1", "Host: example.com", "Connection: Upgrade", f"Upgrade: {transport}", *fields]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode()


def asking(destination: str, *fields: str, token: str | None = TOKEN) -> bytes:
    """A request head for a destination."""
    return upgrade(f"/?addr={destination}", *fields, token=token)


@dataclass(frozen=True)
class Answer:
    """An answer that was read to the end of its connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str | None:
        """The Proxy-Status error type."""
        name, _, error = self.headers.get("proxy-status", "").partition("; error=")
        return error if name == "http2tcp" else None


def parse_answer(raw: bytes) -> Answer:
    """Take apart what came back."""
    head, blank, body = raw.partition(b"\r\n\r\n")
    assert blank, f"no whole head in {raw!r}"
    status_line, *lines = head.decode().split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        assert name.lower() not in headers, f"{name} comes twice"
        headers[name.lower()] = value
    return Answer(int(status_line.split(" ")[1]), headers, body)


async def exchange(address: TCPAddress, request: bytes) -> Answer:
    """Send a request and read until the server closes."""
    async with await trio.open_tcp_stream(address.host, address.port) as stream:
        await stream.send_all(request)
        return parse_answer(await read_all(stream))


async def open_raw(address: TCPAddress, request: bytes) -> tuple[trio.SocketStream, bytes]:
    """Send a request and read the head of the 101; the stream and what came after the head."""
    stream = await trio.open_tcp_stream(address.host, address.port)
    await stream.send_all(request)
    raw = b""
    while b"\r\n\r\n" not in raw:
        data = await stream.receive_some(64 * 1024)
        assert data, f"the connection ended after {raw!r}"
        raw += data
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return stream, rest


@contextmanager
def full_backlog() -> Iterator[str]:
    """An address that takes no further connection and refuses none: the kernel drops the SYNs."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield f"{host}:{port}"


def closed_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
