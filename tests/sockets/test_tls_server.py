"""The server's side of TLS against Python's ssl in a thread, OpenSSL's own s_client, and our own client."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from http2tcp.errors import TLSRequired
from http2tcp.net.relay import End, Traffic, relay
from http2tcp.net.streams import SocketStream
from http2tcp.net.tls import client_context
from http2tcp.net.tls_server import HandshakeFailed, ServerTLSStream, accept_tls, server_context
from tests.support.descriptors import open_descriptors
from tests.support.loopback import read_all, read_until_broken
from tests.support.memory_stream import memory_pair
from tests.support.processes import PATIENCE, program
from tests.support.tls_peer import BIOClient, client_hello, read_exactly, talk_both_ways, tls_client

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
CUT = (ssl.SSLEOFError, ConnectionResetError)


class Identity:
    """A certificate for localhost, and the authority that a client verifies it by."""

    def __init__(self, directory: Path) -> None:
        self.ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.file = directory / "server.pem"
        self.ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(self.file))
        self.file.chmod(0o600)
        self.context = server_context(str(self.file))

    def client(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = client_context(ca_file=str(self.ca_file))
        context.maximum_version = version
        return context


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity(tmp_path_factory.mktemp("identity"))


async def accepted(identity: Identity, ours: socket.socket) -> ServerTLSStream:
    with trio.fail_after(PATIENCE):
        return await accept_tls(SocketStream(ours), identity.context)


def connection() -> tuple[SocketStream, socket.socket]:
    """The server's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), PATIENCE)
        ours, _ = listener.accept()
    return SocketStream(ours), theirs


# --- the handshake ----------------------------------------------------------------------------


