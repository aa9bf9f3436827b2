"""The Linux pump between capsules and raw bytes: headers are copied, payload is spliced.

To send, the pump first splices the source's bytes into a pipe. Then it knows their number: it writes the header, and
splices the pipe's bytes after it. To receive, it reads the header, and splices exactly the payload that it announces.
"""

from __future__ import annotations

import trio

from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.pipes import Pipe, pipes
from http2tcp.net.pump import Flow, SinkBroke, SourceBroke
from http2tcp.net.splice_pump import SMALL, Found, Pump
from http2tcp.net.streams import Stream
from http2tcp.protocol.capsule import data_header


async def capsule_pump(source: Stream, sink: Stream, source_fd: int, sink_fd: int, flow: Flow) -> None:
    """Like `http2tcp.net.splice_pump.Pump`, but one of the two streams is framed."""
    if isinstance(source, CapsuleStream):
        await _FromCapsules(source, source_fd, sink_fd, flow).run()
    elif isinstance(sink, CapsuleStream):
        await _ToCapsules(sink, source_fd, sink_fd, flow).run()


class _ToCapsules(Pump):
    __slots__ = ("_stream",)

    def __init__(self, stream: CapsuleStream, source: int, sink: int, flow: Flow) -> None:
        super().__init__(source, sink, flow)
        self._stream = stream
        # Always use a pipe of our own, even if an end is a pipe: only then do we know how many bytes the header must
        # announce.
        self._direct = ""

    async def run(self) -> None:
        """Pump until EOF."""
        while True:
            await self._wait()
            data = self._read()
            if data is None:
                continue
            if not data:
                return
            bulky = len(data) == SMALL
            await self._send(data)
            del data
            if bulky and self._splices and await self._move_bulk() is Found.EOF:
                return

    async def _send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise SinkBroke(str(error)) from error
        self._flow.bytes += len(data)

    async def _empty(self, pipe: Pipe) -> None:
        try:
            async with self._stream.send_lock:
                await self._write(data_header(pipe.held))
                await super()._empty(pipe)
        except trio.BrokenResourceError as error:
            raise SinkBroke(str(error)) from error


class _FromCapsules(Pump):
    __slots__ = ("_stream",)

    def __init__(self, stream: CapsuleStream, source: int, sink: int, flow: Flow) -> None:
        super().__init__(source, sink, flow)
        self._stream = stream

    async def run(self) -> None:
        """Pump until FINAL_DATA."""
        reader = self._stream.reader
        await self._decode(self._stream.inner.take_ahead() or None)
        while not reader.ended:
            await self._wait()
            await self._decode(self._read())
            if self._splices and reader.payload_left >= SMALL:
                await self._move_payload()

    async def _wait(self) -> None:
        with self._stream.patience() as patience:
            await super()._wait()
        if patience.cancelled_caught:
            from http2tcp.net.last_look import last_look

            try:
                await last_look(super()._wait, self._stream.given_up())
            except trio.BrokenResourceError as error:
                raise SourceBroke(str(error)) from error

    async def _decode(self, data: bytes | None) -> None:
        if data is None:
            return
        try:
            payload = await self._stream.decode(data)
        except trio.BrokenResourceError as error:
            raise SourceBroke(str(error)) from error
        if payload:
            await self._write(payload)
            self._flow.bytes += len(payload)
        try:
            self._stream.check()
        except trio.BrokenResourceError as error:
            raise SourceBroke(str(error)) from error

    async def _move_payload(self) -> None:
        """Splice the rest of this capsule's payload, as long as the source has bytes."""
        pipe = pipes.take()
        if pipe is None:
            return
        try:
            while left := self._stream.reader.payload_left:
                if self._fill(pipe, min(left, pipe.size)) is not Found.BYTES:
                    # Nothing for now, or EOF: the next read finds out which.
                    return
                self._stream.reader.took(pipe.held)
                await self._take_turns(pipe.held)
                await self._empty(pipe)
        finally:
            pipes.give_back(pipe)
