"""TLSStream against Python's ssl in a thread and against OpenSSL's own s_server."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import ssl
import struct
import threading
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from http2tcp.address import parse_endpoint
from http2tcp.client.connector import connect
from http2tcp.client.diagnosis import explain_tls
from http2tcp.client.settings import TLSSettings
from http2tcp.errors import TLSFailed
from http2tcp.net.relay import End, Traffic, relay
from http2tcp.net.streams import HalfCloseUnsupported, SocketStream, Stream
from http2tcp.net.tls import PinMismatch, TLSStream, client_context, open_tls
from http2tcp.net.tls_over import open_tls_over
from tests.support.loopback import client_settings, closed_port, read_all, read_until_broken
from tests.support.memory_stream import memory_pair
from tests.support.tls_peer import read_exactly, s_server, server_context, talk_both_ways, tls_server

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
# Bytes that s_server's own words, which are ASCII, do not have.
HIGH = bytes(range(0x80, 0x100)) * 512


class Authority:
    """A certificate authority and what a client needs to believe it."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.leaf = self.ca.issue_cert("localhost", "127.0.0.1", "fe80::1")
        self.leaf_file = directory / "leaf.pem"
        self.leaf.private_key_and_cert_chain_pem.write_to_path(str(self.leaf_file))

    def client_context(self) -> ssl.SSLContext:
        return client_context(ca_file=str(self.ca_file))


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def pin_of(leaf: trustme.LeafCert) -> bytes:
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


async def dialled(port: int) -> SocketStream:
    sock = socket.create_connection(("127.0.0.1", port))
    return SocketStream(sock)


async def secured(port: int, authority: Authority, name: str = "localhost", pins: tuple[bytes, ...] = ()) -> TLSStream:
    with trio.fail_after(10):
        return await open_tls(await dialled(port), authority.client_context(), name, pins)


# --- the handshake ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["localhost", "localhost.", "127.0.0.1", "fe80::1%eth0"])
@pytest.mark.parametrize("newest", VERSIONS)
async def test_a_verified_session_offers_http_1_1_alone(
    newest: ssl.TLSVersion, name: str, authority: Authority
) -> None:
    context = server_context(authority.leaf, newest=newest)
    context.set_alpn_protocols(["h2", "http/1.1"])
    chosen: list[str | None] = []
    with tls_server(context, lambda tls: chosen.append(tls.selected_alpn_protocol())) as port:
        stream = await secured(port, authority, name)
        await stream.aclose()
    assert chosen == ["http/1.1"]


def expired(authority: Authority) -> trustme.LeafCert:
    return authority.ca.issue_cert(
        "localhost", not_after=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    )


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (expired, "the certificate of localhost has expired: renew it"),
        (lambda a: a.ca.issue_cert("elsewhere.example"), "the certificate is not for localhost: use the name"),
        (lambda _: trustme.CA().issue_cert("localhost"), "comes from an authority that is not known here"),
    ],
    ids=["expired", "wrong name", "unknown issuer"],
)
async def test_a_certificate_that_is_not_good_is_refused_with_its_reason(
    leaf: Callable[[Authority], trustme.LeafCert], words: str, authority: Authority
) -> None:
    context = server_context(leaf(authority))
    # In TLS 1.3 the server has finished before the client refuses; its next read tells.
    with tls_server(context, lambda tls: tls.recv(1), breaks=True) as port:
        tls = TLSSettings(ca_file=str(authority.ca_file))
        with pytest.raises(TLSFailed) as caught:
            await connect(client_settings(f"https://localhost:{port}/", tls=tls))
    assert words in str(caught.value)
    assert caught.value.exit_code == 66


@pytest.mark.parametrize("name", ["elsewhere.example", "localhost"])
async def test_another_name_can_be_asked_for_and_is_then_the_one_that_is_verified(
    name: str, authority: Authority
) -> None:
    asked: list[str | None] = []
    context = server_context(authority.ca.issue_cert(name))
    context.sni_callback = lambda tls, asked_for, _: asked.append(asked_for)
    with tls_server(context, lambda tls: tls.recv(1)) as port:
        stream = await secured(port, authority, name)
        await stream.aclose()
    assert asked == [name]


async def test_without_verification_any_certificate_will_do(authority: Authority) -> None:
    with tls_server(server_context(trustme.CA().issue_cert("other.example")), lambda tls: tls.recv(1)) as port:
        stream = await open_tls(await dialled(port), client_context(verify=False), "localhost")
        await stream.aclose()


