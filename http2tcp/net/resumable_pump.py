"""The Linux pumps of a tunnel that comes back: bulk is spliced, and tee(2) keeps what the peer has not acknowledged.

Toward the peer: source → pipe, tee(pipe → a second pipe, which keeps the bytes), a header, pipe → connection. An ACK
drops bytes from the second pipe. Where a connection is lost, what it keeps goes into the heap, and is sent again from
there: that is rare, and leaves no order of pipes to get wrong.

From the peer: payload goes through a pipe to the sink. What is in that pipe is the session's: it reaches the sink
whatever becomes of the connection.

The connection may change at any wait, and with it its descriptor, and whether it has one. So neither pump keeps a
descriptor of a connection over a wait. Keystrokes, and connections that are no bare descriptors, are read and sent.
"""

from __future__ import annotations

import errno
import functools
import os
from collections import deque
from collections.abc import Callable

import trio

from http2tcp.net.pipes import Pipe, pipes
from http2tcp.net.pump import Flow, SinkBroke, SourceBroke
from http2tcp.net.resumable import Attachment, ResumableStream
from http2tcp.net.splice_pump import UNSUPPORTED, Found, Pump, words
from http2tcp.net.streams import CHUNK, Stream
from http2tcp.protocol.resume_outgoing import Kept, KeptBytes

# One read of interactive traffic. A read that fills it is what makes a flow bulky, and so does as much payload to come.
SMALL = 64 * 1024
# A flow that brings less at a time has gone quiet.
QUIET = 16 * 1024
# What is asked of the kernel at a time. A pipe is bounded by its pieces, and one of a large packet has up to 32 KiB.
_STEP = 2 * 1024 * 1024
# What is read at a time from a pipe whose bytes go into the heap.
_PIECE = 1024 * 1024


async def to_session(source: Stream, sink: Stream, flow: Flow) -> None:
    """As `http2tcp.net.pump.copy`, from a descriptor to a session."""
    assert isinstance(sink, ResumableStream)
    await _ToSession(source, sink, _descriptor(source.source_fd()), flow).run()


async def from_session(source: Stream, sink: Stream, flow: Flow) -> None:
    """As `http2tcp.net.pump.copy`, from a session to a descriptor."""
    assert isinstance(source, ResumableStream)
    await _FromSession(source, _descriptor(sink.sink_fd()), flow).run()


def _descriptor(fd: int | None) -> int:
    if fd is None:
        raise trio.ClosedResourceError("this stream was already closed")
    return fd


# --- kept bytes -----------------------------------------------------------------------------------


class _Segment:
    """Bytes that lie together."""

    __slots__ = ("heap", "held")

    def __init__(self, heap: Kept | None, held: int) -> None:
        #: None: they are in the pipe.
        self.heap = heap
        self.held = held


