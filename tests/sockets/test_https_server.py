"""An http2tcp server that serves https itself: tunnels, ends, refusals, deadlines, and a certificate that changes."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

import http2tcp
from http2tcp.address import TCPAddress
from http2tcp.client.settings import TLSSettings
from http2tcp.errors import CredentialsRefused, ServerRefused, SettingsError, TLSFailed
from http2tcp.net.streams import Stream
from http2tcp.protocol.transport import Transport
from http2tcp.server.server import Server
from http2tcp.server.settings import ServerSettings, ServerTLS
from tests.support.loopback import (
    TOKEN,
    Served,
    asking,
    echo,
    exchange,
    forwarding,
    greet_and_close,
    parse_answer,
    read_all,
    read_until_broken,
    reset,
    served,
    target,
    upgrade,
)
from tests.support.processes import PATIENCE, program
from tests.support.tls_peer import BIOClient, client_hello

MIB = 1024 * 1024
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Site:
    """A certificate for localhost in a file, and the authority behind it."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.file = directory / "server.pem"
        self.certificate = self.renew()
        self.tls = ServerTLS(certificate=str(self.file))
        self.client = TLSSettings(ca_file=str(self.ca_file))

    def renew(self) -> bytes:
        """Put a new certificate in place of the old one: its DER."""
        leaf = self.ca.issue_cert("localhost")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self.file))
        self.file.chmod(0o600)
        return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())

    def context(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        context.maximum_version = version
        return context


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def url(server: Served) -> str:
    return f"https://localhost:{server.address.port}/"


async def tunnel(
    server: Served, site: Site, where: str, transport: Transport | None = None, token: str = TOKEN
) -> Stream:
    with trio.fail_after(PATIENCE):
        return await http2tcp.open_tunnel(url(server), where, token=token, transport=transport, tls=site.client)


async def secured(
    address: TCPAddress, site: Site, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> trio.SSLStream[trio.SocketStream]:
    """A client of other make."""
    carrier = await trio.open_tcp_stream(address.host, address.port)
    stream = trio.SSLStream(carrier, site.context(version), server_hostname="localhost")
    await stream.do_handshake()
    return stream


# --- tunnels ----------------------------------------------------------------------------------


async def test_two_mebibytes_go_both_ways_at_once_though_the_target_is_slow(site: Site, transport: Transport) -> None:
    data = os.urandom(2 * MIB)

    async def slow(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        while part := await stream.receive_some(20_000):
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            await stream.send_all(part)

    async with target(slow) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            while len(received) < len(data):
                received += await stream.receive_some()
        await stream.aclose()
    assert received == data


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_of_another_make_half_closes_and_gets_the_whole_reply(
    version: ssl.TLSVersion, site: Site
) -> None:
    data = os.urandom(2 * MIB)

    async def collect(stream: trio.SocketStream) -> None:
        await stream.send_all(await read_all(stream))
        await stream.aclose()

    async with target(collect) as where, served(tls=site.tls) as server:

        def talk() -> bytes:
            with socket.create_connection((server.address.host, server.address.port), PATIENCE) as sock:
                client = BIOClient(site.context(version), sock)
                client.handshake()
                client.send(asking(where) + data)
                client.send_eof()
                return client.read_all().partition(b"\r\n\r\n")[2]

        assert await trio.to_thread.run_sync(talk) == data


async def test_a_target_that_ends_is_a_clean_end_at_once(site: Site, transport: Transport) -> None:
    async with target(greet_and_close) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        with trio.fail_after(5):
            assert await read_all(stream) == b"hello\n"
            await stream.aclose()


async def test_a_target_that_half_closes_first_still_gets_what_the_client_sends_later(
    site: Site, transport: Transport
) -> None:
    data, everything, done = os.urandom(MIB), b"", trio.Event()

    async def half_close(stream: trio.SocketStream) -> None:
        nonlocal everything
        await stream.send_all(b"no more from me\n")
        await stream.send_eof()
        everything = await read_all(stream)
        done.set()

    async with target(half_close) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            assert await read_all(stream) == b"no more from me\n"
        await stream.aclose()
        with trio.fail_after(PATIENCE):
            await done.wait()
    assert everything == data


@pytest.mark.parametrize("transport", [Transport.CONNECT_TCP, Transport.WEBSOCKET])
async def test_where_the_transport_has_half_close_a_client_has_it_over_tls(site: Site, transport: Transport) -> None:
    data = os.urandom(2 * MIB)
    async with target(echo) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream) == data
        await stream.aclose()


async def test_a_targets_reset_is_no_end_to_the_client(site: Site, transport: Transport) -> None:
    data = os.urandom(300_000)

    async def send_and_reset(stream: trio.SocketStream) -> None:
        await stream.send_all(data)
        await stream.receive_some(1)
        reset(stream)

    async with target(send_and_reset) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        received = b""
        while len(received) < len(data):
            received += await stream.receive_some()
        await stream.send_all(b"x")
        assert await read_until_broken(stream) == b""
        stream.abort()
    assert received == data


async def test_a_client_that_is_cut_off_is_a_reset_to_the_target(site: Site, transport: Transport) -> None:
    heard, broken = b"", trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        nonlocal heard
        try:
            while data := await stream.receive_some():
                heard += data
                await stream.send_all(b"x")
        except trio.BrokenResourceError:
            broken.set()

    async with target(listen) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        await stream.send_all(b"a part")
        await stream.receive_some()
        stream.abort()
        with trio.fail_after(PATIENCE):
            await broken.wait()
    assert heard == b"a part"


async def test_a_server_that_is_stopped_cuts_its_clients(site: Site, transport: Transport) -> None:
    async with target(echo) as where:
        async with served(tls=site.tls) as server:
            stream = await tunnel(server, site, where, transport)
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            server.scope.cancel()
        assert await read_until_broken(stream) == b""
        stream.abort()


async def test_a_local_forward_over_https_needs_no_front_end(site: Site, transport: Transport) -> None:
    async with target(greet_and_close) as where, served(tls=site.tls) as server:
        async with forwarding(url(server), where, tls=site.client, transport=transport) as local:
            async with await trio.open_tcp_stream("127.0.0.1", local.port) as stream:
                assert await read_all(stream) == b"hello\n"


async def test_openssl_s_client_is_a_client_for_a_tunnel(site: Site) -> None:
    async with target(greet_and_close) as where, served(tls=site.tls) as server:
        command = [program("openssl"), "s_client", "-quiet", "-CAfile", str(site.ca_file), "-verify_return_error"]
        with trio.fail_after(PATIENCE):
            done = await trio.run_process(
                [*command, "-connect", str(server.address)],
                stdin=asking(where),
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
            )
    head, _, said = done.stdout.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert said == b"hello\n"


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_balancer_that_passes_tls_on_names_the_client_before_it(
    version: ssl.TLSVersion, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(greet_and_close) as where, served(tls=site.tls, proxy_protocol=True) as server:

        def talk() -> bytes:
            with socket.create_connection((server.address.host, server.address.port), PATIENCE) as sock:
                # In one piece with what follows.
                client = BIOClient(site.context(version), sock, before=b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n")
                client.handshake()
                client.send(asking(where))
                return client.read_all().partition(b"\r\n\r\n")[2]

        assert await trio.to_thread.run_sync(talk) == b"hello\n"
    assert "client=192.0.2.7 port=4711" in await the_end(caplog)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_refusal_arrives_whole_and_ends_with_close_notify(version: ssl.TLSVersion, site: Site) -> None:
    async with served(tls=site.tls) as server:
        stream = await secured(server.address, site, version)
        # What follows the head is unread when the refusal is sent.
        await stream.send_all(upgrade(token="wrong") + b"x" * 100_000)
        with trio.fail_after(PATIENCE):
            # trio takes an end without close_notify for a break.
            answer = parse_answer(await read_all(stream))
        await stream.aclose()
    assert answer.status == 401


async def test_a_wrong_token_is_told_by_the_client_as_over_http(site: Site) -> None:
    async with served(tls=site.tls) as server:
        with pytest.raises(CredentialsRefused, match="does not know this token"):
            await tunnel(server, site, "localhost:22", token="wrong")


async def test_plain_http_is_answered_with_the_fix(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tls=site.tls) as server:
        answer = await exchange(server.address, asking("localhost:22"))
        assert (answer.status, answer.error) == (400, "http_request_error")
        assert b"https://" in answer.body
        for transport in (None, *Transport):
            with pytest.raises(ServerRefused, match="serves https: write https:// in the endpoint"):
                await http2tcp.open_tunnel(server.url, "localhost:22", token=TOKEN, transport=transport)


async def test_https_to_a_plain_server_is_told_as_that(site: Site) -> None:
    async with served() as server:
        with pytest.raises(TLSFailed, match="does not speak TLS: is the endpoint http://"):
            await tunnel(server, site, "localhost:22")


@pytest.mark.parametrize("junk", [b"\0" * 1000, b"\x16\x03\x01\xff\xff" + b"\xee" * 100, b"SSH-2.0-x\r\n", b"\x80\x2e"])
async def test_garbage_costs_nothing_but_its_own_connection(
    junk: bytes, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(greet_and_close) as where, served(tls=site.tls) as server:
        with trio.fail_after(PATIENCE):
            async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
                await stream.send_all(junk)
                await stream.send_eof()
                try:
                    await read_all(stream)
                except trio.BrokenResourceError:
                    pass
        other = await tunnel(server, site, where)
        assert await read_all(other) == b"hello\n"
        await other.aclose()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# --- deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [0, 1, 60])
async def test_a_handshake_that_does_not_end_is_cut_when_a_heads_time_is_over(
    sent: int, site: Site, patient_clock: trio.testing.MockClock
) -> None:
    async with served(tls=site.tls) as server:
        hello = client_hello(site.context())
        stream = await trio.open_tcp_stream(server.address.host, server.address.port)
        await stream.send_all(hello[:sent])
        assert await read_until_broken(stream) == b""
        assert trio.current_time() == pytest.approx(10, abs=0.5)
        await stream.aclose()


async def test_a_handshake_that_trickles_in_has_no_more_time_than_a_head(
    site: Site, patient_clock: trio.testing.MockClock
) -> None:
    async with served(tls=site.tls) as server:
        hello = client_hello(site.context())
        stream = await trio.open_tcp_stream(server.address.host, server.address.port)
        try:
            for byte in hello:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.9)
        except trio.BrokenResourceError:
            pass
        assert trio.current_time() == pytest.approx(10, abs=1.5)
        await stream.aclose()


async def test_a_head_in_tls_has_what_the_handshake_left_of_the_time(
    site: Site, patient_clock: trio.testing.MockClock
) -> None:
    async with served(tls=site.tls) as server:
        carrier = await trio.open_tcp_stream(server.address.host, server.address.port)
        await trio.sleep(6)
        stream = trio.SSLStream(carrier, site.context(), server_hostname="localhost")
        await stream.do_handshake()
        await stream.send_all(b"GET / HTTP/1.1\r\n")
        answer = parse_answer(await read_all(stream))
        assert trio.current_time() == pytest.approx(10, abs=0.5)
        await stream.aclose()
    assert answer.status == 408


# --- another certificate ----------------------------------------------------------------------


@asynccontextmanager
async def presented(server: Served, site: Site) -> AsyncIterator[bytes]:
    stream = await secured(server.address, site)
    yield stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)


async def test_a_renewed_certificate_is_for_new_connections_and_open_tunnels_stay(
    site: Site, transport: Transport
) -> None:
    async with target(echo) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where, transport)
        async with presented(server, site) as certificate:
            assert certificate == site.certificate
        renewed = site.renew()
        async with presented(server, site) as certificate:
            assert certificate == site.certificate, "the file was read without a reload"
        server.reload()
        async with presented(server, site) as certificate:
            assert certificate == renewed
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"
        await stream.aclose()


@pytest.mark.parametrize("broken", [b"", b"half a certif", None])
async def test_a_broken_file_keeps_the_old_certificate_and_everything_else(broken: bytes | None, site: Site) -> None:
    async with target(echo) as where, served(tls=site.tls) as server:
        stream = await tunnel(server, site, where)
        site.file.unlink()
        if broken is not None:
            site.file.write_bytes(broken)
        with pytest.raises(SettingsError, match=str(site.file)):
            server.reload(tokens=["another"])
        async with presented(server, site) as certificate:
            assert certificate == site.certificate
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"
        await stream.aclose()
        # The other settings were not taken either.
        other = await tunnel(server, site, where)
        await other.aclose()


async def test_a_server_without_its_certificate_does_not_start(site: Site) -> None:
    site.file.unlink()
    with pytest.raises(SettingsError, match="no such file or directory"):
        Server(ServerSettings(tokens=[TOKEN], tls=site.tls))


# --- what the log says of it ------------------------------------------------------------------


async def the_end(caplog: pytest.LogCaptureFixture) -> str:
    """The record of the one connection that came to nothing."""
    with trio.fail_after(PATIENCE):
        while not (found := [record for record in caplog.records if record.name == "http2tcp.audit"]):
            await trio.sleep(0.01)
    return found[0].getMessage()


async def test_a_client_that_does_not_trust_the_certificate_is_in_the_log_with_its_reason(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tls=site.tls) as server:
        with pytest.raises(TLSFailed):
            await http2tcp.open_tunnel(url(server), "localhost:22", token=TOKEN)
        assert "reason=no_tls detail='tlsv1 alert unknown ca'" in await the_end(caplog)


async def test_a_server_that_stops_while_an_alert_is_read_leaves_no_connection_to_the_collector(site: Site) -> None:
    # A TLS 1.0 client's hello, cut to its first lines: the alert comes at once, and the client stays.
    hello = bytes.fromhex("16030100310100002d0301") + bytes(32) + bytes.fromhex("000006000a002f00350100")
    async with served(tls=site.tls) as server:
        stream = await trio.open_tcp_stream(server.address.host, server.address.port)
        await stream.send_all(hello)
        with trio.fail_after(PATIENCE):
            assert (await stream.receive_some())[:1] == b"\x15"
    await stream.aclose()


async def test_a_probe_that_connects_and_leaves_is_no_failed_handshake(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tls=site.tls) as server:
        async with await trio.open_tcp_stream(server.address.host, server.address.port):
            pass
        assert (await the_end(caplog)).endswith("reason=client_left")


async def test_a_slow_handshake_is_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture, patient_clock: trio.testing.MockClock
) -> None:
    async with served(tls=site.tls) as server:
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
            assert await read_until_broken(stream) == b""
            assert "reason=timed_out detail='the TLS handshake took too long'" in await the_end(caplog)
