"""The client on trio.SSLStream, to compare with: `python -m tests.benchmarks.sslstream -c -e https://… …`.

The same program, except that its TLS is trio's.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection

import trio

import http2tcp.net.tls
from http2tcp.net.streams import Bytes, Ends, HalfCloseUnsupported, SocketStream, Stream


class SSLStreamStream(Stream):
    """trio.SSLStream with the methods that the relay needs."""

    ends: Ends = http2tcp.net.tls.TLSStream.ends

    def __init__(self, below: SocketStream, tls: trio.SSLStream[SocketStream]) -> None:
        self._below = below
        self._tls = tls

    def version(self) -> str | None:
        version: str | None = self._tls.version()
        return version

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._ahead:
            return self.take_ahead(max_bytes)
        return bytes(await self._tls.receive_some(max_bytes))

    async def send_all(self, data: Bytes) -> None:
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._tls.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        raise HalfCloseUnsupported("TLS has no half-close here")

    def abort(self) -> None:
        self._below.abort()

    async def aclose(self) -> None:
        await self._tls.aclose()


async def open_tls(
    stream: SocketStream, context: ssl.SSLContext, server_name: str, pins: Collection[bytes] = ()
) -> SSLStreamStream:
    tls = trio.SSLStream(stream, context, server_hostname=server_name, https_compatible=True)
    await tls.do_handshake()
    return SSLStreamStream(stream, tls)


if __name__ == "__main__":
    http2tcp.net.tls.open_tls = open_tls  # type: ignore[assignment]
    from http2tcp.__main__ import main

    main()
