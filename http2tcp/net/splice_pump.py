"""The Linux pump: socket → pipe → socket without a copy, by splice(2).

Small traffic is read and written. A flow that turns out to be bulky borrows a pipe while it has bytes to
move, and returns it before it waits, so an idle tunnel holds none. Where pipes or descriptors run out, or a
descriptor cannot be spliced, the bytes are copied instead. The pipe is always emptied before the source is
read again: otherwise EAGAIN could mean that the pipe is full, or that the source has nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from enum import Enum

import trio

from http2tcp.net.pipes import PIPE_SIZE, Pipe, grow, pipes
from http2tcp.net.pump import Flow, SinkBroke, SourceBroke
from http2tcp.net.streams import PORTABLE

#: Whether this system splices.
AVAILABLE = sys.platform == "linux" and hasattr(os, "splice") and not PORTABLE

# The size of a read. A flow counts as bulky once a read was filled.
SMALL = 64 * 1024
# A flow that brings less than this at a time no longer counts as bulky.
_QUIET = 16 * 1024
# If stdin or stdout is a pipe, a bulky flow enlarges it to this size. With the usual 64 KiB each step switches to the
# other process, which costs twice the CPU. 1 MiB is not faster, and 64 clients would use up the user's limit.
_STDIO_PIPE_SIZE = 256 * 1024
# After this many bytes, let the other tasks run.
_TURN = 4 * 1024 * 1024

UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


class Found(Enum):
    """What a step of splicing found at the source."""

    #: Bytes, so there may be more.
    BYTES = "bytes"
    #: Nothing for now, or so little that reading and writing is cheaper.
    LITTLE = "little"
    EOF = "eof"


class Pump:
    """Moves raw bytes from one descriptor to another."""

    __slots__ = ("_direct", "_flow", "_sink", "_source", "_splices", "_turn")

    def __init__(self, source: int, sink: int, flow: Flow) -> None:
        self._source = source
        self._sink = sink
        self._flow = flow
        #: Which end is itself a pipe, if any: then splicing needs no other pipe.
        self._direct = "source" if _is_pipe(source) else "sink" if _is_pipe(sink) else ""
        self._splices = True
        self._turn = 0

    async def run(self) -> None:
        """Pump until EOF."""
        wait_readable, flow = trio.lowlevel.wait_readable, self._flow
        source, sink = self._source, self._sink
        while True:
            # Each keystroke takes this path. It calls no helper coroutines: each would add a microsecond or two.
            flow.waits()
            await wait_readable(source)
            flow.received()
            try:
                data = os.read(source, SMALL)
            except BlockingIOError:
                continue
            except OSError as error:
                raise SourceBroke(words(error)) from error
            if not data:
                return
            try:
                written = os.write(sink, data)
            except BlockingIOError:
                written = 0
            except OSError as error:
                raise SinkBroke(words(error)) from error
            if written < len(data):
                await self._write_rest(memoryview(data)[written:])
            flow.bytes += len(data)
            bulky = len(data) == SMALL
            del data
            if bulky and self._splices and await self._move_bulk() is Found.EOF:
                return

    async def _wait(self) -> None:
        self._flow.waits()
        await trio.lowlevel.wait_readable(self._source)
        self._flow.received()

    def _read(self) -> bytes | None:
        """Read what has arrived; b"" at EOF, None if there is nothing after all."""
        try:
            return os.read(self._source, SMALL)
        except BlockingIOError:
            return None
        except OSError as error:
            raise SourceBroke(words(error)) from error

    async def _write(self, data: bytes) -> None:
        try:
            written = os.write(self._sink, data)
        except BlockingIOError:
            written = 0
        except OSError as error:
            raise SinkBroke(words(error)) from error
        if written < len(data):
            await self._write_rest(memoryview(data)[written:])

    async def _write_rest(self, view: memoryview) -> None:
        while view:
            await trio.lowlevel.wait_writable(self._sink)
            try:
                view = view[os.write(self._sink, view) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise SinkBroke(words(error)) from error

    async def _move_bulk(self) -> Found:
        """Splice until the source has gone quiet (LITTLE) or ended (EOF)."""
        if self._direct:
            return await self._move_directly()
        while True:
            pipe = pipes.take()
            if pipe is None:
                return Found.LITTLE
            try:
                found = await self._through(pipe)
            finally:
                pipes.give_back(pipe)
            if found is not Found.BYTES:
                return found
            await self._wait()

    async def _move_directly(self) -> Found:
        """Like `_move_bulk`, but without a pipe of our own, since one end is itself a pipe."""
        grow(self._source if self._direct == "source" else self._sink, _STDIO_PIPE_SIZE)
        empty = False
        while True:
            try:
                count = os.splice(self._source, self._sink, PIPE_SIZE, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                # Either end may be the cause. Wait for the sink first. If splicing still blocks when the sink has room,
                # the source is the cause.
                if empty:
                    await self._wait()
                else:
                    await trio.lowlevel.wait_writable(self._sink)
                empty = not empty
                continue
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    self._splices = False
                    return Found.LITTLE
                # Reading from a pipe does not fail, and reading from a socket does not fail with EPIPE.
                if error.errno == errno.EPIPE or self._direct == "source":
                    raise SinkBroke(words(error)) from error
                raise SourceBroke(words(error)) from error
            if count == 0:
                return Found.EOF
            empty = False
            self._flow.bytes += count
            if count < _QUIET:
                return Found.LITTLE
            await self._take_turns(count)

    async def _take_turns(self, count: int) -> None:
        # Count a small step as a full read. Otherwise a source that brings single bytes without a pause would run for
        # very long.
        self._turn += max(count, SMALL)
        if self._turn >= _TURN:
            self._turn = 0
            await trio.lowlevel.checkpoint()

    async def _through(self, pipe: Pipe) -> Found:
        """Move what the source has now through the pipe. BYTES: it brings enough at a time to go on splicing."""
        largest = 0
        while (found := self._fill(pipe, pipe.size)) is Found.BYTES:
            largest = max(largest, pipe.held)
            await self._take_turns(pipe.held)
            await self._empty(pipe)
        return Found.BYTES if found is Found.LITTLE and largest >= _QUIET else found

    def _fill(self, pipe: Pipe, limit: int) -> Found:
        """Splice up to `limit` bytes into the empty pipe, and set `pipe.held` to their number."""
        try:
            pipe.held = os.splice(self._source, pipe.entry, limit, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return Found.LITTLE
        except OSError as error:
            if error.errno in UNSUPPORTED:
                self._splices = False
                return Found.LITTLE
            raise SourceBroke(words(error)) from error
        return Found.BYTES if pipe.held else Found.EOF

    async def _empty(self, pipe: Pipe) -> None:
        while pipe.held:
            try:
                count = os.splice(pipe.exit, self._sink, pipe.held, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink)
                continue
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    self._splices = False
                    rest = os.read(pipe.exit, pipe.held)
                    await self._write(rest)
                    self._flow.bytes += len(rest)
                    pipe.held = 0
                    return
                raise SinkBroke(words(error)) from error
            pipe.held -= count
            self._flow.bytes += count


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def words(error: OSError) -> str:
    """Say what broke, in a few words."""
    return f"the connection broke: {error.strerror}"
