"""A front end on loopback that passes some upgrades and answers all others by itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import trio

from http2tcp.address import TCPAddress
from tests.support.loopback import Handler, target

#: What Envoy says to an upgrade that its configuration does not list.
ENVOY_REFUSES = (
    b"HTTP/1.1 403 Forbidden\r\ndate: Sat, 21 Nov 2026 10:15:48 GMT\r\nserver: envoy\r\ncontent-length: 0\r\n\r\n"
)


@asynccontextmanager
async def choosy_front(
    upstream: TCPAddress, passes: Collection[str], answer: bytes = ENVOY_REFUSES, *, instead: str | None = None
) -> AsyncIterator[str]:
    """Its URL. Only these tokens pass, or every one of them as the one that stands `instead`."""

    async def connection(client: trio.SocketStream) -> None:
        head = await read_head(client)
        asked = re.search(rb"\r\nUpgrade: ([^\r]*)", head)
        if asked is None or asked[1].decode() not in passes:
            await client.send_all(answer)
            return
        if instead is not None:
            head = head.replace(asked[0], b"\r\nUpgrade: " + instead.encode())
        async with await trio.open_tcp_stream(upstream.host, upstream.port) as server, trio.open_nursery() as both:
            await server.send_all(head)

            async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                try:
                    async for data in source:
                        await sink.send_all(data)
                    await sink.send_eof()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    both.cancel_scope.cancel()

            both.start_soon(pump, client, server)
            await pump(server, client)

    async with target(connection) as where:
        yield f"http://{where}/"


async def read_head(stream: trio.SocketStream) -> bytes:
    """A request's head; b"" where the client leaves instead."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some(4096)
        if not data:
            return b""
        head += data
    return head


def answering(answer: bytes) -> Handler:
    """A service that gives this answer to whatever it is asked, and closes."""

    async def handle(stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(answer)
        await stream.aclose()

    return handle
