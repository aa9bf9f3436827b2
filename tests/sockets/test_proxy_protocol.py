"""Tunnels behind a PROXY protocol header: not a byte of what follows it is lost or taken for it."""

from __future__ import annotations

import re
import ssl
from pathlib import Path

import pytest
import trio
import trustme

from http2tcp.address import UnixAddress
from http2tcp.server.settings import ServerTLS
from tests.support.loopback import asking, echo, exchange, open_raw, read_all, served, target, upgrade
from tests.support.processes import PATIENCE
from tests.support.proxy_header import INET, LOCAL, inet, v1, v2

HEADERS = {
    "version 1": v1("203.0.113.7", 51234),
    "version 1, IPv6": v1("2001:db8::7", 51234),
    "version 2": v2(INET, inet("203.0.113.7", 51234)),
    "version 2, large": v2(INET, inet("203.0.113.7", 51234) + b"\x04\x20\x00" + bytes(0x2000)),
    "version 2, LOCAL": v2(0, b"", command=LOCAL),
}
by_header = pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())


class _Preceded(trio.abc.Stream):
    """A stream whose first bytes have others before them."""

    def __init__(self, stream: trio.abc.Stream, before: bytes) -> None:
        self._stream, self._before = stream, before

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        before, self._before = self._before, b""
        await self._stream.send_all(before + bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


@by_header
@pytest.mark.usefixtures("_moved")
async def test_what_follows_the_header_in_one_segment_is_the_tunnels(header: bytes) -> None:
    early, more = b"sent before the answer", b"x" * 300_000
    async with target(echo) as where, served(proxy_protocol=True) as server:
        stream, rest = await open_raw(server.address, header + asking(where) + early)
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, more)
            received = rest
            while len(received) < len(early + more):
                received += await stream.receive_some(1 << 16)
            await stream.send_eof()
            assert received + await read_all(stream) == early + more


async def test_the_header_and_the_request_may_come_byte_by_byte() -> None:
    async with target(echo) as where, served(proxy_protocol=True) as server:
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
            for byte in HEADERS["version 1"] + asking(where) + b"!":
                await stream.send_all(bytes([byte]))
            received = b""
            while not received.endswith(b"\r\n\r\n!"):
                data = await stream.receive_some(4096)
                assert data
                received += data


async def test_a_proxy_at_the_unix_socket_names_the_client(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "s")
    settings = {"listen": UnixAddress(path), "trusted_proxies": ("unix",), "proxy_protocol": True}
    async with served(**settings):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(HEADERS["version 2"] + upgrade(token="wrong"))
            assert (await read_all(stream)).startswith(b"HTTP/1.1 401 ")
    assert re.search(r"client=203\.0\.113\.7 port=51234 via=unix ", caplog.text)


@pytest.mark.parametrize("sent", [upgrade(), b"PROXY TCP4 nonsense\r\n" + upgrade(), b"\x16\x03\x01"])
async def test_a_connection_without_a_sound_header_is_reset_before_a_byte_is_answered(sent: bytes) -> None:
    async with served(proxy_protocol=True) as server:
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
            await stream.send_all(sent)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


@by_header
async def test_tls_may_follow_the_header_in_the_same_segment(header: bytes, tmp_path: Path) -> None:
    """A balancer that passes on what a client sent sends both at once, and nothing of the hello may be read early."""
    authority = trustme.CA()
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    (tmp_path / "server.pem").chmod(0o600)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = ServerTLS(certificate=str(tmp_path / "server.pem"))
    async with target(echo) as where, served(proxy_protocol=True, tls=tls) as server:
        raw = await trio.open_tcp_stream(server.address.host, server.address.port)
        stream = trio.SSLStream(_Preceded(raw, header), context, server_hostname="localhost", https_compatible=True)
        async with stream:
            await stream.send_all(asking(where) + b"through")
            received = b""
            while not received.endswith(b"\r\n\r\nthrough"):
                data = await stream.receive_some(4096)
                assert data, received
                received += bytes(data)


async def test_where_tls_is_served_what_is_no_proxy_header_is_reset_too(tmp_path: Path) -> None:
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    (tmp_path / "server.pem").chmod(0o600)
    async with served(proxy_protocol=True, tls=ServerTLS(certificate=str(tmp_path / "server.pem"))) as server:
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
            await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


async def test_settings_that_are_reloaded_count_for_new_connections(caplog: pytest.LogCaptureFixture) -> None:
    async with served(proxy_protocol=True) as server:
        waiting = await trio.open_tcp_stream(server.address.host, server.address.port)
        await waiting.send_all(b"PROXY ")
        with trio.fail_after(PATIENCE):
            while not len(server.server.state.unauthenticated):
                await trio.sleep(0.001)
        server.reload(proxy_protocol=False)
        assert (await exchange(server.address, upgrade(token="wrong"))).status == 401
        async with waiting:
            await waiting.send_all(HEADERS["version 1"].removeprefix(b"PROXY ") + upgrade(token="wrong"))
            assert b" 401 " in await read_all(waiting)
    assert "client=203.0.113.7 port=51234" in caplog.text
