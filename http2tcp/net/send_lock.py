"""A lock that lets only one task at a time send on a stream."""

from __future__ import annotations

import trio


class SendLock:
    """A task holds this lock while it sends, so that no keepalive ends up in the middle of another task's bytes.

    A send that fails or is cancelled may have sent a part, so nothing can be sent after it: taking the lock then raises
    BrokenResourceError.
    """

    __slots__ = ("_ended", "_torn", "held", "released_at")

    def __init__(self) -> None:
        self.held = False
        #: When the last holder released it, on trio's clock.
        self.released_at = trio.current_time()
        self._ended: trio.Event | None = None
        self._torn = False

    async def __aenter__(self) -> None:
        while self.held:
            if self._ended is None:
                self._ended = trio.Event()
            await self._ended.wait()
        if self._torn:
            raise trio.BrokenResourceError("an earlier send was not done to its end")
        # Take a cancellation here, before the first byte is sent: later it would tear the stream.
        await trio.lowlevel.checkpoint_if_cancelled()
        self.held = True

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.held = False
        self._torn = kind is not None
        self.released_at = trio.current_time()
        if self._ended is not None:
            self._ended.set()
            self._ended = None
