"""The Linux pump: socket → pipe → socket without a copy, by splice(2).

Small traffic keeps to read and write. A flow that proves bulky takes a pipe for as long as it has bytes
to move and gives it back before it waits, so an idle tunnel holds none. Where pipes or descriptors run
out, or a descriptor cannot be spliced, the bytes are copied instead. The pipe is always emptied before
the source is asked again: EAGAIN could otherwise mean either end.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

import trio

from http2tcp.net.pump import Flow, SinkBroke, SourceBroke
from http2tcp.net.streams import PORTABLE, Stream

_available = sys.platform == "linux" and hasattr(os, "splice") and not PORTABLE

# One read of interactive traffic. A read that fills it is what makes a flow bulky.
SMALL = 64 * 1024
# A flow that brings less at a time has gone quiet.
_QUIET = 16 * 1024
# The kernel's limit for everybody, fs.pipe-max-size, unless it was changed.
_PIPE_SIZE = 1024 * 1024
# What a bulky flow makes of stdin or stdout. With the usual 64 KiB every step changes the process, for
# twice the CPU; 1 MiB is no better, and 64 clients would use up the user's limit.
_STDIO_PIPE_SIZE = 256 * 1024
# A pipe beyond the user's page limit gets two pages, with which copying is faster.
_PIPE_USEFUL = 64 * 1024
# Pipes at work at once; 64 MiB is also what fs.pipe-user-pages-soft lets a user have. Where descriptors are few, one
# in eight is a pipe's at most: the others are for those who connect.
_MAX_PIPES = 64
_PIPE_SHARE = 1 / 16
# Pipes kept for the next flow.
_MAX_SPARE = 8
# Bytes after which the other tasks get their turn.
_TURN = 4 * 1024 * 1024

_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def can(source: Stream, sink: Stream) -> bool:
    """Whether both ends are bare descriptors on a system that splices."""
    if not _available or (source.framed and sink.framed):
        return False
    return source.source_fd() is not None and sink.sink_fd() is not None


async def pump(source: Stream, sink: Stream, flow: Flow) -> None:
    """As `http2tcp.net.pump.copy`, by descriptors."""
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
        from http2tcp.net.capsule_splice import capsule_pump

        await capsule_pump(source, sink, source_fd, sink_fd, flow)
    else:
        await Pump(source_fd, sink_fd, flow).run()


class Pump:
    """Raw bytes from one descriptor to another."""

    __slots__ = ("_direct", "_flow", "_sink", "_source", "_splices", "_turn")

    def __init__(self, source: int, sink: int, flow: Flow) -> None:
        self._source = source
        self._sink = sink
        self._flow = flow
        #: Which end is a pipe itself, so that no other is needed.
        self._direct = "source" if _is_pipe(source) else "sink" if _is_pipe(sink) else ""
        self._splices = True
        self._turn = 0

    async def run(self) -> None:
        """Until EOF."""
        wait_readable, flow = trio.lowlevel.wait_readable, self._flow
        source, sink = self._source, self._sink
        while True:
            # The way of a keystroke, written out: a coroutine more on it costs a microsecond or two.
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
            if bulky and self._splices and await self._move_bulk():
                return

    async def _wait(self) -> None:
        self._flow.waits()
        await trio.lowlevel.wait_readable(self._source)
        self._flow.received()

    def _read(self) -> bytes | None:
        """What has arrived; b"" at EOF, None where there is nothing after all."""
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

    async def _move_bulk(self) -> bool:
        """Splice until the source has gone quiet; True at its EOF."""
        if self._direct:
            return await self._move_directly()
        while True:
            pipe = pipes.take()
            if pipe is None:
                return False
            try:
                moved = await self._through(pipe)
            finally:
                pipes.give_back(pipe)
            if moved == 0:
                return True
            if moved < _QUIET:
                return False
            await self._wait()

    async def _move_directly(self) -> bool:
        """As `_move_bulk` where one end is a pipe itself."""
        grow(self._source if self._direct == "source" else self._sink, _STDIO_PIPE_SIZE)
        empty = False
        while True:
            try:
                count = os.splice(self._source, self._sink, _PIPE_SIZE, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                # Either end can mean it. The sink is asked first; with room there, it was the source.
                if empty:
                    await self._wait()
                else:
                    await trio.lowlevel.wait_writable(self._sink)
                empty = not empty
                continue
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._splices = False
                    return False
                # A source that is a pipe knows no errors, and a source that is a socket no EPIPE.
                if error.errno == errno.EPIPE or self._direct == "source":
                    raise SinkBroke(words(error)) from error
                raise SourceBroke(words(error)) from error
            if count == 0:
                return True
            empty = False
            self._flow.bytes += count
            if count < _QUIET:
                return False
            await self._take_turns(count)

    async def _take_turns(self, count: int) -> None:
        # A step has its price too: bytes that come one at a time, as fast as they are taken, are a long turn.
        self._turn += max(count, SMALL)
        if self._turn >= _TURN:
            self._turn = 0
            await trio.lowlevel.checkpoint()

    async def _through(self, pipe: Pipe) -> int:
        """Move what the source has through the pipe: the bytes of the largest step, 0 at EOF."""
        largest = 1
        while True:
            count = self._fill(pipe, pipe.size)
            if not count:
                return largest if count is None else 0
            largest = max(largest, count)
            await self._take_turns(count)
            await self._empty(pipe)

    def _fill(self, pipe: Pipe, limit: int) -> int | None:
        """Splice up to `limit` bytes into the pipe: 0 at EOF, None where there is nothing now."""
        try:
            pipe.held = os.splice(self._source, pipe.entry, limit, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self._splices = False
                return None
            raise SourceBroke(words(error)) from error
        return pipe.held

    async def _empty(self, pipe: Pipe) -> None:
        while pipe.held:
            try:
                count = os.splice(pipe.exit, self._sink, pipe.held, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink)
                continue
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._splices = False
                    rest = os.read(pipe.exit, pipe.held)
                    await self._write(rest)
                    self._flow.bytes += len(rest)
                    pipe.held = 0
                    return
                raise SinkBroke(words(error)) from error
            pipe.held -= count
            self._flow.bytes += count


class Pipe:
    """A pipe of 1 MiB, or of what the user's limits allow."""

    __slots__ = ("entry", "exit", "held", "size")

    def __init__(self) -> None:
        self.exit, self.entry = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        #: Bytes in it.
        self.held = 0
        self.size = grow(self.entry, _PIPE_SIZE)

    def close(self) -> None:
        """Give its descriptors back."""
        os.close(self.entry)
        os.close(self.exit)


class PipePool:
    """A bounded pool of empty pipes."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self._taken = 0

    def take(self) -> Pipe | None:
        """A pipe, or None where there are to be no more."""
        if self._taken >= _MAX_PIPES:
            return None
        if self._spare:
            self._taken += 1
            return self._spare.pop()
        # It can change while the process runs; a pipe is seldom made. Below zero there is no limit.
        descriptors = os.sysconf("SC_OPEN_MAX")
        if 0 <= descriptors * _PIPE_SHARE < self._taken + 1:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.size < _PIPE_USEFUL:
            pipe.close()
            return None
        self._taken += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take it back. One that still holds bytes, of a flow that broke, is closed."""
        self._taken -= 1
        if pipe.held or len(self._spare) >= _MAX_SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)


pipes = PipePool()


def grow(pipe: int, size: int) -> int:
    """Make a pipe hold so many bytes, if it holds less and the kernel allows; what it holds then."""
    import fcntl

    held = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    if held >= size:
        return held
    try:
        return fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return held


def _is_pipe(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def words(error: OSError) -> str:
    """What broke, in a few words."""
    return f"the connection broke: {error.strerror}"
