"""Two pumps, half-close, silence, outcome.

EOF is half a conversation and is passed on as such. A side that breaks ends both; the other side then
gets what had arrived before, and a reset after it, so that nobody takes a part for the whole. Memory is
bounded by one chunk a direction, whatever the speeds of the two sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import trio

from http2tcp.net.streams import CHUNK, Stream

# How long a side that cannot be told of an EOF may stay silent before the tunnel is given up.
EOF_LINGER = 30.0
# How long a side that no longer takes bytes may take to hand over those it had sent.
_BROKEN_LINGER = 5.0
# How long the kernel gets to deliver what arrived before the other side broke.
_FLUSH = 5.0


class End(Enum):
    """Why a relay ended."""

    CLOSED = "closed"
    LEFT_BROKE = "left broke"
    RIGHT_BROKE = "right broke"
    #: One side's EOF could not be passed on, and the other stayed silent for EOF_LINGER.
    UNTOLD_EOF = "untold eof"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a relay ended; `words` say what broke, and are empty otherwise."""

    end: End
    words: str = ""


@dataclass(slots=True)
class Traffic:
    """Bytes that were handed to the receiving side's kernel. The caller reads it at any time."""

    left_to_right: int = 0
    right_to_left: int = 0


class _Side:
    """One of the two streams, and what the relay knows of it."""

    def __init__(self, stream: Stream, broke: End) -> None:
        self.stream = stream
        self.broke = broke
        #: What broke it, in a few words.
        self.fault = ""
        #: Seconds that it may stay silent.
        self.patience = math.inf
        self.waiting = trio.CancelScope()

    @property
    def broken(self) -> bool:
        return bool(self.fault)

    async def receive(self) -> bytes | None:
        """Bytes, b"" at EOF, or None where it broke or ran out of patience."""
        # Only waiting to receive counts: a tunnel whose other side is slow to take bytes is not silent.
        with trio.CancelScope() as self.waiting:
            self.waiting.deadline = trio.current_time() + self.patience
            try:
                return await self.stream.receive_some(CHUNK)
            except trio.BrokenResourceError as error:
                self._break(error)
        return None

    async def send(self, data: bytes) -> bool:
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError as error:
            self._break(error)
        return not self.broken

    async def send_eof(self) -> None:
        if not self.stream.half_close:
            self.hurry(EOF_LINGER)
            return
        try:
            await self.stream.send_eof()
        except trio.BrokenResourceError as error:
            self._break(error)

    def _break(self, error: trio.BrokenResourceError) -> None:
        self.fault = self.fault or str(error) or "the connection broke"
        self.hurry(_BROKEN_LINGER)

    def hurry(self, patience: float) -> None:
        """From now on it may stay silent for so long only."""
        self.patience = patience
        self.waiting.deadline = trio.current_time() + patience


async def relay(left: Stream, right: Stream, traffic: Traffic) -> Outcome:
    """Carry bytes both ways until both directions have ended, then close both streams.

    Cancelling it aborts both.
    """
    sides = _Side(left, End.LEFT_BROKE), _Side(right, End.RIGHT_BROKE)
    try:
        outcome = await _pump_both(*sides, traffic)
        if outcome.end is End.CLOSED:
            # Shielded, since an abort here could still undo what both sides were told.
            with trio.move_on_after(_FLUSH, shield=True):
                await left.aclose()
                await right.aclose()
        else:
            await _deliver([side.stream for side in sides if not side.broken])
    finally:
        left.abort()
        right.abort()
    return outcome


async def _pump_both(left: _Side, right: _Side, traffic: Traffic) -> Outcome:
    untold = False

    async def pump(source: _Side, sink: _Side, count: str) -> None:
        nonlocal untold
        while data := await source.receive():
            if not await sink.send(data):
                return  # what the sink has sent before is still read, by the other pump
            setattr(traffic, count, getattr(traffic, count) + len(data))
        if data is None:
            untold = not source.broken and not sink.broken
            pumps.cancel_scope.cancel()
        elif not source.broken:
            await sink.send_eof()

    async with trio.open_nursery() as pumps:
        pumps.start_soon(pump, left, right, "left_to_right")
        pumps.start_soon(pump, right, left, "right_to_left")
    for side in (left, right):
        if side.broken:
            return Outcome(side.broke, side.fault)
    return Outcome(End.UNTOLD_EOF if untold else End.CLOSED)


async def _deliver(streams: list[Stream]) -> None:
    with trio.move_on_after(_FLUSH):
        for stream in streams:
            await stream.flush()
