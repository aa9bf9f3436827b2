"""A relay's side in memory: trio's memory streams with what `http2tcp.net.streams.Stream` adds to them.

A reset lets through what was sent before it, as TCP does between two hosts that keep up.
"""

from __future__ import annotations

import math

import trio
import trio.testing

from http2tcp.net.streams import Bytes, Ends, HalfCloseUnsupported, Stream


class _Wire:
    """One direction."""

    def __init__(self) -> None:
        self.entry, self.exit = trio.testing.memory_stream_one_way_pair()
        self.reset = False
        self.room = trio.Event()
        self.room.set()

    def break_off(self) -> None:
        self.reset = True
        self.entry.close()
        self.room.set()


class MemoryStream(Stream):
    """One end of a connection in memory. Make a connection with `memory_pair`."""

    def __init__(self, outgoing: _Wire, incoming: _Wire, half_close: bool, eof_patience: float) -> None:
        self.ends = Ends(half_close=half_close, eof_patience=eof_patience)
        self._outgoing = outgoing
        self._incoming = incoming
        #: Bytes that this end took, and the most that one `send_all` was given.
        self.received = 0
        self.sent = 0
        self.largest_send = 0
        self.flushed = False
        self.closed = False
        self.aborted = False

    def stall(self) -> None:
        """Read nothing more: the other end's `send_all` blocks."""
        if self._incoming.room.is_set():
            self._incoming.room = trio.Event()

    def resume(self) -> None:
        """Read again."""
        self._incoming.room.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._ahead:
            await trio.lowlevel.checkpoint()
            return self.take_ahead(max_bytes)
        data = bytes(await self._incoming.exit.receive_some(max_bytes))
        if not data and self._incoming.reset:
            raise trio.BrokenResourceError("the connection broke: reset in memory")
        self.received += len(data)
        return data

    async def send_all(self, data: Bytes) -> None:
        self.largest_send = max(self.largest_send, len(data))
        await self._outgoing.room.wait()
        if self._outgoing.reset:
            raise trio.BrokenResourceError("the connection broke: reset in memory")
        await self._outgoing.entry.send_all(bytes(data))
        self.sent += len(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._outgoing.room.wait()

    async def send_eof(self) -> None:
        if not self.ends.half_close:
            raise HalfCloseUnsupported("made without half-close")
        await trio.lowlevel.checkpoint()
        self._outgoing.entry.close()

    async def flush(self) -> None:
        await self._outgoing.room.wait()
        self.flushed = True

    def abort(self) -> None:
        if not self.closed and not self.aborted:
            self.aborted = True
            self._outgoing.break_off()
            self._incoming.break_off()

    async def aclose(self) -> None:
        if not self.aborted:
            self.closed = True
            self._outgoing.entry.close()
            self._incoming.break_off()
        await trio.lowlevel.checkpoint()

    async def read_all(self) -> bytes:
        """Everything until EOF."""
        parts = []
        while data := await self.receive_some():
            parts.append(data)
        return b"".join(parts)


def memory_pair(*, half_close: bool = True, eof_patience: float = math.inf) -> tuple[MemoryStream, MemoryStream]:
    """The end for the relay, made as the arguments say, and the application's end."""
    there, back = _Wire(), _Wire()
    return MemoryStream(there, back, half_close, eof_patience), MemoryStream(back, there, True, math.inf)