@pytest.mark.parametrize("offered", [["http/1.1"], ["h2", "http/1.1"], ["http/1.1", "h2"]])
@pytest.mark.parametrize("version", VERSIONS)
async def test_of_what_a_browser_offers_http_1_1_is_chosen(
    version: ssl.TLSVersion, offered: list[str], identity: Identity
) -> None:
    context = identity.client(version)
    context.set_alpn_protocols(offered)
    chosen: list[str | None] = []
    with tls_client(context, lambda tls: chosen.append(tls.selected_alpn_protocol())) as ours:
        stream = await accepted(identity, ours)
        stream.abort()
    assert chosen == ["http/1.1"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_who_offers_http_2_alone_or_nothing_is_told_of_no_protocol(
    version: ssl.TLSVersion, identity: Identity
) -> None:
    for offered in (["h2"], None):
        context = ssl.create_default_context(cafile=str(identity.ca_file))
        context.maximum_version = version
        if offered is not None:
            context.set_alpn_protocols(offered)
        chosen: list[str | None] = []
        with tls_client(context, lambda tls: chosen.append(tls.selected_alpn_protocol())) as ours:  # noqa: B023
            stream = await accepted(identity, ours)
            stream.abort()
        assert chosen == [None]


async def test_any_name_that_is_asked_for_gets_the_certificate(identity: Identity) -> None:
    context = identity.client()
    context.check_hostname = False
    names: list[object] = []
    with tls_client(context, lambda tls: names.append(tls.getpeercert()), name="elsewhere.example") as ours:
        stream = await accepted(identity, ours)
        stream.abort()
    assert "localhost" in str(names)


def s_client(port: int, *options: str, keys: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """OpenSSL's own client, with these lines typed."""
    command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", *options]
    return subprocess.run(command, input=keys, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
async def test_old_versions_are_refused_by_an_alert_that_says_so(version: str, identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def serve() -> None:
            ours, _ = await trio.to_thread.run_sync(listener.accept)
            with pytest.raises(HandshakeFailed, match="unsupported protocol"):
                await accepted(identity, ours)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            port = listener.getsockname()[1]
            done = await trio.to_thread.run_sync(s_client, port, version, "-cipher", "ALL:@SECLEVEL=0")
    assert b"alert protocol version" in done.stdout, done.stdout


async def test_a_client_that_does_not_trust_the_certificate_says_so_to_the_log(identity: Identity) -> None:
    stream, theirs = connection()
    client = BIOClient(ssl.create_default_context(), theirs)

    def refuse() -> None:
        with pytest.raises(ssl.SSLCertVerificationError):
            client.handshake()
        client.flush()

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, refuse)
            with pytest.raises(HandshakeFailed, match="tlsv1 alert unknown ca"):
                await accept_tls(stream, identity.context)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"C"])
async def test_http_without_tls_is_told_apart_and_nothing_of_it_is_taken(first: bytes, identity: Identity) -> None:
    stream, theirs = connection()
    with theirs:
        theirs.sendall(first)
        with pytest.raises(TLSRequired):
            await accept_tls(stream, identity.context)
        assert await stream.receive_some() == first
        await stream.send_all(b"400")
        assert theirs.recv(100) == b"400"
        stream.abort()


@pytest.mark.parametrize(
    "junk", [b"\0" * 100, b"\x16\x03\x01\xff\xff" + b"\xee" * 100, b"\x80\x2e\x01\x03\x01", b"\r\n"]
)
async def test_what_is_neither_tls_nor_http_is_hung_up_on(junk: bytes, identity: Identity) -> None:
    stream, theirs = connection()
    with theirs:
        theirs.sendall(junk)
        theirs.shutdown(socket.SHUT_WR)
        with trio.fail_after(PATIENCE):
            with pytest.raises((HandshakeFailed, trio.BrokenResourceError)):
                await accept_tls(stream, identity.context)
        # An alert at most, and then the end.
        with suppress(ConnectionResetError):
            while part := theirs.recv(100):
                assert part.startswith(b"\x15\x03")


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_client_that_leaves_during_the_handshake_is_let_go_at_once(
    sent: bytes, how: str, identity: Identity
) -> None:
    stream, theirs = connection()
    theirs.sendall(sent)
    if how == "RST":
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    with trio.fail_after(0.8):
        with pytest.raises(trio.BrokenResourceError):
            await accept_tls(stream, identity.context)


@pytest.mark.parametrize("sent", [0, 1, 50])
async def test_a_handshake_that_is_given_up_leaves_no_socket(sent: int, identity: Identity) -> None:
    stream, theirs = connection()
    hello = client_hello(identity.client())
    with theirs:
        theirs.sendall(hello[:sent])
        with trio.move_on_after(0.05) as scope:
            await accept_tls(stream, identity.context)
        assert scope.cancelled_caught
        assert stream.socket.fileno() == -1
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_handshake_that_comes_byte_by_byte_is_one(version: ssl.TLSVersion, identity: Identity) -> None:
    stream, theirs = connection()
    with theirs:
        theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = BIOClient(identity.client(version), theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: client.handshake(1))
            secured = await accept_tls(stream, identity.context)
        assert secured.version() == client.tls.version()
        secured.abort()


# --- bytes and ends ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_big_transfers_both_ways_at_once_arrive_whole_though_the_client_reads_slowly(
    version: ssl.TLSVersion, identity: Identity
) -> None:
    up, down = os.urandom(4_000_000), os.urandom(4_000_001)
    got_down = bytearray()

    def both(tls: ssl.SSLSocket) -> None:
        talk_both_ways(tls, up, got_down, len(down), piece=5000)

    with tls_client(identity.client(version), both) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        stream = await accepted(identity, ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, down)
            assert await read_until_broken(stream) == up
        stream.abort()
    assert got_down == down


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_that_ends_without_close_notify_was_cut(
    version: ssl.TLSVersion, how: str, identity: Identity
) -> None:
    said = os.urandom(200_000)

    def cut(tls: ssl.SSLSocket) -> None:
        tls.sendall(said)
        tls.recv(1)
        if how == "RST":
            tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with tls_client(identity.client(version), cut) as ours:
        stream = await accepted(identity, ours)
        received = b""
        while len(received) < len(said):
            received += await stream.receive_some()
        await stream.send_all(b"x")
        assert await read_until_broken(stream) == b""
        stream.abort()
    assert received == said


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_clients_close_notify_is_an_eof_and_it_still_gets_the_reply(
    version: ssl.TLSVersion, identity: Identity
) -> None:
    reply, heard = os.urandom(3_000_000), b""
    stream, theirs = connection()

    def ask() -> None:
        nonlocal heard
        client = BIOClient(identity.client(version), theirs)
        client.handshake()
        client.send(b"question")
        client.send_eof()
        heard = client.read_all()

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, ask)
            secured = await accept_tls(stream, identity.context)
            assert await read_all(secured) == b"question"
            await secured.send_all(reply)
            await secured.send_eof()
            assert await secured.receive_some() == b""
            await secured.aclose()
    assert heard == reply


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("waiting", [True, False], ids=["while one waits to receive", "while nobody receives"])
async def test_our_eof_leaves_the_other_direction_open_however_much_is_on_its_way(
    waiting: bool, version: ssl.TLSVersion, identity: Identity
) -> None:
    upload = os.urandom(5_000_000)
    eof_seen = threading.Event()

    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(upload[:1_000_000])
        assert tls.recv(1) == b""
        eof_seen.set()
        tls.sendall(upload[1_000_000:])
        tls.unwrap()

    with tls_client(identity.client(version), talk) as ours:
        stream = await accepted(identity, ours)
        received = b""

        async def receive() -> None:
            nonlocal received
            while data := await stream.receive_some():
                received += data

        async with trio.open_nursery() as nursery:
            if waiting:
                nursery.start_soon(receive)
                while not received:
                    await trio.testing.wait_all_tasks_blocked()
            else:
                # A part of a record stays inside OpenSSL.
                received = await stream.receive_some(17)
                await trio.testing.wait_all_tasks_blocked(0.05)
            await stream.send_eof()
            await stream.send_eof()
            if not waiting:
                nursery.start_soon(receive)
        assert await stream.receive_some() == b""
        await stream.aclose()
    assert eof_seen.is_set()
    assert received == upload


