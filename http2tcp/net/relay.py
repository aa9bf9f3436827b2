"""Joins two streams: a pump for each direction, half-close, limits of silence, and one outcome.

An EOF ends one direction, and the other side gets it as an EOF. A side that breaks ends both directions: the other
side gets what had arrived before, then a reset, so that it does not mistake a part for everything. Memory is bounded by
one chunk for each direction, whatever the speeds of the two sides.

A relay has ended well once both streams' `finish` has returned, and not before; nothing can change that afterwards. If
a deadline passes before a side has got all bytes and the end, the relay counts as broken.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

import trio

from http2tcp.net import splice_pump as splice
from http2tcp.net.pump import Flow, SinkBroke, SourceBroke, WatchedFlow, copy
from http2tcp.net.streams import EOF_PATIENCE, Stream

# If a side takes no more bytes, we still receive what it had sent, until nothing comes for this many seconds.
_BROKEN_LINGER = 5.0
# How often, during one idle timeout, to look at the kernels' queues. So the relay may end late, by a quarter of the
# timeout.
_LOOKS = 4
# How long, in seconds, our kernel may take to deliver to one side what had arrived before the other side broke.
_FLUSH = 5.0


class End(Enum):
    """Why a relay ended."""

    CLOSED = "closed"
    CLIENT_BROKE = "client broke"
    TARGET_BROKE = "target broke"
    #: One side's EOF could not be passed on to the other side, which then stayed silent for its `eof_patience`.
    EOF_NOT_RELAYED = "eof not relayed"
    #: The target had ended. Then the client was silent for longer than allowed (`Flow.patience`) and did not end.
    CLIENT_SILENT = "client silent"
    #: The client had ended. Then the target was silent for longer than allowed (`Flow.patience`) and did not end.
    TARGET_SILENT = "target silent"
    #: The relay's `Lifetime` ended it.
    TERMINATED = "terminated"


class Outcome(NamedTuple):
    """How a relay ended. `words` say why, and are empty if it ended well."""

    end: End
    words: str = ""


class Traffic:
    """Counts, for each direction, the bytes that the receiving side's kernel has taken. It can be read at any time."""

    __slots__ = ("down", "up")

    def __init__(self) -> None:
        self.up = Flow()
        self.down = Flow()

    def watch(self) -> tuple[WatchedFlow, WatchedFlow]:
        """Replace both flows by ones that know when their last byte moved. Call it only before the relay begins."""
        self.up, self.down = flows = WatchedFlow(), WatchedFlow()
        return flows

    @property
    def bytes_up(self) -> int:
        return self.up.bytes

    @property
    def bytes_down(self) -> int:
        return self.down.bytes


class Lifetime:
    """How long a relay may go on, and a way to end it from outside. Times are trio's, in seconds."""

    __slots__ = ("_idle", "_on_silence", "_scope", "cause", "words")

    def __init__(self) -> None:
        self._scope = trio.CancelScope()
        self._idle = math.inf
        self._on_silence: tuple[str, object] = "", None
        #: Why this lifetime ended the relay, for the peers and for the caller.
        self.words = ""
        self.cause: object = None

    def until(self, deadline: float, words: str, cause: object) -> None:
        """End the relay at `deadline` at the latest. The earliest of several deadlines counts.

        A call does nothing once this lifetime has ended the relay.
        """
        if deadline < self._scope.deadline and not self._scope.cancel_called:
            self._scope.deadline = deadline
            self.words, self.cause = words, cause

    def renew(self) -> None:
        """Forget all deadlines that `until` has set."""
        self._scope.deadline = math.inf

    def idle(self, seconds: float, words: str, cause: object) -> None:
        """End the relay once no byte has moved in either direction for this long. Call it only before the relay begins.

        A byte moves twice: to our kernel, and from there to the peer's kernel. So a peer that reads slowly is not idle.
        """
        self._idle, self._on_silence = seconds, (words, cause)

    def end(self, words: str, cause: object) -> None:
        """End the relay now."""
        if not self._scope.cancel_called:
            self.words, self.cause = words, cause
            self._scope.cancel()

    async def hold(self, client: _Side, target: _Side, traffic: Traffic) -> Outcome:
        """Run the relay. Its outcome is TERMINATED if this lifetime ended it."""
        with self._scope:
            if self._idle == math.inf:
                return await _converse(client, target, traffic)
            with trio.CancelScope() as silence:
                flows = traffic.watch()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_await_silence, self._idle, silence, flows, (client.stream, target.stream))
                    outcome = await _converse(client, target, traffic)
                    nursery.cancel_scope.cancel()
                return outcome
            self.words, self.cause = self._on_silence
        return Outcome(End.TERMINATED, self.words)


