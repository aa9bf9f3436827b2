"""The sender's side of one direction of a resumable tunnel: positions, and the bytes that are kept.

acked ≤ base ≤ sent ≤ length + 1, except that acked is length + 1 once the end has been acknowledged. A `Kept` keeps the
bytes between `base` and `length`. It may be another class than this module's `KeptBytes`: the positions do not depend
on where the bytes are.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

from http2tcp.protocol.capsule import FINAL, Reset, reset
from http2tcp.protocol.resume_wire import Gap, Violation

# --- kept bytes -----------------------------------------------------------------------------------


class Kept(Protocol):
    """Keeps the bytes of one direction that the peer has not acknowledged. Its first byte is at `Outgoing.base`."""

    def append(self, data: bytes) -> None:
        """Keep `data` behind the bytes that are already kept."""

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes."""

    def read(self, offset: int, most: int) -> bytes:
        """Return up to `most` bytes from `offset` on. May return fewer than there are, but at least one."""


# Pieces smaller than this, in bytes, are joined, so that keystrokes do not take thirty times their size in memory.
_SMALL = 4 * 1024
# A piece of this size or more grows no further.
_TOGETHER = 16 * 1024


class KeptBytes:
    """Keeps bytes in a deque. It stores large pieces as they are, without a copy, and joins small ones."""

    __slots__ = ("_cursor", "_cursor_at", "_pieces", "_skipped")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        # How many bytes of the first piece are already dropped.
        self._skipped = 0
        # Where the last `read` stopped: the index of a piece, and its offset from the first piece. A replay reads in
        # order, so the next `read` starts its search there.
        self._cursor = self._cursor_at = 0

    def append(self, data: bytes) -> None:
        """Keep `data` behind the bytes that are already kept."""
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
        """Return up to `most` bytes from `offset` on; fewer only if no more are kept."""
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
            # Leave the cursor at the last piece, which may still grow.
            if self._cursor == len(self._pieces) - 1:
                break
            self._cursor_at += len(piece)
            self._cursor += 1
        if len(found) == 1 and isinstance(found[0], bytes):
            return found[0]
        return b"".join(found)


# --- one direction, outgoing ----------------------------------------------------------------------


class End(NamedTuple):
    """How a direction ends."""

    #: The RESET that broke the direction off. None: it ended well, by FINAL_DATA, which stands for TCP's FIN.
    reset: Reset | None


class Outgoing:
    """The data of one direction that was given to be sent: its positions, and the bytes that are kept."""

    __slots__ = ("acked", "base", "end", "kept", "lapsed", "length", "most", "sent")

    def __init__(self, kept: Kept | None = None) -> None:
        #: How many positions the peer has handed on, as far as it has told us.
        self.acked = 0
        #: The position of the first byte that is kept.
        self.base = 0
        #: The next position to send on this connection.
        self.sent = 0
        #: How many bytes were given.
        self.length = 0
        #: The highest value of `sent` so far, on any connection.
        self.most = 0
        #: How this direction ended; None: it goes on.
        self.end: End | None = None
        #: None until the first byte is given: an idle tunnel needs no `Kept`.
        self.kept = kept
        #: Whether bytes are at present sent without being kept.
        self.lapsed = False

    @property
    def positions(self) -> int:
        """How many positions this direction has so far, the end included."""
        return self.length + (self.end is not None)

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        return self.length - self.base

    def give(self, data: bytes) -> None:
        """Keep data that is to be sent."""
        if self.kept is None:
            self.kept = KeptBytes()
        self.kept.append(data)
        self.length += len(data)

    def take(self, most: int) -> bytes:
        """Take the next bytes to send on this connection; b"" if there are none."""
        most = min(most, self.length - self.sent)
        if most <= 0:
            return b""
        assert self.kept is not None
        piece = self.kept.read(self.sent - self.base, most)
        assert piece
        self._put(len(piece))
        return piece

    def put_elsewhere(self, count: int) -> None:
        """Count `count` new bytes that go out now. They are already in `kept`, unless `lapsed`."""
        assert self.sent == self.length
        self.length += count
        if self.lapsed:
            self.base = self.length
        self._put(count)

    def take_end(self) -> bytes:
        """Take the capsule of the end, if the end comes next; otherwise b""."""
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
        """The peer has handed on `position` positions: forget them. Raises Violation if that cannot be true."""
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
        """Forget all bytes that were sent."""
        self._forget(self.sent)

    def _forget(self, upto: int) -> None:
        count = min(upto, self.length) - self.base
        if count > 0:
            assert self.kept is not None
            self.kept.drop(count)
            self.base += count