@pytest.mark.parametrize("version", VERSIONS)
async def test_our_eof_in_any_moment_of_a_receive_keeps_every_byte_in_its_place(
    version: ssl.TLSVersion, identity: Identity
) -> None:
    """Also where the receiver is about to fetch what OpenSSL has decrypted: it has its turn after all other tasks."""
    upload = os.urandom(100_000)

    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(upload)
        assert tls.recv(1) == b""
        tls.unwrap()

    for turns in range(20):
        with tls_client(identity.client(version), talk) as ours:
            stream = await accepted(identity, ours)
            received = await stream.receive_some(1000)

            async def receive(stream: ServerTLSStream = stream) -> None:
                nonlocal received
                while data := await stream.receive_some(1000):
                    received += data

            with trio.fail_after(PATIENCE):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    for _ in range(turns):
                        await trio.lowlevel.checkpoint()
                    await stream.send_eof()
            assert received == upload
            await stream.aclose()


def exhausted(*_: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_our_eof_costs_no_descriptor_and_needs_none(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = threading.Semaphore(0)

    def talk(tls: ssl.SSLSocket) -> None:
        assert tls.recv(1) == b""
        counted.acquire(timeout=PATIENCE)
        tls.sendall(b"still here")
        tls.unwrap()

    for failing in (None, "dup"):
        with tls_client(identity.client(), talk) as ours:
            stream = await accepted(identity, ours)
            before = open_descriptors()
            with monkeypatch.context() as patch:
                if failing:
                    patch.setattr(os, failing, exhausted)
                await stream.send_eof()
            assert open_descriptors() == before
            counted.release()
            assert not os.get_inheritable(stream.socket.fileno())
            assert await read_all(stream) == b"still here"
            await stream.aclose()


async def test_where_our_eof_meets_data_and_no_descriptor_is_left_the_data_is_kept(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "dup", exhausted)
    sent = threading.Event()

    def talk(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"x" * 1000)
        sent.set()
        assert tls.recv(1) == b""
        tls.unwrap()

    with tls_client(identity.client(), talk) as ours:
        stream = await accepted(identity, ours)
        await trio.to_thread.run_sync(sent.wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await stream.send_eof()
        assert await read_all(stream) == b"x" * 1000
        await stream.aclose()


async def test_an_eof_after_the_clients_own_or_to_a_client_that_is_gone_is_no_error(identity: Identity) -> None:
    with tls_client(identity.client(), lambda tls: suppressed_unwrap(tls)) as ours:
        stream = await accepted(identity, ours)
        assert await read_all(stream) == b""
        await stream.send_eof()
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_eof()
    with tls_client(identity.client(), lambda tls: None) as ours:
        stream = await accepted(identity, ours)
        await trio.testing.wait_all_tasks_blocked(0.05)
        with suppress(trio.BrokenResourceError):
            await stream.send_eof()
        assert await read_until_broken(stream) == b""
        stream.abort()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("before", "after", "received", "end"),
    [
        # What the client does before our EOF, what it does after that, what we receive, how that ends.
        ("", "bytes, eof", b"bytes", "eof"),
        ("bytes", "eof", b"bytes", "eof"),
        ("bytes", "bytes, eof", b"bytesbytes", "eof"),
        ("eof", "", b"", "eof"),
        ("bytes, eof", "", b"bytes", "eof"),
        ("half a record", "the other half, eof", b"halves", "eof"),
        ("", "close", b"", "broken"),
        ("bytes", "reset", b"bytes", "broken"),
        ("close", "", b"", "broken"),
        ("reset", "", b"", "broken"),
    ],
)
async def test_what_becomes_of_our_eof(
    before: str, after: str, received: bytes, end: str, version: ssl.TLSVersion, identity: Identity
) -> None:
    """It is sent at once, it never fails, and what the client sent before or sends after it arrives in its order."""
    stream, theirs = connection()
    client = BIOClient(identity.client(version), theirs)
    record = b""

    def do(deeds: str) -> None:
        nonlocal record
        for deed in filter(None, deeds.split(", ")):
            match deed:
                case "bytes":
                    client.send(b"bytes")
                case "eof":
                    client.send_eof()
                case "half a record":
                    client.tls.write(b"halves")
                    record = client.made()
                    theirs.sendall(record[:9])
                case "the other half":
                    theirs.sendall(record[9:])
                case "close":
                    theirs.close()
                case "reset":
                    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    theirs.close()

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: client.handshake())
            secured = await accept_tls(stream, identity.context)
        do(before)
        with trio.fail_after(PATIENCE):
            await secured.send_eof()
            if theirs.fileno() >= 0:
                assert await trio.to_thread.run_sync(client.read_all) == b""
            do(after)
            if end == "eof":
                assert await read_all(secured) == received
                assert await secured.receive_some() == b""
                await secured.aclose()
            else:
                assert await read_until_broken(secured) in (received, b"")
                secured.abort()


@pytest.mark.parametrize("version", VERSIONS)
async def test_our_eof_waits_for_room_and_comes_behind_all_that_was_sent(
    version: ssl.TLSVersion, identity: Identity
) -> None:
    full, sent, heard = threading.Event(), 0, b""
    piece = bytes(4 * 16384)
    stream, theirs = connection()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)

    def talk() -> None:
        nonlocal heard
        client = BIOClient(identity.client(version), theirs)
        client.handshake()
        full.wait(PATIENCE)
        heard = client.read_all()
        client.send_eof()

    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, talk)
            secured = await accept_tls(stream, identity.context)
            for _ in range(3):
                with suppress(ssl.SSLWantWriteError):
                    while True:
                        secured.socket.send(piece)
                        sent += len(piece)
                # The client's kernel still takes some of what ours has.
                await trio.sleep(0.03)
            async with trio.open_nursery() as ending:
                ending.start_soon(secured.send_eof)
                await trio.testing.wait_all_tasks_blocked(0.01)
                done = not ending.child_tasks
                full.set()
            assert not done, "it says that it is sent, and it is not"
            with trio.fail_after(PATIENCE):
                assert await secured.receive_some() == b""
            await secured.aclose()
    # OpenSSL has taken the last piece too, which the kernel had no room for.
    assert len(heard) == sent + len(piece)