async def _await_silence(
    idle: float, scope: trio.CancelScope, flows: tuple[WatchedFlow, WatchedFlow], streams: tuple[Stream, Stream]
) -> None:
    """Cancel the scope once no byte has moved for `idle` seconds, neither to our kernel nor from there to a peer's."""
    taken_at = -math.inf
    before = [stream.queue() for stream in streams]
    while True:
        now = trio.current_time()
        queues = [stream.queue() for stream in streams]
        # Only bytes that were in a queue at the last look count. Bytes that came and went between two looks were a
        # keepalive, or payload that the flows have counted.
        if any(old.kept and new.acknowledged != old.acknowledged for old, new in zip(before, queues, strict=True)):
            taken_at = now
        before = queues
        end = max(taken_at, *(flow.moved_at for flow in flows)) + idle
        if end <= now:
            scope.cancel()
            return
        await trio.sleep_until(min(end, now + idle / _LOOKS))


async def relay(
    client: Stream,
    target: Stream,
    traffic: Traffic,
    lifetime: Lifetime | None = None,
    codes: Mapping[object, int] = MappingProxyType({}),
) -> Outcome:
    """Carry bytes both ways until both directions have ended, then close both streams.

    `client` is the side that asked for the tunnel and `target` the side that it leads to: for a client, these are its
    own program and the tunnel. Cancelling the relay aborts both streams. If `lifetime` ends the relay, it delivers
    what had arrived, then aborts. `codes` maps the reason for the end to the `ResetCode` for the sides that did not
    break: the key is the `End` of the side that broke, or the cause if `lifetime` ended the relay.
    """
    sides = _Side(client, End.CLIENT_BROKE, End.CLIENT_SILENT), _Side(target, End.TARGET_BROKE, End.TARGET_SILENT)
    client.reset_on_exit()
    target.reset_on_exit()
    try:
        outcome = await (lifetime.hold(*sides, traffic) if lifetime else _converse(*sides, traffic))
        if all(side.finished for side in sides):
            outcome = Outcome(End.CLOSED)  # both sides had everything before the lifetime was over
        else:
            ended_by = lifetime.cause if lifetime and outcome.end is End.TERMINATED else outcome.end
            await _deliver([side for side in sides if not side.broken], outcome.words, codes.get(ended_by, 0))
    finally:
        await _close(*sides)
    return outcome


class _Side:
    """One of the two streams of a relay, with a record of what broke it and what its peer got."""

    __slots__ = ("broke", "eof_not_relayed", "finished", "flushed", "silent", "stream", "words")

    def __init__(self, stream: Stream, broke: End, silent: End) -> None:
        self.stream = stream
        self.broke = broke
        self.silent = silent
        #: What broke this side, in a few words; None if nothing did.
        self.words: str | None = None
        #: Whether the other side's EOF could not be passed on to this side.
        self.eof_not_relayed = False
        #: Whether the stream's `finish` has returned: the peer has everything, and knows that nothing more will come.
        self.finished = False
        #: Whether the peer's kernel has everything that was sent.
        self.flushed = False

    def fail(self, error: Exception) -> None:
        """Record that this side broke, even if the error has no text."""
        self.words = str(error) or "the connection broke"

    @property
    def broken(self) -> bool:
        """Whether this side broke."""
        return self.words is not None

    @property
    def outcome(self) -> Outcome:
        """The relay's outcome, given that this side broke."""
        return Outcome(self.broke, self.words or "")