async def test_the_pinned_key_is_accepted_and_another_is_named(authority: Authority) -> None:
    pin = pin_of(authority.leaf)
    with tls_server(server_context(authority.leaf), lambda tls: tls.recv(1)) as port:
        stream = await secured(port, authority, pins=(bytes(32), pin))
        await stream.aclose()
    with tls_server(server_context(authority.leaf), lambda tls: tls.recv(1), breaks=True) as port:
        with pytest.raises(PinMismatch) as caught:
            await secured(port, authority, pins=(bytes(32),))
    assert str(caught.value) == "sha256//" + b64encode(pin).decode()


async def test_a_pin_holds_without_verification_too(authority: Authority) -> None:
    with tls_server(server_context(authority.leaf), lambda tls: tls.recv(1), breaks=True) as port:
        with pytest.raises(PinMismatch):
            await open_tls(await dialled(port), client_context(verify=False), "localhost", (bytes(32),))


async def test_a_clients_certificate_is_shown_to_who_asks(authority: Authority, tmp_path: Path) -> None:
    client_leaf = authority.ca.issue_cert("client@example.com")
    client_file = tmp_path / "client.pem"
    client_leaf.private_key_and_cert_chain_pem.write_to_path(str(client_file))
    context = server_context(authority.leaf)
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    shown: list[object] = []
    with tls_server(context, lambda tls: shown.append(tls.getpeercert())) as port:
        ours = client_context(ca_file=str(authority.ca_file), cert=str(client_file))
        stream = await open_tls(await dialled(port), ours, "localhost")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
    assert "client@example.com" in str(shown)


async def test_a_server_that_wants_a_certificate_that_we_lack_is_an_error_and_no_eof(authority: Authority) -> None:
    context = server_context(authority.leaf)
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with tls_server(context, lambda tls: None, breaks=True) as port:
        stream = await secured(port, authority)
        with pytest.raises(trio.BrokenResourceError, match=r"CERTIFICATE_REQUIRED|without close_notify|broke"):
            await stream.receive_some()
        await stream.aclose()


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS: is the endpoint http://?"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak TLS: is the endpoint http://?"),
        (b"", "ended the handshake: does that port speak TLS?"),
    ],
)
async def test_a_port_that_does_not_speak_tls_is_said_to_be_one(says: bytes, words: str, authority: Authority) -> None:
    def serve() -> None:
        sock, _ = listener.accept()
        with sock, suppress(OSError):  # the client aborts where it likes
            sock.sendall(says)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(OSError, match=r".") as caught:
            await secured(listener.getsockname()[1], authority)
        thread.join(10)
    endpoint = parse_endpoint(f"https://localhost:{closed_port()}/")
    assert words in str(explain_tls(caught.value, endpoint, "localhost"))


async def test_a_peer_that_never_finishes_the_handshake_can_be_left(patient_clock: trio.testing.MockClock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(TLSFailed, match=r"no TLS handshake with localhost:.* within 10 s"):
            await connect(client_settings(f"https://localhost:{listener.getsockname()[1]}/"))
        sock, _ = listener.accept()
        sock.close()
    assert trio.current_time() == pytest.approx(10, abs=0.5)


# --- bytes and ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("newest", VERSIONS)
async def test_big_transfers_both_ways_at_once_arrive_whole(newest: ssl.TLSVersion, authority: Authority) -> None:
    up, down = os.urandom(12_000_000), os.urandom(12_000_001)
    got_up = bytearray()

    def both(tls: ssl.SSLSocket) -> None:
        talk_both_ways(tls, down, got_up, len(up), piece=65536)

    with tls_server(server_context(authority.leaf, newest=newest), both) as port:
        stream = await secured(port, authority)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, up)
            assert await read_until_broken(stream) == down
        stream.abort()
    assert got_up == up


@pytest.mark.parametrize("newest", VERSIONS)
async def test_close_notify_is_an_eof_and_stays_one(newest: ssl.TLSVersion, authority: Authority) -> None:
    def say_and_end(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"last words")
        tls.unwrap()

    with tls_server(server_context(authority.leaf, newest=newest), say_and_end) as port:
        stream = await secured(port, authority)
        assert await read_all(stream) == b"last words"
        assert await stream.receive_some() == b""
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


@pytest.mark.parametrize("newest", VERSIONS)
async def test_our_close_sends_close_notify(newest: ssl.TLSVersion, authority: Authority) -> None:
    heard = b""

    def listen(tls: ssl.SSLSocket) -> None:
        nonlocal heard
        while data := tls.recv(65536):
            heard += data

    with tls_server(server_context(authority.leaf, newest=newest), listen) as port:
        stream = await secured(port, authority)
        await stream.send_all(b"x" * 100_000)
        await stream.aclose()
    assert heard == b"x" * 100_000


