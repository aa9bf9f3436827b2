"""However a TLS peer cuts what it sends, the others have their turn of the loop: counts of turns, not times."""

from __future__ import annotations

import socket
import ssl
import threading
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from http2tcp.net.streams import SocketStream, Stream
from http2tcp.net.tls import TLSStream, open_tls
from http2tcp.net.tls_over import open_tls_over
from http2tcp.net.tls_server import HandshakeFailed, accept_tls, server_context
from http2tcp.net.tls_session import BARREN, MAX_BARREN, MAX_HANDSHAKE, RECORD, RECORDS, Records, TLSSocket
from tests.support.loopback import read_until_broken
from tests.support.processes import PATIENCE
from tests.support.tls_by_hand import SIDES, Contexts, session
from tests.support.tls_records import HandMade

SMALL_RECORDS = 3000


class Turns(trio.abc.Instrument):
    """Counts the turns of the loop in which something ran."""

    def __init__(self) -> None:
        self.count = 0

    def after_io_wait(self, timeout: float) -> None:
        self.count += 1


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    authority, file = trustme.CA(), tmp_path / "server.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(file))
    file.chmod(0o600)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server_context(str(file)), client


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname(), PATIENCE)
        return listener.accept()[0], theirs


@pytest.mark.parametrize("side", ["server", "client", "client over a proxy's session"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_records_of_one_byte_are_taken_in_many_turns(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], side: str, version: ssl.TLSVersion
) -> None:
    served, client = contexts
    client.maximum_version = version
    ours, theirs = pair()
    sent = threading.Event()

    def talk() -> None:
        if side == "server":
            tls = client.wrap_socket(theirs, server_hostname="localhost")
        else:
            tls = served.wrap_socket(theirs, server_side=True)
        for _ in range(SMALL_RECORDS):
            tls.send(b"x")
        sent.set()
        tls.recv(1)
        tls.close()

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    with trio.fail_after(PATIENCE):
        if side == "server":
            stream: trio.abc.Stream = await accept_tls(SocketStream(ours), served)
        elif side == "client":
            stream = await open_tls(SocketStream(ours), client, "localhost")
        else:
            stream = await open_tls_over(SocketStream(ours), client, "localhost")
        await trio.to_thread.run_sync(sent.wait)
        turns, got = Turns(), 0
        trio.lowlevel.add_instrument(turns)
        while got < SMALL_RECORDS:
            got += len(await stream.receive_some())
        trio.lowlevel.remove_instrument(turns)
        await stream.send_all(b"x")
    thread.join(PATIENCE)
    stream.abort()  # type: ignore[attr-defined]
    assert turns.count >= SMALL_RECORDS // RECORDS


async def test_a_handshake_in_records_of_one_byte_takes_many_turns(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    served, client = contexts
    ours, theirs = pair()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        peer.do_handshake()
    hello = outgoing.read()[5:]
    theirs.sendall(b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in hello))
    turns = Turns()
    trio.lowlevel.add_instrument(turns)

    def answer() -> None:
        incoming.write(theirs.recv(65536))
        while True:
            try:
                peer.do_handshake()
                break
            except ssl.SSLWantReadError:
                incoming.write(theirs.recv(65536))
        theirs.sendall(outgoing.read())

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, answer)
            stream = await accept_tls(SocketStream(ours), served)
    trio.lowlevel.remove_instrument(turns)
    stream.abort()
    theirs.close()
    assert turns.count >= len(hello) // BARREN


async def test_a_crowd_of_handshakes_has_one_turn_after_the_other(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, client = contexts
    turns, steps = Turns(), []
    original = ssl.SSLObject.do_handshake

    def counted(self: ssl.SSLObject) -> None:
        steps.append((turns.count, id(self)))
        original(self)

    monkeypatch.setattr(ssl.SSLObject, "do_handshake", counted)
    trio.lowlevel.add_instrument(turns)
    pairs = [pair() for _ in range(20)]
    opened: list[TLSStream] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def serve(sock: socket.socket) -> None:
                opened.append(await accept_tls(SocketStream(sock), served))

            async def ask(sock: socket.socket) -> None:
                opened.append(await open_tls(SocketStream(sock), client, "localhost"))

            for ours, theirs in pairs:
                nursery.start_soon(serve, ours)
                nursery.start_soon(ask, theirs)
    trio.lowlevel.remove_instrument(turns)
    for stream in opened:
        stream.abort()
    assert len(opened) == 40
    assert len({turn for turn, _ in steps}) == len(set(steps)), "two handshakes had the same turn"


def test_records_are_cut_by_their_heads_wherever_the_reads_were_cut() -> None:
    wire = b"".join(
        b"\x17\x03\x03" + len(body).to_bytes(2, "big") + body for body in (b"", b"a", b"b" * 300, b"c" * 16000)
    )
    for piece in (1, 2, 5, 7, 1000, len(wire)):
        records, taken, whole = Records(), b"", 0
        for start in range(0, len(wire), piece):
            records.receive(wire[start : start + piece])
            while records.ready:
                taken += records.take()
                whole += records.whole
        assert (taken, whole) == (wire, 4)


# --- records without payload ------------------------------------------------------------------


async def flooded(tmp_path: Path, side: str) -> tuple[Stream, socket.socket, HandMade]:
    """Our stream, the peer's socket, and what makes the peer's records."""
    contexts = Contexts(tmp_path)
    stream, peer = await session(contexts, side)
    return stream, peer.socket, HandMade(contexts.keylog, "CLIENT" if side == "server" else "SERVER")


@pytest.mark.parametrize("padded", [0, RECORD], ids=["small", "padded to 16 KiB"])
@pytest.mark.parametrize("side", SIDES)
async def test_key_updates_are_taken_in_many_turns(tmp_path: Path, side: str, padded: int) -> None:
    stream, theirs, peer = await flooded(tmp_path, side)
    updates, turns = MAX_BARREN - BARREN, Turns()
    # Small, they are all there when the first is read.
    wire = b"".join(peer.key_update(padded=padded) for _ in range(updates)) + peer.data(b"x")
    with theirs, trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.to_thread.run_sync, theirs.sendall, wire))
            trio.lowlevel.add_instrument(turns)
            assert await stream.receive_some() == b"x"
            trio.lowlevel.remove_instrument(turns)
        stream.abort()
    a_turn = BARREN if not padded else 2 if side == "client over a stream" else 1
    assert turns.count >= updates // a_turn