async def _converse(client: _Side, target: _Side, traffic: Traffic) -> Outcome:
    # Each further function around the pumps would cost every idle tunnel 0.3 KiB.
    if not (client.stream.needs_attention or target.stream.needs_attention):
        outcome = await _pump_both(client, target, traffic)
        return await _finish((client, target)) if outcome.end is End.CLOSED else outcome
    async with trio.open_nursery() as attendants:
        for side in (client, target):
            if side.stream.needs_attention:
                attendants.start_soon(side.stream.attend)
        # Attend to the streams until both have finished: `attend` may be in the middle of sending an acknowledgement,
        # and the peer needs keepalives until then.
        outcome = await _pump_both(client, target, traffic)
        if outcome.end is End.CLOSED:
            outcome = await _finish((client, target))
        attendants.cancel_scope.cancel()
    return outcome


async def _pump_both(client: _Side, target: _Side, traffic: Traffic) -> Outcome:
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        traffic.up.within(scope)
        traffic.down.within(scope)
        # One direction runs in this task, which saves every idle tunnel a task.
        nursery.start_soon(_carry, target, client, traffic.down, traffic.up, scope)
        await _carry(client, target, traffic.up, traffic.down, scope)
    for side in (client, target):
        if side.broken:
            return side.outcome
    if not scope.cancelled_caught:
        return Outcome(End.CLOSED)
    if client.eof_not_relayed or target.eof_not_relayed:
        return Outcome(End.EOF_NOT_RELAYED)
    # Neither side broke, so one direction was silent for too long.
    side, flow = (client, traffic.up) if traffic.up.ran_out else (target, traffic.down)
    if side.stream.ends.silence_is_end:
        return Outcome(End.CLOSED)
    return Outcome(side.silent, f"it was silent for {flow.patience:g} s after the other side had ended")


async def _carry(source: _Side, sink: _Side, flow: Flow, opposite: Flow, scope: trio.CancelScope) -> None:
    """Run one direction, from its first byte until its EOF is acknowledged.

    `opposite` is the flow from `sink` to `source`.

    What ends a direction, and what each side gets:

    =================================  ============================================  ==================================
    what happens                       the source's side                             the sink's side
    =================================  ============================================  ==================================
    the source sends an EOF            keeps receiving; gets an acknowledgement of   the EOF; from then on it may be
                                       its EOF, if its transport has one             silent for its `eof_patience`
    the same, but `send_eof` would     the same; a reset if the sink is silent for   no EOF; a reset if it is silent
    end both of the sink's directions  its `eof_patience` without ending             that long without ending
    an EOF before the first byte, if   a reset                                       a reset
    `empty_is_broken`
    the source breaks                  (it is gone)                                  what had arrived, then a reset
    the sink breaks                    the rest of what the sink had sent, until     (it is gone)
                                       none comes for 5 s, then a reset
    =================================  ============================================  ==================================
    """
    # The pump is awaited here and not in a function of its own, which would cost every idle tunnel 0.3 KiB.
    pump = pump_for(source.stream, sink.stream)
    try:
        await pump(source.stream, sink.stream, flow)
        if source.broken:
            return  # sending to the source failed earlier, so this is not a real EOF
        if source.stream.ends.empty_is_broken and not flow.bytes:
            raise SourceBroke("it ended before its first byte")
        await _pass_eof_on(source, sink, opposite)
        if source.stream.needs_attention:
            await _await_acknowledgement(source)
    except SourceBroke as error:
        source.fail(error)
        scope.cancel()
    except (SinkBroke, trio.BrokenResourceError) as error:
        # The other pump still receives what the sink had sent before it broke.
        sink.fail(error)
        opposite.limit_silence(_BROKEN_LINGER)


