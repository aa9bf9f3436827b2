"""One direction of a relay: bytes from a source to a sink until the source's EOF.

Every pump has the signature of `copy`, which works on any two streams. On Linux, `http2tcp.net.splice_pump` has the
pump between two bare descriptors.
"""

from __future__ import annotations

import math

import trio

from http2tcp.net.streams import Stream


class SourceBroke(Exception):
    """The source was reset or cut. `str(error)` says how, in a few words."""


class SinkBroke(Exception):
    """The sink takes no more bytes. `str(error)` says how, in a few words."""


class Flow:
    """What a relay knows about one direction: how many bytes the sink took, and how long the source may be silent.

    The pump calls `waits` and `received`, which move the deadline of one cancel scope. Silence counts only while the
    pump waits to receive: a direction whose sink is slow is not silent.
    """

    __slots__ = ("_scope", "_waiting", "bytes", "patience")

    def __init__(self) -> None:
        self.bytes = 0
        #: How long the source may be silent, in seconds.
        self.patience = math.inf
        self._scope: trio.CancelScope | None = None
        self._waiting = False

    def within(self, scope: trio.CancelScope) -> None:
        """Set the scope that is cancelled if the source is silent for too long."""
        self._scope = scope

    def limit_silence(self, patience: float) -> None:
        """From now on, the source may be silent for `patience` seconds."""
        self.patience = patience
        if self._waiting:
            self.waits()

    @property
    def ran_out(self) -> bool:
        """Whether the source was silent for too long. Only valid after the scope was left."""
        return self._waiting and self.patience != math.inf

    def waits(self) -> None:
        """Note that the pump is about to wait for the source."""
        self._waiting = True
        if self.patience != math.inf and self._scope is not None:
            self._scope.deadline = trio.current_time() + self.patience

    def received(self) -> None:
        """Note that the pump no longer waits for the source."""
        self._waiting = False
        if self.patience != math.inf and self._scope is not None:
            self._scope.deadline = math.inf


class WatchedFlow(Flow):
    """A flow that knows when its last byte moved. Only used with an idle timeout, since each update costs CPU."""

    __slots__ = ("_moved", "moved_at")

    @property
    def bytes(self) -> int:
        """See `Flow`."""
        return self._moved

    @bytes.setter
    def bytes(self, value: int) -> None:
        self._moved = value
        #: When the last byte moved, or the flow was made, on trio's clock.
        self.moved_at = trio.current_time()


async def copy(source: Stream, sink: Stream, flow: Flow) -> None:
    """Receive and send, one chunk at a time, until EOF. Raises SourceBroke or SinkBroke."""
    while True:
        flow.waits()
        try:
            data = await source.receive_some(sink.piece)
        except trio.BrokenResourceError as error:
            raise SourceBroke(str(error)) from error
        flow.received()
        if not data:
            return
        try:
            await sink.send_all(data)
        except trio.BrokenResourceError as error:
            raise SinkBroke(str(error)) from error
        flow.bytes += len(data)
        # While it waits for more, the tunnel must not keep its last chunk in memory.
        del data
