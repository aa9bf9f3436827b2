"""How tunnels end: either both sides have everything and know it, or both see that the tunnel broke."""

from __future__ import annotations

import math
import socket

import pytest
import trio
import trio.testing

from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.pump import Flow, SourceBroke
from http2tcp.net.relay import End, Lifetime, Outcome, Traffic, can_splice, pump_for, relay
from http2tcp.net.streams import Bytes, SocketStream, Stream
from http2tcp.net.websocket import WebSocketStream
from http2tcp.protocol.capsule import DONE, FINAL, KEEPALIVE, ResetCode, data_header, reset
from tests.support.loopback import read_until_broken
from tests.support.memory_stream import MemoryStream, memory_pair


class Tardy(MemoryStream):
    """A stream whose sends all take some time before the first byte, as those through TLS and front ends do."""

    async def send_all(self, data: Bytes) -> None:
        await trio.sleep(0.05)
        await super().send_all(data)


class Tunnel:
    """Two programs, joined by a client's relay and a server's, with acknowledged capsules between the two."""

    def __init__(self, *, websocket: bool = False) -> None:
        near, self.client = memory_pair()
        ours: Stream
        theirs: Stream
        ours, theirs = memory_pair()
        ours.__class__ = theirs.__class__ = Tardy
        if websocket:
            ours = WebSocketStream(ours, client=True, keepalive=math.inf)
            theirs = WebSocketStream(theirs, client=False, keepalive=math.inf)
        far, self.target = memory_pair()
        self.relays = {
            "client": (near, CapsuleStream(ours, keepalive=25, peer_keepalive=25, confirms=True, client=True)),
            "server": (CapsuleStream(theirs, keepalive=25, peer_keepalive=25, confirms=True), far),
        }
        self.outcomes: dict[str, Outcome] = {}

    async def run(self, side: str) -> None:
        self.outcomes[side] = await relay(*self.relays[side], Traffic())


@pytest.mark.parametrize("websocket", [False, True], ids=["connect-tcp", "websocket"])
@pytest.mark.parametrize("last", ["client", "target"])
@pytest.mark.parametrize("pause", [0, 0.02, 0.05, 0.07, 1])
async def test_whoever_ends_last_and_whenever_a_whole_conversation_is_whole_on_both_sides(
    pause: float, last: str, websocket: bool, autojump_clock: trio.testing.MockClock
) -> None:
    tunnel = Tunnel(websocket=websocket)
    first, then = (tunnel.target, tunnel.client) if last == "client" else (tunnel.client, tunnel.target)
    async with trio.open_nursery() as nursery:
        for side in tunnel.relays:
            nursery.start_soon(tunnel.run, side)
        await first.send_all(b"first")
        await first.send_eof()
        assert await then.receive_some() == b"first"
        await trio.sleep(pause)
        await then.send_all(b"last")
        await then.send_eof()
        # These raise if a side gets a reset instead of the end.
        assert (await first.read_all(), await then.read_all()) == (b"last", b"")
    assert tunnel.outcomes == {"client": Outcome(End.CLOSED), "server": Outcome(End.CLOSED)}


def confirming(peer_keepalive: float | None = None, *, client: bool = False) -> tuple[CapsuleStream, MemoryStream]:
    """A stream that acknowledges, and the raw end of its peer."""
    ours, theirs = memory_pair()
    stream = CapsuleStream(ours, keepalive=25, peer_keepalive=peer_keepalive, confirms=True, client=client)
    return stream, theirs


@pytest.mark.parametrize("word", ["send_eof", "finish"])
async def test_a_last_word_that_was_cancelled_is_not_taken_for_said(
    word: str, autojump_clock: trio.testing.MockClock
) -> None:
    stream, peer = confirming()
    peer.stall()
    with trio.move_on_after(1) as scope:
        await getattr(stream, word)()
    assert scope.cancelled_caught
    peer.resume()
    with pytest.raises(trio.BrokenResourceError, match="not done to its end"):
        await stream.finish()
    await peer.send_all(FINAL + DONE)
    right, target = memory_pair()
    await target.send_eof()
    outcome = await relay(stream, right, Traffic())
    assert outcome.end is End.CLIENT_BROKE
    assert (await read_until_broken(peer), await read_until_broken(target)) == (b"", b"")