async def _pass_eof_on(source: _Side, sink: _Side, opposite: Flow) -> None:
    """Send the source's EOF to the sink if that ends one direction only, and limit the sink's silence from now on.

    Raises BrokenResourceError if the sink is gone.
    """
    if sink.stream.ends.half_close:
        await sink.stream.send_eof()
    else:
        sink.eof_not_relayed = True
    patience = EOF_PATIENCE if source.stream.ends.eof_is_last else math.inf
    opposite.limit_silence(min(sink.stream.ends.eof_patience, patience))


async def _await_acknowledgement(source: _Side) -> None:
    """Acknowledge the source's EOF, then wait until the source has acknowledged the EOF of the other side.

    The source's pump has ended, so nothing else would notice if the source broke. Raises SourceBroke.
    """
    source.stream.acknowledge_eof()
    try:
        await source.stream.wait_acknowledged()
    except trio.BrokenResourceError as error:
        raise SourceBroke(str(error)) from error


async def _finish(sides: tuple[_Side, _Side]) -> Outcome:
    for side in sides:
        try:
            await side.stream.finish()
        except trio.BrokenResourceError as error:
            side.fail(error)
            return side.outcome
        side.finished = True
    return Outcome(End.CLOSED)


async def _deliver(sides: list[_Side], why: str, code: int) -> None:
    deadline = trio.current_time() + _FLUSH
    for side in sides:
        with trio.move_on_at(max(deadline, trio.current_time() + side.stream.delivery_patience(code))):
            await side.stream.send_reason(why, code)
            await side.stream.flush()
            side.flushed = True


async def _close(client: _Side, target: _Side) -> None:
    """Close both streams if both peers have everything; otherwise reset them.

    If we have acknowledged all bytes of one side, deliver them to the other side before resetting it.
    """
    well = client.finished and target.finished
    # Shielded: a cancellation here would reset a stream although its peer already knows that all went well.
    with trio.move_on_after(_FLUSH, shield=True):
        for side, other in ((client, target), (target, client)):
            if well or (other.stream.eof_acknowledged and not (side.flushed or side.broken)):
                try:
                    await side.stream.aclose()
                except trio.BrokenResourceError:
                    pass  # `finish` has already sent all that the peer needs
            elif not (side.flushed or side.broken):
                await side.stream.leave()
    client.stream.abort()
    target.stream.abort()


def pump_for(source: Stream, sink: Stream) -> Callable[[Stream, Stream, Flow], Awaitable[None]]:
    """The fastest pump for these two streams. It runs until the source's EOF, and raises SourceBroke or SinkBroke."""
    if source.changes_carriers or sink.changes_carriers:
        return _resumable_pump(source, sink)
    return _splice if can_splice(source, sink) else copy


def _resumable_pump(source: Stream, sink: Stream) -> Callable[[Stream, Stream, Flow], Awaitable[None]]:
    if splice.AVAILABLE and source.changes_carriers and sink.sink_fd() is not None:
        from http2tcp.net.resumable_pump import from_session

        return from_session
    if splice.AVAILABLE and sink.changes_carriers and source.source_fd() is not None:
        from http2tcp.net.resumable_pump import to_session

        return to_session
    return copy


def can_splice(source: Stream, sink: Stream) -> bool:
    """Whether this system can splice, both streams show a descriptor, and at most one of them is framed."""
    if not splice.AVAILABLE or (source.framed and sink.framed):
        return False
    return source.source_fd() is not None and sink.sink_fd() is not None


async def _splice(source: Stream, sink: Stream, flow: Flow) -> None:
    """Like `http2tcp.net.pump.copy`, but between the streams' descriptors."""
    ahead = source.take_ahead()
    if ahead:
        try:
            await sink.send_all(ahead)
        except trio.BrokenResourceError as error:
            raise SinkBroke(str(error)) from error
        flow.bytes += len(ahead)
    source_fd, sink_fd = source.source_fd(), sink.sink_fd()
    if source_fd is None or sink_fd is None:
        raise trio.ClosedResourceError("this stream was already closed")
    if source.framed or sink.framed:
        from http2tcp.net.capsule_pump import capsule_pump

        await capsule_pump(source, sink, source_fd, sink_fd, flow)
    else:
        await splice.Pump(source_fd, sink_fd, flow).run()