@pytest.mark.parametrize("newest", VERSIONS)
@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_stream_that_ends_without_close_notify_was_cut_after_what_it_had_brought(
    how: str, newest: ssl.TLSVersion, authority: Authority
) -> None:
    said = os.urandom(200_000)

    def cut(tls: ssl.SSLSocket) -> None:
        tls.sendall(said)
        tls.recv(1)
        if how == "RST":
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with tls_server(server_context(authority.leaf, newest=newest), cut) as port:
        stream = await secured(port, authority)
        received = b""
        while len(received) < len(said):
            received += await stream.receive_some()
        await stream.send_all(b"x")
        assert await read_until_broken(stream) == b""
        # It stays broken.
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
    assert received == said


async def test_a_cut_right_behind_data_loses_neither_the_data_nor_the_cut(authority: Authority) -> None:
    said = os.urandom(40_000)
    with tls_server(server_context(authority.leaf), lambda tls: tls.sendall(said)) as port:
        stream = await secured(port, authority)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await read_until_broken(stream) == said
        await stream.aclose()


async def test_bytes_that_somebody_put_into_the_stream_are_an_error(authority: Authority) -> None:
    def inject(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"good")
        socket.socket.send(tls, b"\x17\x03\x03\x00\x20" + b"evil" * 8)
        while tls.recv(1):
            pass

    with tls_server(server_context(authority.leaf), inject, breaks=True) as port:
        stream = await secured(port, authority)
        assert await read_until_broken(stream) in (b"good", b"")
        stream.abort()


async def test_an_eof_cannot_be_sent_and_says_so(authority: Authority) -> None:
    assert TLSStream.ends.half_close is False
    with tls_server(server_context(authority.leaf), lambda tls: read_exactly(tls, 1)) as port:
        stream = await secured(port, authority)
        with pytest.raises(HalfCloseUnsupported):
            await stream.send_eof()
        await stream.send_all(b"x")
        await stream.aclose()


async def test_a_cancelled_receive_loses_nothing(authority: Authority) -> None:
    go_on = threading.Semaphore(0)

    def trickle(tls: ssl.SSLSocket) -> None:
        for number in range(50):
            go_on.acquire(timeout=10)
            tls.sendall(bytes([number]) * 100)
        tls.unwrap()

    with tls_server(server_context(authority.leaf), trickle) as port:
        stream = await secured(port, authority)
        received = b""
        for number in range(50):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def receive() -> None:
                        nonlocal received
                        received += await stream.receive_some()

                    nursery.start_soon(receive)
                    await trio.testing.wait_all_tasks_blocked()
                    go_on.release()
                    if number % 3:
                        scope.cancel()
        received += await read_all(stream)
        await stream.aclose()
    assert received == b"".join(bytes([number]) * 100 for number in range(50))


async def test_a_send_that_was_cancelled_half_way_tears_the_stream(authority: Authority) -> None:
    cancelled = threading.Event()
    heard = bytearray()

    def slow(tls: ssl.SSLSocket) -> None:
        cancelled.wait(10)
        try:
            while data := tls.recv(65536):
                heard.extend(data)
        except (ssl.SSLEOFError, ConnectionResetError):
            heard.extend(b"CUT")

    with tls_server(server_context(authority.leaf), slow) as port:
        stream = await secured(port, authority)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, b"x" * 50_000_000)
            # Until the kernel takes no more: it is half-way, however slow the machine is.
            await trio.testing.wait_all_tasks_blocked(0.1)
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError, match="cancelled half-way"):
            await stream.send_all(b"never")
        cancelled.set()
        await stream.aclose()
    assert heard.endswith(b"CUT"), "the peer took a part for the whole"
    assert b"never" not in heard


async def test_closing_wakes_who_waits_in_both_directions(authority: Authority) -> None:
    closed = threading.Event()
    with tls_server(server_context(authority.leaf), lambda tls: closed.wait(10)) as port:
        stream = await secured(port, authority)

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.send_all(b"x" * 100_000_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)
            stream.abort()
        closed.set()


async def test_what_was_given_back_comes_before_the_eof(authority: Authority) -> None:
    def say_and_end(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"tail")
        tls.unwrap()

    with tls_server(server_context(authority.leaf), say_and_end) as port:
        stream = await secured(port, authority)
        assert await read_all(stream) == b"tail"
        stream.unread(b"head tail")
        assert await stream.receive_some(4) == b"head"
        assert await read_all(stream) == b" tail"
        await stream.aclose()


# --- in a relay -------------------------------------------------------------------------------


