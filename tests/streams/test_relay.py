"""The relay over streams in memory: what each side is told, and when."""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing

from http2tcp.net.relay import End, Lifetime, Outcome, Traffic, relay
from http2tcp.net.streams import CHUNK, TCP_ENDS, Ends, Queue
from tests.support.memory_stream import MemoryStream, memory_pair


@dataclass
class Relayed:
    """A relay that runs between two applications."""

    client: MemoryStream
    target: MemoryStream
    #: The relay's own ends.
    left: MemoryStream
    right: MemoryStream
    traffic: Traffic = field(default_factory=Traffic)
    outcome: Outcome | None = None
    ended: trio.Event = field(default_factory=trio.Event)


@asynccontextmanager
async def relayed(
    *, left_patience: float = math.inf, right_half_close: bool = True, right_patience: float = math.inf
) -> AsyncIterator[Relayed]:
    left, client = memory_pair(eof_patience=left_patience)
    right, target = memory_pair(half_close=right_half_close, eof_patience=right_patience)
    world = Relayed(client, target, left, right)

    async def run() -> None:
        world.outcome = await relay(left, right, world.traffic)
        world.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield world
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("first", ["client", "target"])
async def test_the_reply_still_arrives_after_either_side_has_half_closed(
    first: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with relayed() as world:
        early, late = (world.client, world.target) if first == "client" else (world.target, world.client)
        await early.send_all(b"question")
        await early.send_eof()
        assert await late.read_all() == b"question"
        await trio.sleep(3600)
        await late.send_all(b"answer")
        await late.send_eof()
        assert await early.read_all() == b"answer"
        await world.ended.wait()
        assert world.outcome == Outcome(End.CLOSED)
        assert {world.traffic.bytes_up, world.traffic.bytes_down} == {8, 6}


@pytest.mark.parametrize("broken", ["client", "target"])
async def test_a_reset_on_one_side_is_a_reset_on_the_other_after_what_came_before_it(
    broken: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with relayed() as world:
        one, other = (world.client, world.target) if broken == "client" else (world.target, world.client)
        await one.send_all(b"the first half")
        one.abort()
        assert await other.receive_some() == b"the first half"
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await world.ended.wait()
        assert world.outcome is not None
        assert world.outcome.end is (End.CLIENT_BROKE if broken == "client" else End.TARGET_BROKE)
        assert "reset in memory" in world.outcome.words


@pytest.mark.parametrize("broken", ["client", "target"])
async def test_a_reset_after_an_eof_is_still_a_reset(broken: str, autojump_clock: trio.testing.MockClock) -> None:
    async with relayed() as world:
        one, other = (world.client, world.target) if broken == "client" else (world.target, world.client)
        await other.send_eof()
        assert await one.read_all() == b""
        one.abort()
        with pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await world.ended.wait()
        assert world.outcome is not None
        assert world.outcome.end is not End.CLOSED


@pytest.mark.parametrize("broken", ["client", "target"])
@pytest.mark.parametrize("where", ["receive_some", "send_all", "send_eof", "wait_acknowledged", "finish"])
async def test_a_break_without_words_is_a_break(
    where: str, broken: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def breaks(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async with relayed() as world:
        one, own = (world.client, world.left) if broken == "client" else (world.target, world.right)
        other, across = (world.target, world.right) if broken == "client" else (world.client, world.left)
        monkeypatch.setattr(own, where, breaks)
        monkeypatch.setattr(own, "needs_attention", where == "wait_acknowledged")
        with suppress(trio.ClosedResourceError):  # a side that breaks at once takes the other with it
            await other.send_all(b"for nobody")
            await other.send_eof()
            await one.send_all(b"a part")
            await one.send_eof()
        await world.ended.wait()
    assert world.outcome is not None
    assert world.outcome.end is (End.CLIENT_BROKE if broken == "client" else End.TARGET_BROKE)
    assert world.outcome.words == "the connection broke"
    assert across.aborted


async def test_bytes_before_a_reset_are_flushed_before_the_other_side_is_reset(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relayed() as world:
        await world.client.send_all(b"x")
        world.client.abort()
        await world.ended.wait()
        assert world.right.flushed
        assert world.right.aborted
        assert not world.left.flushed


async def test_a_reader_that_stalls_after_a_reset_does_not_hold_the_relay_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relayed() as world:
        await world.client.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked()
        world.target.stall()
        world.client.abort()
        started = trio.current_time()
        await world.ended.wait()
        assert trio.current_time() - started <= 10
        assert world.right.aborted


async def test_what_a_side_had_sent_arrives_although_it_takes_no_more_bytes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Deaf(MemoryStream):
        async def send_all(self, data: object) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("the connection broke: broken pipe")

    left, client = memory_pair()
    right, target = memory_pair()
    right.__class__ = Deaf
    async with trio.open_nursery() as nursery:
        await client.send_all(b"for deaf ears")
        nursery.start_soon(relay, left, right, Traffic())
        await target.send_all(b"the reason why")
        assert await client.receive_some() == b"the reason why"
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_a_side_that_broke_and_hangs_is_given_up_after_a_few_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Deaf(MemoryStream):
        async def send_all(self, data: object) -> None:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("the connection broke: broken pipe")

    left, client = memory_pair()
    right, _target = memory_pair()
    right.__class__ = Deaf
    await client.send_all(b"for deaf ears")
    started = trio.current_time()
    outcome = await relay(left, right, Traffic())
    assert trio.current_time() - started == pytest.approx(5)
    assert outcome == Outcome(End.TARGET_BROKE, "the connection broke: broken pipe")


async def test_a_side_that_cannot_be_told_of_an_eof_is_left_after_its_patience(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relayed(right_half_close=False, right_patience=30) as world:
        await world.client.send_eof()
        await trio.sleep(29)
        assert not world.ended.is_set()
        await world.target.send_all(b"late")
        assert await world.client.receive_some() == b"late"
        await trio.sleep(29)
        assert not world.ended.is_set()
        await trio.sleep(2)
        assert world.ended.is_set()
        assert world.outcome == Outcome(End.EOF_NOT_RELAYED)
        with pytest.raises(trio.BrokenResourceError):
            await world.client.receive_some()


async def test_a_side_that_cannot_be_told_of_an_eof_and_ends_by_itself_has_ended_well(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relayed(right_half_close=False, right_patience=30) as world:
        await world.client.send_eof()
        await world.target.send_all(b"reply")
        await world.target.send_eof()
        assert await world.client.read_all() == b"reply"
        await world.ended.wait()
        assert world.outcome == Outcome(End.CLOSED)


async def test_patience_is_not_spent_while_a_slow_reader_takes_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relayed(right_half_close=False, right_patience=30) as world:
        await world.client.send_eof()
        world.client.stall()
        await world.target.send_all(b"reply")
        await trio.sleep(600)
        assert not world.ended.is_set()
        await world.target.send_eof()
        world.client.resume()
        assert await world.client.read_all() == b"reply"
        await world.ended.wait()
        assert world.outcome == Outcome(End.CLOSED)


@pytest.mark.parametrize("half_close", [True, False])
async def test_a_target_that_ends_first_ends_a_silent_terminal_well_on_any_transport(
    half_close: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The client's side is stdio, which stays silent. That the target's side has no half-close makes no difference."""
    async with relayed(left_patience=0.5, right_half_close=half_close, right_patience=30) as world:
        world.left.ends = world.left.ends._replace(silence_is_end=True)
        await world.target.send_all(b"bye")
        await world.target.send_eof()
        assert await world.client.read_all() == b"bye"
        started = trio.current_time()
        await world.ended.wait()
        assert trio.current_time() - started <= 0.5
        assert world.outcome == Outcome(End.CLOSED)
        assert await world.target.read_all() == b""


@pytest.mark.parametrize("half_close", [True, False])
async def test_a_silent_input_that_has_not_ended_is_no_end_for_the_target(
    half_close: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with relayed(left_patience=3, right_half_close=half_close, right_patience=30) as world:
        await world.client.send_all(b"half a ")
        await world.target.send_eof()
        assert await world.client.read_all() == b""
        started = trio.current_time()
        await world.ended.wait()
        assert trio.current_time() - started == pytest.approx(3)
        assert world.outcome is not None
        assert world.outcome.end is End.CLIENT_SILENT
        assert await world.target.receive_some() == b"half a "
        with pytest.raises(trio.BrokenResourceError):
            await world.target.receive_some()


async def test_stdin_is_served_for_as_long_as_it_brings_data_after_the_target_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with relayed(left_patience=0.5) as world:
        await world.target.send_eof()
        assert await world.client.read_all() == b""
        for _ in range(20):
            await trio.sleep(0.4)
            await world.client.send_all(b"x")
        await world.client.send_eof()
        await world.ended.wait()
        assert world.outcome == Outcome(End.CLOSED)
        assert await world.target.read_all() == b"x" * 20


@pytest.mark.parametrize("stalled", ["client", "target"])
async def test_a_stalled_reader_costs_one_chunk_of_memory(stalled: str, autojump_clock: trio.testing.MockClock) -> None:
    async with relayed() as world:
        reader, writer = (world.client, world.target) if stalled == "client" else (world.target, world.client)
        source, sink = (world.right, world.left) if stalled == "client" else (world.left, world.right)
        reader.stall()
        data = os.urandom(10 * CHUNK)
        await writer.send_all(data)
        await trio.sleep(3600)
        assert source.received - sink.sent <= CHUNK
        assert sink.largest_send <= CHUNK
        reader.resume()
        await writer.send_eof()
        assert await reader.read_all() == data


async def test_a_stalled_direction_does_not_stall_the_other(autojump_clock: trio.testing.MockClock) -> None:
    async with relayed() as world:
        world.target.stall()
        await world.client.send_all(b"x" * CHUNK)
        await world.target.send_all(b"still heard")
        assert await world.client.receive_some() == b"still heard"


async def test_a_cancelled_relay_resets_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    left, client = memory_pair()
    right, target = memory_pair()
    with trio.move_on_after(60):
        await relay(left, right, Traffic())
    assert trio.current_time() == pytest.approx(60)
    for stream in (client, target):
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_a_relay_that_ended_well_is_not_undone_by_a_cancellation(autojump_clock: trio.testing.MockClock) -> None:
    left, client = memory_pair()
    right, target = memory_pair()
    await client.send_eof()
    await target.send_eof()

    class Slow(MemoryStream):
        async def aclose(self) -> None:
            stop.cancel()
            await trio.sleep(1)
            await super().aclose()

    right.__class__ = Slow
    with trio.CancelScope() as stop:
        await relay(left, right, Traffic())
    assert await client.read_all() == b""
    assert await target.read_all() == b""


async def test_what_was_read_too_far_comes_first(autojump_clock: trio.testing.MockClock) -> None:
    left, client = memory_pair()
    right, target = memory_pair()
    left.unread(b"first ")
    right.unread(b"banner ")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, Traffic())
        await client.send_all(b"second")
        await client.send_eof()
        await target.send_all(b"line")
        await target.send_eof()
        assert await target.read_all() == b"first second"
        assert await client.read_all() == b"banner line"


async def test_idle_tunnels_stay_open_for_days(autojump_clock: trio.testing.MockClock) -> None:
    async with relayed() as world:
        await trio.sleep(7 * 24 * 3600)
        await world.client.send_all(b"still there?")
        assert await world.target.receive_some() == b"still there?"
        assert not world.ended.is_set()


# --- who ended, and how: what each side gets --------------------------------------------------------


class _Deaf(MemoryStream):
    """It has stopped receiving: whatever is sent to it fails."""

    async def send_all(self, data: object) -> None:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError("the connection broke: broken pipe")


async def _ends(stream: MemoryStream) -> None:
    await stream.send_eof()


async def _breaks(stream: MemoryStream) -> None:
    stream.abort()


async def _stays(stream: MemoryStream) -> None:
    """Open, and silent."""


Act = Callable[[MemoryStream], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """One side does `first`, then the other does `second`: what each of them gets, and how the relay ends."""

    first: Act
    second: Act
    #: What the relay's ends are like: that of the side that acts first, and the other one.
    ends: tuple[Ends, Ends] = (TCP_ENDS, TCP_ENDS)
    deaf: bool = False
    got: tuple[str, str] = ("reset", "reset")
    #: How the relay ended, where it is the client that acts first and where it is the target.
    end: tuple[End, End] = (End.CLOSED, End.CLOSED)


_FIRST_BROKE = (End.CLIENT_BROKE, End.TARGET_BROKE)
_SECOND_BROKE = (End.TARGET_BROKE, End.CLIENT_BROKE)
_SECOND_SILENT = (End.TARGET_SILENT, End.CLIENT_SILENT)
_PATIENT = Ends(eof_patience=3)

TABLE = {
    "both end": Row(_ends, _ends, got=("eof", "eof")),
    "one breaks": Row(_breaks, _stays, end=_FIRST_BROKE),
    "one ends, the other breaks": Row(_ends, _breaks, end=_SECOND_BROKE),
    "one ends, the other is silent for too long": Row(_ends, _stays, ends=(TCP_ENDS, _PATIENT), end=_SECOND_SILENT),
    "one ends, the other's silence is its end": Row(
        _ends, _stays, ends=(TCP_ENDS, _PATIENT._replace(silence_is_end=True)), got=("eof", "eof")
    ),
    "one ends, which ends both directions soon": Row(
        _ends, _stays, ends=(Ends(eof_is_last=True), TCP_ENDS), end=_SECOND_SILENT
    ),
    "the other cannot be told of an EOF, and is silent": Row(
        _ends,
        _stays,
        ends=(TCP_ENDS, _PATIENT._replace(half_close=False)),
        end=(End.EOF_NOT_RELAYED, End.EOF_NOT_RELAYED),
    ),
    "the other cannot be told of an EOF, and ends by itself": Row(
        # `finish` tells it, which a stream in memory does by closing.
        _ends,
        _ends,
        ends=(TCP_ENDS, _PATIENT._replace(half_close=False)),
        got=("eof", "eof"),
    ),
    "one ends before its first byte, which is a break": Row(
        _ends, _stays, ends=(Ends(empty_is_broken=True), TCP_ENDS), end=_FIRST_BROKE
    ),
    "the other takes no more bytes, and is silent": Row(_stays, _stays, deaf=True, end=_SECOND_BROKE),
}


@pytest.mark.parametrize("acts_first", ["client", "target"])
@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
async def test_who_ends_and_how_decides_what_each_side_gets(
    row: Row, acts_first: str, autojump_clock: trio.testing.MockClock
) -> None:
    (one, first), (other, second) = memory_pair(), memory_pair()
    one.ends, other.ends = row.ends
    if row.deaf:
        other.__class__ = _Deaf
        await first.send_all(b"for deaf ears")
    await row.first(first)
    got = ["", ""]

    async def collect(number: int, stream: MemoryStream) -> None:
        try:
            assert await stream.read_all() == b""
            got[number] = "eof"
            await ended.wait()
            # What follows the EOF that was passed on: nothing, or the reset that takes it back.
            await stream.receive_some()
        except trio.BrokenResourceError:
            got[number] = "reset"
        except trio.ClosedResourceError:
            pass  # it has broken off itself

    ended = trio.Event()
    outcome: Outcome | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, 0, first)
        nursery.start_soon(collect, 1, second)
        await trio.testing.wait_all_tasks_blocked()
        await row.second(second)
        sides = (one, other) if acts_first == "client" else (other, one)
        outcome = await relay(*sides, Traffic())
        ended.set()
    assert outcome is not None
    assert outcome.end is row.end[acts_first == "target"]
    gets = [("gone" if act is _breaks else end) for end, act in zip(got, (row.first, row.second), strict=True)]
    assert gets == [
        ("gone" if act is _breaks else end) for end, act in zip(row.got, (row.first, row.second), strict=True)
    ]


# --- what ends it from outside ------------------------------------------------------------------


@asynccontextmanager
async def limited(term: Lifetime, autojump_clock: trio.testing.MockClock) -> AsyncIterator[Relayed]:
    left, client = memory_pair()
    right, target = memory_pair()
    world = Relayed(client, target, left, right)
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            world.outcome = await relay(left, right, world.traffic, term)
            world.ended.set()

        nursery.start_soon(run)
        yield world
        await world.ended.wait()


async def test_a_relay_ends_at_its_time_and_both_sides_see_that_it_was_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    term = Lifetime()
    term.until(trio.current_time() + 60, "too late", "late")
    term.until(trio.current_time() + 50, "in time", "early")
    term.until(trio.current_time() + 70, "later still", "late")
    async with limited(term, autojump_clock) as world:
        await world.client.send_all(b"before")
        assert await world.target.receive_some() == b"before"
        for side in (world.client, world.target):
            with pytest.raises(trio.BrokenResourceError):
                await side.receive_some()
        assert trio.current_time() == pytest.approx(50, abs=0.1)
    assert world.outcome == Outcome(End.TERMINATED, "in time")
    assert term.cause == "early"


async def test_a_renewed_term_forgets_the_times_before(autojump_clock: trio.testing.MockClock) -> None:
    term = Lifetime()
    term.until(trio.current_time() + 10, "expired", "old")
    async with limited(term, autojump_clock) as world:
        await trio.sleep(5)
        term.renew()
        term.until(trio.current_time() + 100, "expired", "new")
        await trio.sleep(50)
        assert not world.ended.is_set()
    assert trio.current_time() == pytest.approx(105, abs=0.1)
    assert term.cause == "new"


async def test_a_relay_that_is_ended_delivers_what_had_arrived(autojump_clock: trio.testing.MockClock) -> None:
    term = Lifetime()
    async with limited(term, autojump_clock) as world:
        await world.target.send_all(b"x" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        term.end("revoked", "revoked")
        term.end("again", "again")
        assert await world.client.receive_some() == b"x" * 1000
    assert world.outcome == Outcome(End.TERMINATED, "revoked")


@pytest.mark.parametrize("speaker", ["client", "target"])
async def test_only_silence_in_both_directions_is_idle(speaker: str, autojump_clock: trio.testing.MockClock) -> None:
    term = Lifetime()
    term.idle(60, "idle for 60 s", "idle")
    async with limited(term, autojump_clock) as world:
        sender, receiver = (world.client, world.target) if speaker == "client" else (world.target, world.client)
        for _ in range(5):
            await trio.sleep(50)
            await sender.send_all(b"!")
            assert await receiver.receive_some() == b"!"
        assert not world.ended.is_set()
    assert trio.current_time() == pytest.approx(310, abs=0.1)
    assert (world.outcome, term.cause) == (Outcome(End.TERMINATED, "idle for 60 s"), "idle")
    assert world.traffic.bytes_up + world.traffic.bytes_down == 5


@pytest.mark.parametrize("slow", ["client", "target"])
async def test_a_peer_whose_kernel_takes_what_ours_has_kept_for_it_is_not_silent(
    slow: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Five bytes were sent at once, of which the peer's kernel takes one every 50 s, the last at 250 s."""

    def queue() -> Queue:
        taken = min(5, int(trio.current_time() / 50))
        return Queue(5 - taken, taken)

    term = Lifetime()
    term.idle(60, "idle for 60 s", "idle")
    async with limited(term, autojump_clock) as world:
        monkeypatch.setattr(world.left if slow == "client" else world.right, "queue", queue)
    assert 310 <= trio.current_time() <= 310 + 60 / 4
    assert term.cause == "idle"


@pytest.mark.parametrize("kept", [0, 5], ids=["keepalives are taken", "nothing is taken"])
async def test_a_queue_that_is_empty_or_stands_still_is_silence(
    kept: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    def queue() -> Queue:
        return Queue(kept, 7 if kept else int(trio.current_time()))

    term = Lifetime()
    term.idle(60, "idle for 60 s", "idle")
    async with limited(term, autojump_clock) as world:
        monkeypatch.setattr(world.left, "queue", queue)
    assert trio.current_time() == pytest.approx(60, abs=0.1)
    assert term.cause == "idle"


async def test_a_tunnel_whose_peer_takes_nothing_is_idle_too(autojump_clock: trio.testing.MockClock) -> None:
    term = Lifetime()
    term.idle(60, "idle for 60 s", "idle")
    async with limited(term, autojump_clock) as world:
        world.target.stall()
        with trio.move_on_after(1):
            for _ in range(3):
                await world.client.send_all(b"x" * CHUNK)
    assert term.cause == "idle"
    assert trio.current_time() < 70