class KeptInPipe:
    """Kept bytes, of which those that came by tee(2) are in a pipe. It has a pipe only while bytes are in it."""

    __slots__ = ("_pipe", "_segments")

    def __init__(self, before: Kept | None = None, held: int = 0) -> None:
        """`before` keeps `held` bytes already."""
        # In order. Two of a kind are never neighbours.
        self._segments: deque[_Segment] = deque()
        if before is not None and held:
            self._segments.append(_Segment(before, held))
        self._pipe: Pipe | None = None

    def append(self, data: bytes) -> None:
        """Keep these behind the others."""
        heap = self._segments[-1].heap if self._segments else None
        if heap is None:
            heap = KeptBytes()
            self._segments.append(_Segment(heap, 0))
        heap.append(data)
        self._segments[-1].held += len(data)

    def ready(self) -> bool:
        """Whether `append_from` has a pipe."""
        if self._pipe is None:
            self._pipe = pipes.take()
        return self._pipe is not None

    def append_from(self, pipe: Pipe) -> int:
        """Keep what is at the front of this pipe, without taking it out: how many bytes; 0 where that cannot be.

        Raises OSError where the system does not tee.
        """
        if not self.ready():
            return 0
        assert self._pipe is not None
        copied = tee(pipe.exit, self._pipe.entry, pipe.held)
        if not copied and self._pipe.held:
            # A pipe has room for so many pieces, however small they are. What it has is copied, and it serves on.
            self.fold()
            return self.append_from(pipe)
        if copied:
            self._pipe.held += copied
            if self._segments and self._segments[-1].heap is None:
                self._segments[-1].held += copied
            else:
                self._segments.append(_Segment(None, copied))
        return copied

    def drop(self, count: int) -> None:
        """Forget the first `count` bytes."""
        while count:
            segment = self._segments[0]
            step = min(count, segment.held)
            if segment.heap is not None:
                segment.heap.drop(step)
            else:
                assert self._pipe is not None
                discard(self._pipe, step)
            segment.held -= step
            count -= step
            if not segment.held:
                self._segments.popleft()
        self.rest()

    def rest(self) -> None:
        """Give an empty pipe back."""
        if self._pipe is not None and not self._pipe.held:
            pipes.give_back(self._pipe)
            self._pipe = None

    def read(self, offset: int, most: int) -> bytes:
        """Up to `most` bytes from `offset` on. All of them go into the heap."""
        self.fold()
        heap = self._segments[0].heap if self._segments else None
        return b"" if heap is None else heap.read(offset, most)

    def fold(self) -> None:
        """Put everything into the heap, and give the pipe back."""
        if self._pipe is None:
            return
        if not self._segments or self._segments[0].heap is None:
            self._segments.appendleft(_Segment(KeptBytes(), 0))
        first, *others = self._segments
        heap = first.heap
        assert heap is not None
        for segment in others:
            while segment.held:
                if segment.heap is None:
                    piece = take(self._pipe, min(segment.held, _PIECE))
                else:
                    piece = segment.heap.read(0, segment.held)
                    segment.heap.drop(len(piece))
                heap.append(piece)
                first.held += len(piece)
                segment.held -= len(piece)
        self._segments = deque([first] if first.held else [])
        self.rest()

    def close(self) -> None:
        """Forget everything."""
        self._segments.clear()
        if self._pipe is not None:
            # The pool closes one that still holds bytes.
            pipes.give_back(self._pipe)
            self._pipe = None


def take(pipe: Pipe, most: int) -> bytes:
    """Copy bytes out of a pipe."""
    data = os.read(pipe.exit, most)
    pipe.held -= len(data)
    return data


def discard(pipe: Pipe, count: int) -> None:
    """Drop so many from the front of a pipe, without a copy."""
    while count:
        try:
            gone = os.splice(pipe.exit, nowhere(), count, flags=os.SPLICE_F_NONBLOCK)
        except OSError:
            # No descriptor is left for it, or this system's /dev is empty.
            gone = len(os.read(pipe.exit, min(count, CHUNK)))
        pipe.held -= gone
        count -= gone


