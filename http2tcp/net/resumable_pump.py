"""The Linux pumps of a tunnel that comes back: bulk is spliced, and tee(2) keeps what the peer has not acknowledged.

Toward the peer: source → pipe, tee(pipe → a second pipe, which keeps the bytes), a header, pipe → connection. An ACK
drops bytes from the second pipe. When a connection is lost, the bytes in the second pipe move into the heap, and are
sent again from there: that is rare, and leaves no order of pipes to get wrong.

From the peer: payload goes through a pipe to the sink. The bytes in that pipe belong to the session: they reach the
sink even if the connection is lost.

During any wait, the session may get another connection, with another descriptor or none. So neither pump keeps a
connection's descriptor across a wait. Keystrokes, and the data of connections without a plain descriptor (such as TLS),
are read into memory and sent from there.
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

# The size of a read of interactive traffic, in bytes. A flow is bulky once a read fills it, or once this much payload
# of a capsule is still to come.
SMALL = 64 * 1024
# A flow that brings fewer bytes than this at a time has gone quiet.
QUIET = 16 * 1024
# The most bytes to splice in one call. A pipe's capacity is a number of pieces, and a piece of a large packet has up to
# 32 KiB, so this much may fit.
_STEP = 2 * 1024 * 1024
# The most bytes to read at a time from a pipe into the heap.
_PIECE = 1024 * 1024


async def to_session(source: Stream, sink: Stream, flow: Flow) -> None:
    """Like `http2tcp.net.pump.copy`, but from a descriptor to a session."""
    assert isinstance(sink, ResumableStream)
    await _ToSession(source, sink, _descriptor(source.source_fd()), flow).run()


async def from_session(source: Stream, sink: Stream, flow: Flow) -> None:
    """Like `http2tcp.net.pump.copy`, but from a session to a descriptor."""
    assert isinstance(source, ResumableStream)
    await _FromSession(source, _descriptor(sink.sink_fd()), flow).run()


def _descriptor(fd: int | None) -> int:
    if fd is None:
        raise trio.ClosedResourceError("this stream was already closed")
    return fd


# --- kept bytes -----------------------------------------------------------------------------------


class _Segment:
    """Consecutive kept bytes that are in the same place: in one heap store, or in the pipe."""

    __slots__ = ("heap", "held")

    def __init__(self, heap: Kept | None, held: int) -> None:
        #: The store in the heap that has the bytes; None: they are in the pipe.
        self.heap = heap
        self.held = held


class KeptInPipe:
    """Kept bytes. Those that came by tee(2) are in a pipe; it goes back to the pool when it is empty."""

    __slots__ = ("_pipe", "_segments")

    def __init__(self, before: Kept | None = None, held: int = 0) -> None:
        """`before` already keeps `held` bytes."""
        # The segments, in order. Never two of the heap, or two of the pipe, in a row.
        self._segments: deque[_Segment] = deque()
        if before is not None and held:
            self._segments.append(_Segment(before, held))
        self._pipe: Pipe | None = None

    def append(self, data: bytes) -> None:
        """Keep `data` behind the bytes that are already kept."""
        heap = self._segments[-1].heap if self._segments else None
        if heap is None:
            heap = KeptBytes()
            self._segments.append(_Segment(heap, 0))
        heap.append(data)
        self._segments[-1].held += len(data)

    def ready(self) -> bool:
        """Get a pipe for `append_from`, if there is none yet. Return whether there is one now."""
        if self._pipe is None:
            self._pipe = pipes.take()
        return self._pipe is not None

    def append_from(self, pipe: Pipe) -> int:
        """Keep the bytes at the front of `pipe`, without removing them. Return how many were kept; 0 if none could be.

        Raises OSError if the system does not support tee(2).
        """
        if not self.ready():
            return 0
        assert self._pipe is not None
        copied = tee(pipe.exit, self._pipe.entry, pipe.held)
        if not copied and self._pipe.held:
            # Our pipe is full: its capacity is a number of pieces, however small. Move its bytes into the heap, and try
            # again.
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
        """Give the pipe back if it is empty."""
        if self._pipe is not None and not self._pipe.held:
            pipes.give_back(self._pipe)
            self._pipe = None

    def read(self, offset: int, most: int) -> bytes:
        """Return up to `most` bytes from `offset` on. This moves all kept bytes into the heap."""
        self.fold()
        heap = self._segments[0].heap if self._segments else None
        return b"" if heap is None else heap.read(offset, most)

    def fold(self) -> None:
        """Move all kept bytes into the heap, and give the pipe back."""
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
        """Forget all kept bytes, and give the pipe back."""
        self._segments.clear()
        if self._pipe is not None:
            # The pool closes a pipe that still holds bytes.
            pipes.give_back(self._pipe)
            self._pipe = None


def take(pipe: Pipe, most: int) -> bytes:
    """Read up to `most` bytes out of a pipe."""
    data = os.read(pipe.exit, most)
    pipe.held -= len(data)
    return data


def discard(pipe: Pipe, count: int) -> None:
    """Drop the first `count` bytes of a pipe, without a copy if possible."""
    while count:
        try:
            gone = os.splice(pipe.exit, nowhere(), count, flags=os.SPLICE_F_NONBLOCK)
        except OSError:
            # /dev/null cannot be opened: no descriptor is left, or this system's /dev is empty. Read the bytes instead.
            gone = len(os.read(pipe.exit, min(count, CHUNK)))
        pipe.held -= gone
        count -= gone


@functools.cache
def nowhere() -> int:
    """Return the descriptor of /dev/null, into which bytes are dropped. The process opens it once and keeps it."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def tee(source: int, sink: int, count: int) -> int:
    """Copy up to `count` bytes from the front of one pipe into another, without removing them.

    Return how many were copied; 0 if the other pipe is full. Raises OSError.
    """
    return _load_tee()(source, sink, count)


