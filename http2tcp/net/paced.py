"""A stream that moves no more than so many bytes a second."""

from __future__ import annotations

import math
import socket

import trio

from http2tcp.net.streams import CHUNK, Bytes, SocketStream, check_size

# How late a piece may be to be made up for; what nobody sent is not saved up.
_LATE = 0.1


class PacedStream(SocketStream):
    """A socket that takes and gives no more than so many bytes a second in each direction.

    It is no bare descriptor to the relay, so that every byte passes here.
    """

    def __init__(self, sock: socket.socket, rate: float) -> None:
        """`rate`: bytes a second."""
        super().__init__(sock)
        self._rate = rate
        # Ten pieces a second are smooth enough, and few enough to cost nothing.
        self.piece = max(1, min(CHUNK, int(rate / 10)))
        # When the next bytes may move.
        self._receive_at = self._send_at = -math.inf

    def source_fd(self) -> int | None:
        """None: see the class."""
        return None

    sink_fd = source_fd

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `SocketStream.receive_some`, after the time that the bytes before have to take."""
        check_size(max_bytes)
        await trio.sleep_until(self._receive_at)
        data = await super().receive_some(min(max_bytes or self.piece, self.piece))
        self._receive_at = self._next(self._receive_at, len(data))
        return data

    async def _send(self, data: Bytes) -> None:
        # Piece by piece, each once the pieces before it have had their time. The first may be empty.
        with memoryview(data) as view:
            for start in range(0, max(1, len(view)), self.piece):
                await trio.sleep_until(self._send_at)
                piece = view[start : start + self.piece]
                await super()._send(piece)
                self._send_at = self._next(self._send_at, len(piece))

    def _next(self, due: float, size: int) -> float:
        """When the next bytes may move, after so many that were due then."""
        now = trio.current_time()
        # Who wakes up late catches up: a task sleeps a millisecond at least, which is 100 kB at 100 MB/s.
        return (due if now - due < _LATE else now) + size / self._rate