@functools.cache
def nowhere() -> int:
    """Where dropped bytes go: one descriptor, which the process keeps."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def tee(source: int, sink: int, count: int) -> int:
    """Double the first `count` bytes of one pipe into another: how many; 0 where the other is full. Raises OSError."""
    return _load_tee()(source, sink, count)


@functools.cache
def _load_tee() -> Callable[[int, int, int], int]:
    # Python has no tee(2) of its own. Only the first bulky flow pays for this import.
    import ctypes

    function = getattr(ctypes.CDLL(None, use_errno=True), "tee", None)
    if function is not None:
        function.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint
        function.restype = ctypes.c_ssize_t

    def call(source: int, sink: int, count: int) -> int:
        if function is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        copied = int(function(source, sink, count, os.SPLICE_F_NONBLOCK))
        if copied < 0:
            code = ctypes.get_errno()
            if code == errno.EAGAIN:
                return 0
            raise OSError(code, os.strerror(code))
        return copied

    return call


# --- toward the peer ------------------------------------------------------------------------------


class _ToSession(Pump):
    __slots__ = ("_from", "_going", "_pipe", "_session")

    def __init__(self, source: Stream, session: ResumableStream, fd: int, flow: Flow) -> None:
        # The sink is whichever connection there is.
        super().__init__(fd, fd, flow)
        self._from = source
        self._session = session
        # Bytes at the front of the pipe that are kept and not written yet.
        self._going = 0
        self._pipe: Pipe | None = None

    async def run(self) -> None:
        """Until EOF."""
        while True:
            data = await self._take_some()
            if data is None:
                continue
            if not data:
                return
            try:
                await self._session.send_all(data)
            except trio.BrokenResourceError as error:
                raise SinkBroke(str(error)) from error
            self._flow.bytes += len(data)
            bulky = len(data) >= SMALL
            # An idle tunnel does not keep its last chunk.
            del data
            if bulky and self._splices and await self._tee_bulk():
                return

    async def _take_some(self) -> bytes | None:
        """What has arrived; b"" at EOF, None where there is nothing after all."""
        if ahead := self._from.take_ahead():
            return ahead
        await self._wait()
        most = SMALL if self._splices and self._session.carrier_fd() is not None else CHUNK
        try:
            return os.read(self._source, most)
        except BlockingIOError:
            return None
        except OSError as error:
            raise SourceBroke(words(error)) from error

    async def _tee_bulk(self) -> bool:
        """Tee and splice until the source has gone quiet, or the connection is no descriptor; True at the EOF."""
        pipe: Pipe | None = None
        machine = self._session.machine
        largest = 1
        try:
            while self._splices:
                if not (room := self._room()):
                    # Nothing is held while waiting.
                    _give_back(pipe)
                    pipe = None
                    await self._wait_for_room()
                    if not (room := self._room()):
                        return False
                pipe = pipe or pipes.take()
                if pipe is None or not (machine.out.lapsed or self._kept().ready()):
                    return False
                found = self._fill(pipe, min(_STEP, room))
                count = pipe.held
                if found is Found.LITTLE:
                    _give_back(pipe)
                    pipe = None
                    self._rest()
                    if largest < QUIET:
                        return False
                    largest = 1
                    await self._wait()
                elif found is Found.EOF:
                    return True
                else:
                    largest = max(largest, count)
                    await self._empty(pipe)
                    await self._take_turns(count)
            return False
        finally:
            _give_back(pipe)
            self._rest()

    def _room(self) -> int:
        """How many bytes may go past the session now."""
        machine = self._session.machine
        if machine.wants_write or self._session.carrier_fd() is None:
            return 0
        return machine.room

    async def _wait_for_room(self) -> None:
        try:
            await self._session.wait_for_room()
        except trio.BrokenResourceError as error:
            raise SinkBroke(str(error)) from error

    def _kept(self) -> KeptInPipe:
        out = self._session.machine.out
        if not isinstance(out.kept, KeptInPipe):
            out.kept = self._session.piped = KeptInPipe(out.kept, out.held)
        return out.kept

    def _rest(self) -> None:
        kept = self._session.machine.out.kept
        if isinstance(kept, KeptInPipe):
            kept.rest()

    async def _empty(self, pipe: Pipe) -> None:
        """Send what is in the pipe. What cannot be sent this way becomes the session's, too."""
        self._pipe = pipe
        try:
            while pipe.held:
                before = pipe.held
                await self._session.write_past(self._begin, self._follow)
                if pipe.held == before or self._going:
                    return
        finally:
            # Even where this is cancelled: the tunnel may have to deliver what it took.
            self._hand_over(pipe)

    def _begin(self, _: int) -> bytes:
        """Keep what is in the pipe, as much as may be, and say what comes before it; b"" where it cannot go."""
        session, machine, pipe = self._session, self._session.machine, self._pipe
        assert pipe is not None
        out = machine.out
        if out.sent != out.length or out.end is not None or machine.broken is not None or session.carrier_fd() is None:
            return b""
        count = pipe.held
        if not out.lapsed:
            try:
                count = self._kept().append_from(pipe)
            except OSError:
                self._splices = False
                return b""
            if not count:
                return b""
        self._going = count
        self._flow.bytes += count
        session.stir_if_asleep()
        return machine.begin_data(count)

    async def _follow(self, attachment: Attachment, head: bytes) -> None:
        """Write what `_begin` has given, and what it has announced. Raises BrokenResourceError."""
        pipe = self._pipe
        assert pipe is not None
        while self._going:
            fd = self._session.carrier_fd()
            if fd is None or attachment is not self._session.attachment:
                raise trio.ClosedResourceError("another connection took its place")
            try:
                if head:
                    head = head[os.write(fd, head) :]
                    continue
                count = os.splice(pipe.exit, fd, self._going, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(fd)
                continue
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise trio.BrokenResourceError(words(error)) from error
                self._splices = False
                rest = take(pipe, self._going)
                self._going -= len(rest)
                await attachment.carrier.send_all(rest)
                continue
            pipe.held -= count
            self._going -= count

    def _hand_over(self, pipe: Pipe) -> None:
        # The session has already counted these bytes.
        discard(pipe, self._going)
        self._going = 0
        machine = self._session.machine
        while pipe.held:
            data = take(pipe, _PIECE)
            if machine.out.end is None:
                machine.give(data)
                self._flow.bytes += len(data)


def _give_back(pipe: Pipe | None) -> None:
    if pipe is not None:
        pipes.give_back(pipe)


# --- from the peer --------------------------------------------------------------------------------


class _FromSession(Pump):
    __slots__ = ("_session",)

    def __init__(self, session: ResumableStream, sink: int, flow: Flow) -> None:
        # The source is whichever connection there is.
        super().__init__(sink, sink, flow)
        self._session = session
        session.sip = SMALL

    async def run(self) -> None:
        """Until the peer's end."""
        session, flow = self._session, self._flow
        while True:
            flow.waits()
            try:
                data = await session.receive_some()
            except trio.BrokenResourceError as error:
                raise SourceBroke(str(error)) from error
            flow.received()
            if not data:
                return
            await self._write(data)
            flow.bytes += len(data)
            # An idle tunnel does not keep its last chunk.
            del data
            if self._splices and session.machine.payload_left >= SMALL:
                await self._move_payload()

    async def _move_payload(self) -> None:
        """Splice the rest of this capsule's payload, as far as it comes without a pause."""
        session = self._session
        session.take_back()
        attachment = session.attachment
        pipe = pipes.take()
        if pipe is None:
            return
        try:
            while attachment is not None and attachment is session.attachment:
                fd = session.incoming_fd()
                left = session.machine.payload_left
                if fd is None or not left:
                    return
                self._source = fd
                # Nothing now, the end of the connection, or its break: the next read tells which.
                try:
                    found = self._fill(pipe, min(left, _STEP))
                except SourceBroke:
                    return
                if found is not Found.BYTES:
                    return
                count = pipe.held
                await session.take_past(attachment, count)
                await self._empty(pipe)
                if session.machine.wants_write:
                    # An ACK is due. It does not wait behind what is still to come.
                    await trio.lowlevel.checkpoint()
                else:
                    await self._take_turns(count)
        except trio.BrokenResourceError as error:
            raise SourceBroke(str(error)) from error
        finally:
            session.keep_in_hand(pipe.held)
            pipes.give_back(pipe)

    async def _empty(self, pipe: Pipe) -> None:
        while pipe.held:
            try:
                count = os.splice(pipe.exit, self._sink, pipe.held, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sink)
                continue
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise SinkBroke(words(error)) from error
                self._splices = False
                rest = take(pipe, pipe.held)
                await self._write(rest)
                count = len(rest)
            else:
                pipe.held -= count
            self._flow.bytes += count
            self._session.handed_on(count)