@functools.cache
def _load_tee() -> Callable[[int, int, int], int]:
    # Python has no tee(2), so call it by ctypes. Imported here, so that only the first bulky flow pays for it.
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
        # `Pump` takes a sink, but here the sink is the session's present connection, which `_follow` looks up.
        super().__init__(fd, fd, flow)
        self._from = source
        self._session = session
        # How many bytes at the front of the pipe the session has already counted, but which are not written yet.
        self._going = 0
        # The pipe that `_empty` is sending; `_begin` and `_follow` use it.
        self._pipe: Pipe | None = None

    async def run(self) -> None:
        """Pump until the source's EOF. Raises SourceBroke or SinkBroke."""
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
        """Wait for bytes and read them; b"" at EOF, None if there are none after all."""
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
        """Tee and splice until the source goes quiet or this is no longer possible. Return whether it reached EOF."""
        pipe: Pipe | None = None
        machine = self._session.machine
        largest = 1
        try:
            while self._splices:
                if not (room := self._room()):
                    # Hold no pipe while waiting.
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
        """How many bytes may be spliced past the session now."""
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
        """Send the bytes in the pipe. Give the session those that cannot be spliced, so that it sends them."""
        self._pipe = pipe
        try:
            while pipe.held:
                before = pipe.held
                await self._session.write_past(self._begin, self._follow)
                if pipe.held == before or self._going:
                    return
        finally:
            # Do this even after a cancel: the tunnel may still have to deliver the bytes that it took from the source.
            self._hand_over(pipe)

    def _begin(self, _: int) -> bytes:
        """Keep the bytes in the pipe, as many as possible. Return the head to write before them; b"" if none can go."""
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
        """Write the head that `_begin` returned, and the bytes that it announces. Raises BrokenResourceError."""
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
        # Drop the bytes that the session has already counted as given.
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
        # `Pump` takes a source, but here the source is the session's present connection: `_move_payload` sets it.
        super().__init__(sink, sink, flow)
        self._session = session
        session.sip = SMALL

    async def run(self) -> None:
        """Pump until the peer's end. Raises SourceBroke or SinkBroke."""
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
        """Splice the rest of this capsule's payload, as long as more of it has already arrived."""
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
                # If this finds no bytes, the next read tells why: none has come yet, or the connection ended or broke.
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
                    # An ACK is due. Let the task that sends it run now, before more payload is moved.
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