async def test_a_cancel_before_the_first_byte_tears_nothing(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = confirming()
    with trio.CancelScope() as scope:
        scope.cancel()
        await stream.send_eof()
    assert scope.cancelled_caught
    await stream.send_eof()
    assert await peer.receive_some() == FINAL


@pytest.mark.parametrize("confirms", [True, False])
async def test_closing_on_a_peer_that_takes_nothing_is_a_break_on_both_sides(
    confirms: bool, autojump_clock: trio.testing.MockClock
) -> None:
    ours, peer = memory_pair()
    stream = CapsuleStream(ours, keepalive=25, peer_keepalive=None, confirms=confirms)
    peer.stall()
    started = trio.current_time()
    with pytest.raises(trio.BrokenResourceError, match="not even the end"):
        await stream.aclose()
    assert trio.current_time() - started == pytest.approx(1)
    peer.resume()
    assert await read_until_broken(peer) == b""


async def test_closing_before_the_peer_has_confirmed_is_an_error_where_the_peer_is_cut_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = confirming()
    await peer.send_all(FINAL)
    assert await stream.receive_some() == b""
    await peer.send_eof()
    with pytest.raises(trio.BrokenResourceError, match="confirmed"):
        await stream.aclose()


async def test_a_client_that_never_takes_the_last_word_is_no_good_end(autojump_clock: trio.testing.MockClock) -> None:
    """Without a limit the relay would wait for it for ever; the lifetime's limit ends it."""
    stream, peer = confirming()
    right, target = memory_pair()
    term = Lifetime()
    term.until(trio.current_time() + 60, "too long", "longest")
    await peer.send_all(data_header(2) + b"up" + DONE)
    outcomes = []

    async def run() -> None:
        outcomes.append(await relay(stream, right, Traffic(), term))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(1)
        peer.stall()
        await target.send_eof()
        await peer.send_all(FINAL)
    assert outcomes == [Outcome(End.TERMINATED, "too long")]


async def test_a_term_that_is_over_after_both_were_told_undoes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    class Slow(MemoryStream):
        async def finish(self) -> None:
            term.end("revoked", "revoked")

    left, client = memory_pair()
    right, target = memory_pair()
    right.__class__ = Slow
    term = Lifetime()
    await client.send_eof()
    await target.send_eof()
    assert await relay(left, right, Traffic(), term) == Outcome(End.CLOSED)
    assert (await client.read_all(), await target.read_all()) == (b"", b"")


async def test_what_was_vouched_for_is_never_thrown_away(autojump_clock: trio.testing.MockClock) -> None:
    """The client got our acknowledgement, so it may have exited with 0, even if its own last bytes are lost."""
    stream, peer = confirming()
    right, target = memory_pair()
    await peer.send_all(data_header(2) + b"up" + FINAL)
    outcomes = []

    async def run() -> None:
        outcomes.append(await relay(stream, right, Traffic()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await target.send_eof()
        await trio.sleep(1)
        target.stall()
        peer.abort()
    assert outcomes[0].end is End.CLIENT_BROKE
    assert DONE in await read_until_broken(peer)
    assert right.closed
    assert not right.aborted
    assert await target.read_all() == b"up"


async def test_what_was_not_vouched_for_is_reset_as_ever(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = confirming()
    right, target = memory_pair()
    await peer.send_all(data_header(2) + b"up")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, stream, right, Traffic())
        await trio.sleep(1)
        target.stall()
        peer.abort()
    assert right.aborted


# --- a process that was stopped ---------------------------------------------------------------


async def test_a_peers_bytes_that_came_in_time_count_though_nobody_looked_in_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As after SIGSTOP: the deadline has passed, and bytes that came before it are unread."""
    stream, peer = confirming(peer_keepalive=2)
    got = []

    async def receive() -> None:
        got.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        # In one pass of trio's loop, so that it finds both together.
        await _stopped(autojump_clock, 100, peer._outgoing.entry, KEEPALIVE + data_header(2) + b"hi")
    assert got == [b"hi"]


async def _stopped(
    clock: trio.testing.MockClock, seconds: float, wire: trio.testing.MemorySendStream, data: bytes
) -> None:
    clock.jump(seconds)
    # The deadline is noticed first, as where epoll_wait returns nothing.
    for _ in range(3):
        await trio.lowlevel.cancel_shielded_checkpoint()
    await wire.send_all(data)


@pytest.mark.parametrize("live", [True, False])
async def test_the_same_where_the_bytes_are_spliced(live: bool) -> None:
    ours, theirs = socket.socketpair()
    sink, reader = socket.socketpair()
    with theirs, reader:
        stream = CapsuleStream(SocketStream(ours), keepalive=25, peer_keepalive=0.1, confirms=True)
        right = SocketStream(sink)
        if not can_splice(stream, right):
            pytest.skip("no splice(2) here")
        # The deadline is over before it begins, whether bytes are there or not.
        stream._peer_patience = -1.0
        if live:
            theirs.sendall(data_header(2) + b"hi" + FINAL)
            await pump_for(stream, right)(stream, right, Flow())
            assert reader.recv(10) == b"hi"
        else:
            with pytest.raises(SourceBroke, match="silent"):
                await pump_for(stream, right)(stream, right, Flow())
        stream.abort()
        right.abort()


# --- RESET ------------------------------------------------------------------------------------


async def test_a_reset_says_why_after_what_came_before_it(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = confirming(client=True)
    await peer.send_all(data_header(2) + b"hi" + reset(ResetCode.REVOKED, "the token was taken away") + b"nonsense")
    assert await stream.receive_some() == b"hi"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="the server ended the tunnel: the token was taken away"):
            await stream.receive_some()
    assert stream.peer_reason == "the server ended the tunnel: the token was taken away"


@pytest.mark.parametrize(
    ("code", "words", "told"),
    [
        (ResetCode.TARGET, "the connection broke: Connection reset by peer", "the target broke the connection"),
        (ResetCode.REVOKED, "", "the token was taken away"),
        (ResetCode.EXPIRED, "", "the token has expired"),
        (ResetCode.IDLE, "", "no byte went either way"),
        (ResetCode.LONGEST, "", "as long as a tunnel may"),
        (ResetCode.STOPPED, "", "the server was stopped"),
        (12, "detached too long", "detached too long"),
        (1 << 40, "", f"code {1 << 40}"),
        (ResetCode.IDLE, "\x1b]0;owned\x07\r\n", "?]0;owned???"),
    ],
)
async def test_a_client_has_a_sentence_for_every_code_and_obeys_no_words(code: int, words: str, told: str) -> None:
    stream, peer = confirming(client=True)
    await peer.send_all(reset(code, words))
    with pytest.raises(trio.BrokenResourceError) as broke:
        await stream.receive_some()
    assert told in str(broke.value)
    assert str(broke.value).isprintable()


async def test_a_clients_reset_is_a_break_and_its_words_are_for_no_log(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = confirming()
    right, target = memory_pair()
    await peer.send_all(data_header(2) + b"up" + reset(ResetCode.REVOKED, "root logged in"))
    outcome = await relay(stream, right, Traffic())
    assert outcome.end is End.CLIENT_BROKE
    assert "client" in outcome.words
    assert "root" not in outcome.words
    assert await read_until_broken(target) == b"up"


async def test_a_reset_after_the_peers_end_is_a_break_too(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = confirming(client=True)
    near, application = memory_pair()
    await peer.send_all(data_header(2) + b"hi" + FINAL + reset(ResetCode.STOPPED, "the server was stopped"))
    outcome = await relay(near, stream, Traffic())
    assert outcome.end is End.TARGET_BROKE
    assert "the server was stopped" in outcome.words
    assert await application.receive_some() == b"hi"


async def test_a_term_that_is_over_is_told_with_its_code(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = confirming()
    right, _target = memory_pair()
    term = Lifetime()
    term.until(trio.current_time() + 60, "the token has expired", "expired")
    outcome = await relay(stream, right, Traffic(), term, {"expired": ResetCode.EXPIRED})
    assert outcome.end is End.TERMINATED
    assert (await read_until_broken(peer)).endswith(reset(ResetCode.EXPIRED, "the token has expired"))


async def test_a_peer_that_was_told_that_all_is_well_is_told_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = confirming()
    await peer.send_all(DONE)
    await stream.finish()
    await stream.send_reason("too late", ResetCode.STOPPED)
    stream.abort()
    assert await read_until_broken(peer) == FINAL + DONE
