"""One direction of a resumable tunnel, as its sender has it: positions, and the bytes that are kept.

acked ≤ base ≤ sent ≤ length + 1, where the end has been acknowledged acked is length + 1. What lies between `base` and
`length` is kept in a `Kept`, which need not be this module's: the positions do not depend on where the bytes are.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from http2tcp.protocol.capsule import FINAL, Reset, reset
from http2tcp.protocol.resume_wire import Gap, Violation

# --- kept bytes -----------------------------------------------------------------------------------


class Kept(Protocol):
    """Where the bytes of one direction are kept that the peer has not acknowledged. Its front is `Outgoing.base`."""

    def append(self, data: bytes) -> None:
        """Keep these behind the others."""

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes."""

    def read(self, offset: int, most: int) -> bytes:
        """Up to `most` bytes from `offset` on, not all of them perhaps, but one at least."""


# Pieces below this are put together, so that keystrokes do not take thirty times their size.
_SMALL = 4 * 1024
_TOGETHER = 16 * 1024


class KeptBytes:
    """Kept bytes in a deque. Large pieces are kept as they are, without a copy; small ones are put together."""

    __slots__ = ("_cursor", "_cursor_at", "_pieces", "_skipped")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        # Bytes of the first piece that are dropped already.
        self._skipped = 0
        # Where the last `read` stopped: the index of a piece, and its offset from the first piece. A replay reads in
        # order, so the next `read` starts its search there.
        self._cursor = self._cursor_at = 0

    def append(self, data: bytes) -> None:
        """Keep these behind the others."""
        if len(data) >= _SMALL:
            self._pieces.append(data)
            return
        last = self._pieces[-1] if self._pieces else None
        if isinstance(last, bytearray) and len(last) < _TOGETHER:
            last += data
        elif data:
            self._pieces.append(bytearray(data))

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes."""
        self._skipped += count
        while self._pieces and self._skipped >= len(self._pieces[0]):
            gone = len(self._pieces.popleft())
            self._skipped -= gone
            self._cursor -= 1
            self._cursor_at -= gone
        if self._cursor < 0:
            self._cursor = self._cursor_at = 0
        assert self._pieces or not self._skipped

    def read(self, offset: int, most: int) -> bytes:
        """Up to `most` bytes from `offset` on; fewer only where there are no more."""
        offset += self._skipped
        if offset < self._cursor_at:
            self._cursor = self._cursor_at = 0
        found: list[bytes | bytearray] = []
        left = most
        while left and self._cursor < len(self._pieces):
            piece = self._pieces[self._cursor]
            start = offset - self._cursor_at
            if start < len(piece):
                part = piece if start == 0 and len(piece) <= left else piece[start : start + left]
                found.append(part)
                left -= len(part)
                offset += len(part)
            if offset - self._cursor_at < len(piece):
                break
            # The last piece may grow: stay there.
            if self._cursor == len(self._pieces) - 1:
                break
            self._cursor_at += len(piece)
            self._cursor += 1
        if len(found) == 1 and isinstance(found[0], bytes):
            return found[0]
        return b"".join(found)


# --- one direction, outgoing ----------------------------------------------------------------------


class End(NamedTuple):
    """How a direction ends: None is FINAL_DATA, which is TCP's FIN."""

    reset: Reset | None


class Outgoing:
    """What was given to be sent: its positions, and what of it is kept."""

    __slots__ = ("acked", "base", "end", "kept", "lapsed", "length", "most", "sent")

    def __init__(self, kept: Kept | None = None) -> None:
        #: The peer has handed on so many positions.
        self.acked = 0
        #: The first position that is kept.
        self.base = 0
        #: The next position to put on this connection.
        self.sent = 0
        #: Bytes that were given.
        self.length = 0
        #: The most positions that any connection has carried.
        self.most = 0
        self.end: End | None = None
        #: None until the first byte: an idle tunnel has none.
        self.kept = kept
        #: Nothing is kept for now.
        self.lapsed = False

    @property
    def positions(self) -> int:
        """All of them, the end included."""
        return self.length + (self.end is not None)

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        return self.length - self.base

    def give(self, data: bytes) -> None:
        """These are to be sent."""
        if self.kept is None:
            self.kept = KeptBytes()
        self.kept.append(data)
        self.length += len(data)

    def take(self, most: int) -> bytes:
        """The next bytes for this connection; b"" where there are none."""
        most = min(most, self.length - self.sent)
        if most <= 0:
            return b""
        assert self.kept is not None
        piece = self.kept.read(self.sent - self.base, most)
        assert piece
        self._put(len(piece))
        return piece

    def put_elsewhere(self, count: int) -> None:
        """So many new bytes go out now, and are in `kept` already, unless it has lapsed."""
        assert self.sent == self.length
        self.length += count
        if self.lapsed:
            self.base = self.length
        self._put(count)

    def take_end(self) -> bytes:
        """The capsule of the end, where that is what comes next."""
        if self.end is None or self.sent != self.length:
            return b""
        self._put(1)
        return FINAL if self.end.reset is None else reset(*self.end.reset)

    def _put(self, count: int) -> None:
        self.sent += count
        self.most = max(self.most, self.sent)
        if self.lapsed:
            self._forget(self.sent)

    def acknowledge(self, position: int) -> None:
        """The peer has handed on so many. Raises Violation for a count that is not true."""
        if not self.acked <= position <= self.sent:
            raise Violation(f"the peer acknowledges {position}, after {self.acked} and of {self.sent} sent")
        self.acked = position
        self._forget(position)

    def go_on(self, received: int, acked: int) -> None:
        """Resume: the peer has received up to `received`, and handed on up to `acked`. Raises Violation or Gap."""
        if not self.acked <= acked <= received <= self.most:
            raise Violation(f"the peer claims {received} received and {acked} handed on, of {self.most} sent")
        if received < self.base:
            raise Gap("bytes were lost: they were sent while both directions were stuck, and were not kept")
        self.acked = acked
        self._forget(acked)
        self.sent = received

    def drop_all(self) -> None:
        """Keep nothing that was sent."""
        self._forget(self.sent)

    def _forget(self, upto: int) -> None:
        count = min(upto, self.length) - self.base
        if count > 0:
            assert self.kept is not None
            self.kept.drop(count)
            self.base += count
