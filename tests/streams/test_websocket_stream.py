"""A tunnel in WebSocket messages: pings, Close and what it says, cuts, capsules inside."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.relay import End, Lifetime, Outcome, Traffic, relay
from http2tcp.net.streams import CHUNK, Bytes, HalfCloseUnsupported, Stream
from http2tcp.net.websocket import WebSocketStream
from http2tcp.protocol.websocket import MAX_MESSAGE
from tests.support.loopback import read_until_broken
from tests.support.memory_stream import MemoryStream, memory_pair
from tests.support.websocket_frames import (
    BINARY,
    BROKEN_FRAMES,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    close,
    close_of,
    frame,
    frames,
)


def server(keepalive: float = math.inf) -> tuple[WebSocketStream, MemoryStream]:
    """A server's stream, and the raw end of its client."""
    ours, theirs = memory_pair()
    return WebSocketStream(ours, client=False, keepalive=keepalive), theirs


def client(keepalive: float = math.inf) -> tuple[WebSocketStream, MemoryStream]:
    """A client's stream, and the raw end of its server."""
    ours, theirs = memory_pair()
    return WebSocketStream(ours, client=True, keepalive=keepalive), theirs


def both() -> tuple[WebSocketStream, WebSocketStream]:
    """A server's stream and a client's, connected."""
    ours, theirs = memory_pair()
    return (
        WebSocketStream(ours, client=False, keepalive=math.inf),
        WebSocketStream(theirs, client=True, keepalive=math.inf),
    )


async def read_all(stream: WebSocketStream | CapsuleStream) -> bytes:
    parts = []
    while data := await stream.receive_some():
        parts.append(data)
    return b"".join(parts)


async def test_more_than_a_chunk_arrives_whole_in_both_directions() -> None:
    data = bytes(range(256)) * (3 * CHUNK // 256 + 1)
    for sender, receiver in (both(), reversed(both())):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sender.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await receiver.receive_some(100_000)
        assert received == data


async def test_an_empty_message_is_no_end() -> None:
    stream, peer = server()
    await peer.send_all(frame(BINARY, b"") + frame(PING) + frame(BINARY, b"after it"))
    assert await stream.receive_some() == b"after it"


# --- the end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", frame(BINARY, b"part"), frame(BINARY, b"part")[:-1], close(1000)[:-1]])
async def test_a_stream_that_ends_without_a_close_was_cut(sent: bytes) -> None:
    stream, peer = server()
    await peer.send_all(sent)
    await peer.send_eof()
    with pytest.raises(trio.BrokenResourceError, match="without a Close"):
        await read_all(stream)


async def test_closing_says_so_and_hears_the_peers_own() -> None:
    left, right = both()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.aclose)
        assert await right.receive_some() == b""
        await right.aclose()


async def test_closing_does_not_wait_for_ever_for_a_peer_that_says_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = client()
    started = trio.current_time()
    await stream.aclose()
    assert trio.current_time() - started == pytest.approx(1)
    assert close_of(await peer.read_all()) == (1000, "")


async def test_closing_does_not_take_for_ever_what_a_peer_still_sends() -> None:
    stream, peer = client()
    await peer.send_all(frame(BINARY, bytes(4 * CHUNK), key=None))
    started = trio.current_time()
    await stream.aclose()
    assert trio.current_time() - started < 0.5


async def test_closing_a_stream_whose_peer_is_gone_is_no_error() -> None:
    stream, peer = client()
    peer.abort()
    await stream.aclose()


async def test_aborting_never_says_that_it_was_all() -> None:
    stream, peer = server()
    await stream.send_all(b"part")
    stream.abort()
    assert [each.opcode for each in frames(await read_until_broken(peer))] == [BINARY]


async def test_a_client_that_would_lose_the_reply_cannot_half_close() -> None:
    stream, _ = client()
    assert not stream.ends.half_close
    with pytest.raises(HalfCloseUnsupported):
        await stream.send_eof()


async def test_a_client_answers_a_close_at_once_and_sends_nothing_more() -> None:
    stream, peer = client()
    await peer.send_all(frame(BINARY, b"last words", key=None) + close(1000, key=None))
    assert await read_all(stream) == b"last words"
    assert close_of(await peer.receive_some()) == (1000, "")
    with pytest.raises(trio.BrokenResourceError, match="closed"):
        await stream.send_all(b"too late")