def suppressed_unwrap(tls: ssl.SSLSocket) -> None:
    with suppress(*CUT):
        tls.unwrap()


async def test_nothing_that_somebody_puts_on_the_wire_after_the_end_is_taken_for_data(identity: Identity) -> None:
    stream, theirs = connection()
    with theirs:
        client = BIOClient(identity.client(), theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, lambda: client.handshake())
            secured = await accept_tls(stream, identity.context)
        async with trio.open_nursery() as nursery:

            async def receive() -> None:
                assert await secured.receive_some() == b""

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            client.send_eof()
            theirs.sendall(b"in the clear")
            # Whichever of the two meets the client's close_notify first.
            await secured.send_eof()
        assert await secured.receive_some() == b""
        secured.abort()


async def test_after_our_eof_nothing_can_be_sent(identity: Identity) -> None:
    with tls_client(identity.client(), lambda tls: (tls.recv(1), tls.unwrap())) as ours:
        stream = await accepted(identity, ours)
        await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"never")
        assert await read_all(stream) == b""
        await stream.aclose()


async def test_a_peer_that_lingers_is_told_the_end_first(identity: Identity) -> None:
    def say_and_end(tls: ssl.SSLSocket) -> None:
        tls.sendall(b"x" * 1000)
        assert tls.recv(1) == b""
        tls.unwrap()

    with tls_client(identity.client(), say_and_end) as ours:
        stream = await accepted(identity, ours)
        with trio.fail_after(PATIENCE):
            await stream.linger()
        await stream.aclose()