@pytest.mark.parametrize("open_session", [open_tls, open_tls_over])
async def test_bytes_before_a_reset_cross_tls_before_the_reset_does(
    open_session: Callable[..., Awaitable[Stream]], authority: Authority
) -> None:
    """The application sends, and breaks; the front end reads slowly, gets everything, and no clean end."""
    data = os.urandom(200_000)
    heard = bytearray()
    broken = threading.Event()

    def slow(tls: ssl.SSLSocket) -> None:
        broken.wait(10)
        try:
            while part := tls.recv(65536):
                heard.extend(part)
            heard.extend(b"EOF")
        except (ssl.SSLEOFError, ConnectionResetError):
            pass

    with tls_server(server_context(authority.leaf), slow, receive_buffer=32768) as port:
        carrier = await dialled(port)
        carrier.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
        stream = await open_session(carrier, authority.client_context(), "localhost")
        left, application = memory_pair()
        traffic = Traffic()
        async with trio.open_nursery() as nursery:
            outcomes = []

            async def run() -> None:
                outcomes.append(await relay(left, stream, traffic))

            nursery.start_soon(run)
            await application.send_all(data)
            while traffic.bytes_up < len(data):
                await trio.testing.wait_all_tasks_blocked(0.01)
            application.abort()
            await trio.testing.wait_all_tasks_blocked(0.05)
            broken.set()
    assert outcomes[0].end is End.CLIENT_BROKE
    assert len(heard) == len(data)
    assert heard == data


# --- keys that change while bytes travel ------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "command", "size"),
    [
        ("-tls1_3", b"k", 64),
        ("-tls1_3", b"K", 8),
    ],
    ids=["a new key from the server", "new keys both ways"],
)
async def test_keys_change_while_both_directions_are_busy(
    version: str, command: bytes, size: int, authority: Authority
) -> None:
    upload, lines = HIGH * size, 10
    with s_server(authority.leaf_file, version) as server:
        stream = await secured(server.port, authority)
        received = b""
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                nonlocal received
                while received.count(b"\n") < lines:
                    received += await stream.receive_some()

            async def send() -> None:
                for _ in range(size):
                    await stream.send_all(HIGH)
                    await trio.lowlevel.checkpoint()

            def talk() -> None:
                for number in range(lines):
                    server.say(b"line %d " % number + b"." * 2000)
                    server.say(command)

            nursery.start_soon(receive)
            nursery.start_soon(send)
            await trio.to_thread.run_sync(talk)
        await trio.to_thread.run_sync(server.wait_for, lambda heard: count_high(heard) >= len(upload))
        await stream.send_all(b"\xff")
        await trio.to_thread.run_sync(server.wait_for, lambda heard: count_high(heard) > len(upload))
        stream.abort()
        heard = bytes(byte for byte in server.heard() if byte >= 0x80)
    assert heard == upload + b"\xff"
    assert [line.split(b" ")[1] for line in received.splitlines()] == [b"%d" % number for number in range(lines)]


async def test_a_renegotiation_while_the_server_is_busy_is_survived(authority: Authority) -> None:
    """Only one way at a time: OpenSSL takes no data while it sends into a renegotiation."""
    with s_server(authority.leaf_file, "-tls1_2") as server:
        stream = await secured(server.port, authority)
        received = b""
        for number in range(5):
            await trio.to_thread.run_sync(server.say, b"line %d " % number + b"." * 2000)
            await trio.to_thread.run_sync(server.say, b"R")
            await trio.to_thread.run_sync(server.say, b"line %d " % number)
            while received.count(b"\n") < 2 * (number + 1):
                received += await stream.receive_some()
        await stream.send_all(HIGH)
        await trio.to_thread.run_sync(server.wait_for, lambda heard: count_high(heard) == len(HIGH))
        stream.abort()
    assert [line.split(b" ")[1] for line in received.splitlines()] == [b"%d" % (n // 2) for n in range(10)]


async def test_a_new_key_that_is_asked_for_in_a_full_upload_never_makes_wrong_bytes(authority: Authority) -> None:
    """OpenSSL cannot answer while a record is half written. The tunnel may break then; it must say so."""
    with s_server(authority.leaf_file, "-tls1_3") as server:
        stream = await secured(server.port, authority)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass
                    nursery.cancel_scope.cancel()

                async def send() -> None:
                    try:
                        for _ in range(128):
                            await stream.send_all(HIGH)
                    except trio.BrokenResourceError:
                        pass
                    nursery.cancel_scope.cancel()

                nursery.start_soon(receive)
                nursery.start_soon(send)
                await trio.to_thread.run_sync(server.say, b"K", abandon_on_cancel=True)
        stream.abort()
        heard = bytes(byte for byte in server.heard() if byte >= 0x80)
    assert (HIGH * 128).startswith(heard)


def count_high(heard: bytes) -> int:
    return len(heard.translate(None, bytes(range(0x80))))
