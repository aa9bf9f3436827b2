"""A stream that limits how many bytes a second it moves."""

from __future__ import annotations

import math
import socket

import trio

from http2tcp.net.streams import CHUNK, Bytes, SocketStream, check_size

# If a piece moves late by less than this many seconds, the next piece may move sooner, which keeps the average rate.
# Longer pauses are not made up for.
_LATE = 0.1


class PacedStream(SocketStream):
    """A socket that receives and sends at most `rate` bytes a second, in each direction.

    It does not show the relay its descriptor, so that every byte passes through its methods.
    """

    def __init__(self, sock: socket.socket, rate: float) -> None:
        """`rate`: bytes a second."""
        super().__init__(sock)
        self._rate = rate
        # Ten pieces a second: smooth enough for a person, and rare enough to cost no CPU.
        self.piece = max(1, min(CHUNK, int(rate / 10)))
        # When the next bytes may move, on trio's clock.
        self._receive_at = self._send_at = -math.inf

    def source_fd(self) -> int | None:
        """Return None, so that every byte passes through this stream's methods."""
        return None

    sink_fd = source_fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Like `SocketStream.receive_some`, but first wait until `rate` allows the next bytes."""
        check_size(max_bytes)
        await trio.sleep_until(self._receive_at)
        data = await super().receive_some(min(max_bytes or self.piece, self.piece))
        self._receive_at = self._next(self._receive_at, len(data))
        return data

    async def _send(self, data: Bytes) -> None:
        # Before each piece, wait until `rate` allows it. If there is no data at all, send one empty piece.
        with memoryview(data) as view:
            for start in range(0, max(1, len(view)), self.piece):
                await trio.sleep_until(self._send_at)
                piece = view[start : start + self.piece]
                await super()._send(piece)
                self._send_at = self._next(self._send_at, len(piece))

    def _next(self, due: float, size: int) -> float:
        """Return when the next bytes may move, after `size` bytes that were allowed to move at `due`."""
        now = trio.current_time()
        # A slightly late piece must not delay the next ones: a sleep takes at least a millisecond, in which 100 kB are
        # due at 100 MB/s.
        return (due if now - due < _LATE else now) + size / self._rate