async def test_renegotiation_is_declined(identity: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [program("openssl"), "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", "-tls1_2"]
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        ours, _ = await trio.to_thread.run_sync(listener.accept)
    shown = b""
    try:
        stream = await accepted(identity, ours)
        with trio.fail_after(PATIENCE):
            await process.stdin.send_all(b"before\n")
            assert await stream.receive_some() == b"before\n"
            await process.stdin.send_all(b"R\n")
            # It declines by an alert, upon which s_client leaves.
            assert await read_until_broken(stream) == b""
            while data := await process.stdout.receive_some():
                shown += data
    finally:
        stream.abort()
        process.kill()
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()
    assert b"no renegotiation" in shown, shown


# --- in a relay -------------------------------------------------------------------------------


async def test_the_targets_eof_reaches_the_client_and_what_the_client_still_sends_the_target(
    identity: Identity,
) -> None:
    def talk(tls: ssl.SSLSocket) -> None:
        assert read_exactly(tls, 5) == b"hello"
        assert tls.recv(1) == b""
        tls.sendall(b"goodbye")
        tls.unwrap()

    with tls_client(identity.client(), talk) as ours:
        stream = await accepted(identity, ours)
        right, target = memory_pair()
        async with trio.open_nursery() as nursery:
            outcomes = []

            async def run() -> None:
                outcomes.append(await relay(stream, right, Traffic()))

            nursery.start_soon(run)
            await target.send_all(b"hello")
            await target.send_eof()
            assert await target.read_all() == b"goodbye"
    assert outcomes[0].end is End.CLOSED


async def test_a_target_that_breaks_cuts_the_client(identity: Identity) -> None:
    heard = b""

    def talk(tls: ssl.SSLSocket) -> None:
        nonlocal heard
        heard = read_exactly(tls, 5)
        with pytest.raises(CUT):
            tls.recv(1)

    with tls_client(identity.client(), talk) as ours:
        stream = await accepted(identity, ours)
        right, target = memory_pair()
        async with trio.open_nursery() as nursery:
            outcomes = []

            async def run() -> None:
                outcomes.append(await relay(stream, right, Traffic()))

            nursery.start_soon(run)
            await target.send_all(b"hello")
            await trio.testing.wait_all_tasks_blocked(0.02)
            target.abort()
    assert outcomes[0].end is End.TARGET_BROKE
    assert heard == b"hello"