@pytest.mark.parametrize("side", SIDES)
async def test_key_updates_without_end_are_broken_off(tmp_path: Path, side: str) -> None:
    """What comes before and after the last one that is allowed; payload has the count begin again."""
    stream, theirs, peer = await flooded(tmp_path, side)
    with theirs, trio.fail_after(PATIENCE):
        for _ in range(3):
            updates = b"".join(peer.key_update() for _ in range(MAX_BARREN - BARREN))
            theirs.sendall(updates + peer.data(b"x"))
            assert await stream.receive_some() == b"x"
        theirs.sendall(b"".join(peer.key_update() for _ in range(MAX_BARREN + 2 * BARREN)) + peer.data(b"y"))
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError, match="TOO_MANY_RECORDS_WITHOUT_DATA"):
                await stream.receive_some()
        stream.abort()


@pytest.mark.parametrize("side", SIDES)
async def test_records_of_no_bytes_are_broken_off(tmp_path: Path, side: str) -> None:
    stream, theirs, peer = await flooded(tmp_path, side)
    with theirs, trio.fail_after(PATIENCE):
        theirs.sendall(b"".join(peer.data(b"") for _ in range(MAX_BARREN + 2 * BARREN)) + peer.data(b"y"))
        assert await read_until_broken(stream) == b""
        stream.abort()


@pytest.mark.parametrize("side", ["server", "client"])
async def test_answers_that_the_peer_does_not_read_are_not_heaped_up(tmp_path: Path, side: str) -> None:
    """Each key update asks for one of ours, and none of ours is ever read."""
    stream, theirs, peer = await flooded(tmp_path, side)
    sock: TLSSocket = stream.socket  # type: ignore[attr-defined]
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    answers, heaped = 0, 0

    def ask() -> None:
        with theirs:
            while True:
                try:
                    theirs.sendall(b"".join(peer.key_update(requested=True) + peer.data(b"x") for _ in range(500)))
                except OSError:
                    return

    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    with trio.move_on_after(PATIENCE) as patience:
        while True:
            with trio.move_on_after(1) as stuck:
                answers += len(await stream.receive_some())
            if stuck.cancelled_caught:
                break
            heaped = max(heaped, sock._outgoing.pending + sum(map(len, sock._unsent)))
    stream.abort()
    thread.join(PATIENCE)
    assert not patience.cancelled_caught, f"{answers} answers, and no end"
    assert heaped < 3 * RECORD


@pytest.mark.parametrize("side", SIDES)
async def test_a_handshake_in_too_many_records_is_broken_off(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], side: str
) -> None:
    served, client = contexts
    ours, theirs = pair()
    kind = b"\x01" if side == "server" else b"\x02"
    hello = kind + (MAX_HANDSHAKE + 1000).to_bytes(3, "big") + b"\x03\x03" + bytes(MAX_HANDSHAKE + 998)
    wire = b"".join(b"\x16\x03\x03\x00\x01" + bytes([byte]) for byte in hello)

    def talk() -> None:
        try:
            theirs.sendall(wire)
            while theirs.recv(65536):
                pass
        except OSError:
            pass
        theirs.close()

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()

    async def shake_hands() -> None:
        if side == "server":
            await accept_tls(SocketStream(ours), served)
        elif side == "client":
            await open_tls(SocketStream(ours), client, "localhost")
        else:
            await open_tls_over(SocketStream(ours), client, "localhost")

    with trio.fail_after(PATIENCE):
        with pytest.raises((HandshakeFailed, OSError)) as caught:
            await shake_hands()
    thread.join(PATIENCE)
    said = str(caught.value).lower().replace("_", " ")
    assert "too many" in said
    assert "records without data" in said