async def test_sending_after_our_own_close_is_a_mistake() -> None:
    stream, _ = server()
    await stream.send_eof()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"more")


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (frame(TEXT, b"hello"), 1003, "a text message came, and tunnels are binary"),
        (frame(0x3), 1002, "a frame came that breaks the rules of WebSocket"),
        (b"\x82\xff" + (MAX_MESSAGE + 1).to_bytes(8, "big") + bytes(4), 1009, "a message of more than 16 MiB came"),
    ],
)
async def test_nonsense_breaks_the_stream_and_its_sender_is_told_why(
    sent: bytes, code: int, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    stream, peer = server()
    await peer.send_all(frame(BINARY, b"good") + sent)
    assert await stream.receive_some() == b"good"
    with pytest.raises(trio.BrokenResourceError, match=reason):
        await stream.receive_some()
    stream.abort()
    assert close_of(await read_until_broken(peer)) == (code, reason)


async def test_nonsense_from_a_peer_that_reads_nothing_breaks_the_stream_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = server()
    peer.stall()
    await peer.send_all(frame(TEXT, b"hello"))
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError, match="text"):
        await stream.receive_some()


async def test_a_user_reads_why_a_server_gave_up(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = client()
    await peer.send_all(close(1011, "database is on fire", key=None))
    with pytest.raises(trio.BrokenResourceError, match="1011: database is on fire"):
        await stream.receive_some()


# --- what others do wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("capsules", [False, True], ids=["plain", "capsules"])
@pytest.mark.parametrize("moment", ["open", "after our Close", "after theirs"])
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("kind", BROKEN_FRAMES)
async def test_a_stranger_s_mistake_ends_a_relay_with_an_outcome_and_never_with_an_exception(
    kind: str, side: str, moment: str, capsules: bool, autojump_clock: trio.testing.MockClock
) -> None:
    websocket, peer = server() if side == "server" else client()
    key = KEY if side == "server" else None
    stream: Stream = websocket
    if capsules:
        stream = CapsuleStream(websocket, keepalive=25, peer_keepalive=None)
    right, target = memory_pair()
    outcomes = []

    async def run() -> None:
        outcomes.append(await relay(stream, right, Traffic()))

    async def send_without_end() -> None:
        try:
            while True:
                await target.send_all(b"x" * 1000)
                await trio.sleep(0.01)
        except trio.BrokenResourceError:
            return

    async def take_all() -> None:
        try:
            while await peer.receive_some():
                pass
        except trio.BrokenResourceError:
            return

    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            nursery.start_soon(take_all)
            if moment == "after our Close" and side == "server":
                await target.send_eof()
            else:
                nursery.start_soon(send_without_end)
            await trio.sleep(0.1)
            if moment == "after theirs" or (moment == "after our Close" and side == "client"):
                await peer.send_all(close(1000, key=key))
            if moment == "after our Close":
                await trio.sleep(0.1)
            try:
                await peer.send_all(BROKEN_FRAMES[kind](key))
            except trio.BrokenResourceError:
                pass  # it is over already
            # A server goes on sending to a client that has closed, until the server's target ends.
            await trio.sleep(10)
            peer.abort()
    assert len(outcomes) == 1
    assert outcomes[0].end is not End.CLOSED
    assert right.aborted


async def test_who_asks_a_broken_stream_again_gets_the_same_answer_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = server()
    await peer.send_all(frame(TEXT, b"hello"))
    with pytest.raises(trio.BrokenResourceError, match="text"):
        await stream.receive_some()
    started = trio.current_time()
    for operation in (stream.receive_some, stream.send_eof, stream.finish, lambda: stream.send_all(b"x")):
        with pytest.raises(trio.BrokenResourceError, match="text"):
            await operation()
    assert trio.current_time() == started


# --- a Close that is cancelled, or not taken -----------------------------------------------------


class Dawdling(MemoryStream):
    """A stream whose sends can be cancelled before the first byte, as those over TLS can."""

    async def send_all(self, data: Bytes) -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        await super().send_all(data)


@pytest.mark.parametrize("before", [b"", frame(PING, b"?", key=None)], ids=["", "a ping before it"])
async def test_a_relay_that_ends_at_the_moment_of_the_peer_s_close_answers_it_all_the_same(
    before: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    stream, peer = client()
    stream.inner.__class__ = Dawdling
    left, application = memory_pair()
    await application.send_eof()
    outcomes = []

    async def run() -> None:
        outcomes.append(await relay(left, stream, Traffic()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_all(before)
        await peer.send_all(close(1000, key=None))
        assert close_of(await peer.read_all()) == (1000, "")
    assert outcomes == [Outcome(End.CLOSED)]


@pytest.mark.parametrize("checkpoints", range(12))
async def test_a_control_frame_that_is_cancelled_anywhere_is_sent_whole_or_not_at_all(
    checkpoints: int, autojump_clock: trio.testing.MockClock
) -> None:
    stream, peer = server()
    stream.inner.__class__ = Dawdling
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_eof)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    # Nothing is torn, so a Close can still be sent.
    await peer.send_all(close(1000))
    assert await stream.receive_some() == b""
    with trio.fail_after(1):
        await stream.send_reason("")
        stream.abort()
    assert len(frames(await read_until_broken(peer))) == 1


async def test_a_close_that_found_no_room_is_no_clean_end(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = client()
    left, application = memory_pair()
    peer.stall()
    await application.send_eof()
    await peer.send_all(frame(BINARY, b"all of it", key=None) + close(1000, key=None))
    outcome = await relay(left, stream, Traffic())
    assert outcome.end is End.TARGET_BROKE
    assert "Close" in outcome.words
    assert await read_until_broken(application) == b"all of it"


# --- pings ------------------------------------------------------------------------------------


async def test_a_ping_is_answered_also_where_nobody_attends() -> None:
    stream, peer = client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some)
        await peer.send_all(frame(PING, b"one", key=None))
        (pong,) = frames(await peer.receive_some())
        assert pong[:2] == (PONG, b"one")
        assert pong.key is not None
        nursery.cancel_scope.cancel()


async def test_a_ping_is_answered_while_nothing_is_sent(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = server(keepalive=25)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.attend)
        nursery.start_soon(stream.receive_some)
        await trio.sleep(1)
        started = trio.current_time()
        await peer.send_all(frame(PING, b"one"))
        assert frames(await peer.receive_some())[0][:2] == (PONG, b"one")
        assert trio.current_time() == started
        nursery.cancel_scope.cancel()


async def test_a_peer_that_reads_nothing_yet_and_pings_is_still_received(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = server()
    peer.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.attend)
        nursery.start_soon(stream.send_all, b"waits for room")
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_all(frame(PING, b"?") + frame(BINARY, b"up ") + frame(PING, b"!") + frame(BINARY, b"load"))
        with trio.fail_after(1):
            assert await stream.receive_some() == b"up load"
        peer.resume()
        sent = b""
        while len(sent) < 16 + 3:
            sent += await peer.receive_some()
        assert [each[:2] for each in frames(sent)] == [(BINARY, b"waits for room"), (PONG, b"!")]
        nursery.cancel_scope.cancel()


async def test_a_silent_tunnel_pings_before_a_front_end_gets_tired(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = client(keepalive=25)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.attend)
        started = trio.current_time()
        for beat in (1, 2, 3):
            assert [each.opcode for each in frames(await peer.receive_some())] == [PING]
            assert trio.current_time() - started == pytest.approx(25 * beat)
        await trio.sleep(10)
        await stream.send_all(b"x")
        await peer.receive_some()
        # Every send counts: the next keepalive comes 25 s after this one.
        assert [each.opcode for each in frames(await peer.receive_some())] == [PING]
        assert trio.current_time() - started == pytest.approx(75 + 10 + 25)
        nursery.cancel_scope.cancel()


async def test_no_ping_gets_between_the_bytes_of_a_message(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = server(keepalive=1)
    peer.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.attend)
        nursery.start_soon(stream.send_all, b"stalled")
        await trio.sleep(10)
        peer.resume()
        assert [each[:2] for each in frames(await peer.receive_some())] == [(BINARY, b"stalled")]
        nursery.cancel_scope.cancel()


async def test_pings_to_a_peer_that_is_gone_are_no_error(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = server(keepalive=1)
    peer.abort()
    with trio.fail_after(5):
        await stream.attend()


# --- in a relay -------------------------------------------------------------------------------


async def test_a_client_whose_input_ends_still_gets_the_reply(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = server()
    right, target = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, stream, right, Traffic())
        await peer.send_all(frame(BINARY, b"question") + close(1000))
        assert await target.read_all() == b"question"
        await trio.sleep(20)
        await target.send_all(b"answer")
        await target.send_eof()
        sent = frames(await peer.read_all())
    assert [each.opcode for each in sent] == [BINARY, CLOSE]
    assert sent[0].payload == b"answer"


async def test_a_target_that_ignores_its_clients_end_is_left_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = server()
    right, target = memory_pair()
    await peer.send_all(close(1000))
    started = trio.current_time()
    outcome = await relay(stream, right, Traffic())
    assert outcome.end is End.TARGET_SILENT
    assert trio.current_time() - started == pytest.approx(30, abs=1)
    # The target may have had more to send; code 1000 would tell the client that it has the whole reply.
    assert close_of(await peer.receive_some())[0] == 1011
    with pytest.raises(trio.BrokenResourceError):
        await target.receive_some()


async def test_a_target_that_ends_first_closes_and_what_comes_meanwhile_is_delivered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = server()
    right, target = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, stream, right, Traffic())
        await target.send_all(b"bye")
        await target.send_eof()
        sent = b""
        while b"\x88" not in sent:
            sent += await peer.receive_some()
        assert close_of(sent) == (1000, "")
        await peer.send_all(frame(BINARY, b"one more") + close(1000))
        assert await target.read_all() == b"one more"
        assert await peer.read_all() == b""


async def test_a_client_that_never_answers_a_close_is_left(autojump_clock: trio.testing.MockClock) -> None:
    stream, _peer = server()
    right, target = memory_pair()
    await target.send_eof()
    started = trio.current_time()
    outcome = await relay(stream, right, Traffic())
    # It is not known what the client got, nor whether it had more to send.
    assert outcome.end is End.CLIENT_SILENT
    assert right.aborted
    assert 5 <= trio.current_time() - started <= 7


@pytest.mark.parametrize("client_has_closed", [False, True])
async def test_a_client_is_told_that_the_target_broke(
    client_has_closed: bool, autojump_clock: trio.testing.MockClock
) -> None:
    stream, peer = server()
    right, target = memory_pair()
    await target.send_all(b"part")
    if client_has_closed:
        await peer.send_all(close(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, stream, right, Traffic())
        sent = await peer.receive_some()
        target.abort()
        sent += await read_until_broken(peer)
    assert frames(sent)[0].payload == b"part"
    assert close_of(sent) == (1011, "the connection broke: reset in memory")


@pytest.mark.parametrize("client_has_closed", [False, True])
@pytest.mark.parametrize("cause", ["stopped", "idle", "deaf target"])
async def test_no_end_but_a_whole_one_is_told_as_1000(
    cause: str, client_has_closed: bool, autojump_clock: trio.testing.MockClock
) -> None:
    class Deaf(MemoryStream):
        async def send_all(self, data: object) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("the connection broke: broken pipe")

    stream, peer = server()
    right, _target = memory_pair()
    term = Lifetime()
    match cause:
        case "stopped":
            term.until(trio.current_time() + 3, "the server was stopped", cause)
        case "idle":
            term.idle(3, "no byte went either way for 3 s", cause)
        case "deaf target":
            right.__class__ = Deaf
            await peer.send_all(frame(BINARY, b"undeliverable"))
    if client_has_closed:
        await peer.send_all(close(1000))
    outcome = await relay(stream, right, Traffic(), term)
    assert outcome.end is not End.CLOSED
    code, reason = close_of(await read_until_broken(peer))
    assert (code, reason) == (1011, outcome.words)


async def test_a_cut_websocket_resets_the_target(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = server()
    right, target = memory_pair()
    await peer.send_all(frame(BINARY, b"part"))
    await peer.send_eof()
    outcome = await relay(stream, right, Traffic())
    assert outcome.end is End.CLIENT_BROKE
    assert await read_until_broken(target) == b"part"


async def test_capsules_in_messages_half_close_and_answer_pings(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = memory_pair()
    left = CapsuleStream(WebSocketStream(ours, client=False, keepalive=math.inf), keepalive=5, peer_keepalive=5)
    right = CapsuleStream(WebSocketStream(theirs, client=True, keepalive=math.inf), keepalive=5, peer_keepalive=5)
    near, application = memory_pair()
    far, target = memory_pair()
    outcomes = []

    async def run(one: object, other: object) -> None:
        outcomes.append(await relay(one, other, Traffic()))  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, near, right)
        nursery.start_soon(run, left, far)
        # Keepalives in capsules carry both relays through an hour of silence.
        await trio.sleep(3600)
        assert outcomes == []
        await application.send_all(b"question")
        await application.send_eof()
        assert await target.read_all() == b"question"
        await trio.sleep(3600)
        await target.send_all(b"answer")
        await target.send_eof()
        assert await application.read_all() == b"answer"
    assert [outcome.end for outcome in outcomes] == [End.CLOSED, End.CLOSED]


async def test_pings_from_somebody_on_the_way_are_answered_under_capsules(
    autojump_clock: trio.testing.MockClock,
) -> None:
    ours, peer = memory_pair()
    left = CapsuleStream(WebSocketStream(ours, client=False, keepalive=math.inf), keepalive=25, peer_keepalive=None)
    right, _target = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, Traffic())
        await peer.send_all(frame(PING, b"from the proxy"))
        assert frames(await peer.receive_some())[0][:2] == (PONG, b"from the proxy")
        nursery.cancel_scope.cancel()


# --- beside others ----------------------------------------------------------------------------

#: Frames that a turn of the event loop may handle. 32 take as long as the 128 KiB that it may handle of long ones.
MOST_FRAMES = 32
MOST_BYTES = 128 * 1024

#: The smallest frames that there are, a pair of each kind.
TINY: dict[str, Callable[[bytes | None], bytes]] = {
    "single bytes": lambda key: frame(BINARY, b"x", key=key) * 2,
    "nothing": lambda key: frame(BINARY, b"", key=key) * 2,
    "pings": lambda key: frame(PING, key=key) * 2,
    "pongs": lambda key: frame(PONG, key=key) * 2,
    "fragments": lambda key: frame(BINARY, b"x", final=False, key=key) + frame(CONTINUATION, b"x", key=key),
    "empty fragments": lambda key: frame(BINARY, final=False, key=key) + frame(CONTINUATION, key=key),
}


async def turns_of_another(
    operation: Callable[[], Awaitable[object]], meanwhile: Callable[[], Awaitable[object]] | None
) -> int:
    """How often another task runs during `operation`."""
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        if meanwhile is not None:
            nursery.start_soon(meanwhile)
        await operation()
        nursery.cancel_scope.cancel()
    return turns


@pytest.mark.parametrize("attended", [True, False], ids=["attended", "not attended"])
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("kind", TINY)
async def test_however_a_peer_frames_it_the_other_tunnels_have_their_turn(kind: str, side: str, attended: bool) -> None:
    stream, peer = server() if side == "server" else client()
    key = KEY if side == "server" else None
    pairs = 2000
    await peer.send_all(TINY[kind](key) * pairs + frame(BINARY, b"!", key=key))

    async def receive() -> None:
        received = b""
        while not received.endswith(b"!"):
            received += await stream.receive_some()

    assert await turns_of_another(receive, stream.attend if attended else None) >= 2 * pairs // MOST_FRAMES


@pytest.mark.parametrize("kind", TINY)
async def test_a_stream_that_is_closed_takes_turns_too(kind: str, autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = server()
    pairs = 2000
    await peer.send_all(TINY[kind](KEY) * pairs + close(1000))
    assert await turns_of_another(stream.aclose, None) >= 2 * pairs // MOST_FRAMES
    assert stream.inner.closed  # type: ignore[attr-defined]


async def test_a_turn_handles_so_many_bytes_of_long_frames() -> None:
    stream, peer = server()
    data = bytes(4 * MOST_BYTES)
    await peer.send_all(frame(BINARY, data, key=bytes(4)))
    received = 0
    while received < len(data):
        part = await stream.receive_some()
        assert len(part) <= MOST_BYTES
        received += len(part)
