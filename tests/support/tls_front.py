"""A front end that takes TLS off and passes every byte on, on loopback, and may cut the connection at its end."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trustme

from http2tcp.address import TCPAddress

GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass
class TLSFront:
    """Where it listens, whom it is certified by, and what the clients did."""

    port: int
    ca_file: Path
    #: One entry a connection whose client has ended its direction: "eof" (close_notify) or "cut".
    client_ends: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a client needs to come here."""
        return ("-e", self.url, "--ca-file", str(self.ca_file))


@asynccontextmanager
async def tls_front(
    upstream: TCPAddress,
    directory: Path,
    *,
    close_notify: bool = True,
    issue: Callable[[trustme.CA], trustme.LeafCert] = lambda authority: authority.issue_cert("localhost"),
) -> AsyncIterator[TLSFront]:
    """Pass connections on to `upstream`; without `close_notify` its EOF cuts the client's connection.

    `issue` makes the certificate.
    """
    authority = trustme.CA()
    ca_file = directory / "front-ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issue(authority).configure_cert(context)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    front = TLSFront(listener.socket.getsockname()[1], ca_file)

    async def connection(transport: trio.SocketStream) -> None:
        client = trio.SSLStream(transport, context, server_side=True)
        try:
            try:
                await client.do_handshake()
            except trio.BrokenResourceError:
                return  # the client does not like the certificate, or speaks no TLS
            async with await trio.open_tcp_stream(upstream.host, upstream.port) as server:
                async with trio.open_nursery() as both:
                    both.start_soon(upwards, client, server)
                    await downwards(client, transport, server)
                    both.cancel_scope.cancel()
        finally:
            await trio.aclose_forcefully(client)

    async def upwards(client: trio.SSLStream[trio.SocketStream], server: trio.SocketStream) -> None:
        try:
            while data := await client.receive_some(64 * 1024):
                await server.send_all(data)
            front.client_ends.append("eof")
        except GONE:
            front.client_ends.append("cut")
        await server.aclose()

    async def downwards(
        client: trio.SSLStream[trio.SocketStream], transport: trio.SocketStream, server: trio.SocketStream
    ) -> None:
        try:
            while data := await server.receive_some(64 * 1024):
                await client.send_all(data)
            if close_notify:
                await client.aclose()
            else:
                await transport.aclose()
        except GONE:
            pass  # the client left first

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, connection, [listener])
        yield front
        nursery.cancel_scope.cancel()
