"""A tunnel in capsules over any stream: half-close, truncation and keepalive survive what is in between."""

from __future__ import annotations

import math

import trio

from http2tcp.net.streams import CHUNK, Bytes, Stream
from http2tcp.net.turn import Turn
from http2tcp.protocol.capsule import DONE, FINAL, KEEPALIVE, CapsuleError, CapsuleReader, data_header

# How many of its own intervals a peer may miss before it is given up.
_MISSED = 3
# How long closing may try to say that nothing more comes.
_CLOSING = 1.0


class CapsuleStream(Stream):
    """The payload of capsules, over `inner`, which it owns.

    `keepalive` is the interval, in seconds, at which `attend` breaks our own silence; `peer_keepalive` is
    the interval that the peer has announced, or None: then it may be silent for ever. `confirms`: both say
    when all has arrived, and neither closes before it knows. A keepalive that reaches a closed socket is
    answered by a reset, which would overtake what the other side has not read yet.
    """

    framed = True
    needs_attention = True

    def __init__(
        self, inner: Stream, *, keepalive: float, peer_keepalive: float | None, confirms: bool = False
    ) -> None:
        self.inner = inner
        self.reader = CapsuleReader()
        self._keepalive = keepalive
        self._peer_patience = math.inf if peer_keepalive is None else _MISSED * peer_keepalive
        #: Whoever sends, by us or by our descriptor, does it in a turn of its own.
        self.turn = Turn()
        self._final_sent = False
        self._confirms = confirms
        self._owes_done = False
        self._done_sent = False
        self._finished = False
        self._owing = trio.Event()

    def source_fd(self) -> int | None:
        return self.inner.source_fd()

    def sink_fd(self) -> int | None:
        return self.inner.sink_fd()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Payload; b"" after FINAL_DATA. Raises BrokenResourceError where the stream ends without it."""
        while not self._ahead:
            if self.reader.ended:
                await trio.lowlevel.checkpoint()
                return b""
            self._ahead = await self.decode(await self._receive())
        return self.take_ahead(max_bytes)

    async def _receive(self) -> bytes:
        with self.patience():
            return await self.inner.receive_some(CHUNK)
        raise self.given_up()

    def patience(self) -> trio.CancelScope:
        """A scope for waiting to receive. A tunnel whose own reader is slow is not dead."""
        return trio.CancelScope(deadline=trio.current_time() + self._peer_patience)

    def given_up(self) -> trio.BrokenResourceError:
        """The error where that scope ran out."""
        return trio.BrokenResourceError(f"the peer was silent for {self._peer_patience:g} s")

    async def decode(self, data: bytes) -> bytes:
        """The payload in what `inner` received. Raises BrokenResourceError for an EOF too early, and for nonsense."""
        if not data:
            raise trio.BrokenResourceError("it ended without its last capsule (FINAL_DATA)")
        batches = self.reader.batches(data)
        try:
            payload = next(batches)
            for batch in batches:
                payload += batch
                # The other tunnels have their turn. What has arrived is not dropped if this one is over.
                await trio.lowlevel.cancel_shielded_checkpoint()
        except CapsuleError as error:
            raise trio.BrokenResourceError(str(error)) from error
        return b"".join(payload)

    async def send_all(self, data: Bytes) -> None:
        """Send it as DATA capsules."""
        with memoryview(data) as view:
            for start in range(0, len(view), self.inner.chunk):
                part = view[start : start + self.inner.chunk]
                await self.send_whole(b"".join((data_header(len(part)), part)))

    async def send_eof(self) -> None:
        """Send FINAL_DATA. The connection below stays open both ways."""
        self._final_sent = True
        await self.send_whole(FINAL)

    async def send_whole(self, capsules: Bytes) -> None:
        """Send whole capsules; nothing of ours comes between their bytes."""
        async with self.turn:
            await self.inner.send_all(capsules)

    async def attend(self) -> None:
        """Send a keepalive whenever nothing else was sent for the interval, and do what `inner` needs."""
        if not self.inner.needs_attention:
            await self._keep_alive()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.inner.attend)
            await self._keep_alive()

    async def _keep_alive(self) -> None:
        try:
            while True:
                with trio.move_on_at(self.turn.ended_at + self._keepalive):
                    await self._owing.wait()
                if self._owes_done:
                    await self._send_done()
                elif self._done_sent and self._final_sent:
                    await trio.sleep_forever()  # that was our last word
                elif self.turn.taken:
                    await trio.sleep(self._keepalive)
                elif trio.current_time() >= self.turn.ended_at + self._keepalive:
                    await self.send_whole(KEEPALIVE)
        except trio.BrokenResourceError:
            return  # whoever receives finds out why

    async def _send_done(self) -> None:
        self._owes_done = False
        self._owing = trio.Event()
        self._done_sent = True
        await self.send_whole(DONE)

    def confirm(self) -> None:
        """See `Stream.confirm`. `attend` sends it."""
        if self._confirms and not self._done_sent:
            self._owes_done = True
            self._owing.set()

    async def watch(self) -> None:
        """See `Stream.watch`. Returns at once where the peer confirms nothing."""
        while self._confirms and not self.reader.done:
            data = await self._receive()
            if not data:
                raise trio.BrokenResourceError("it ended before it had confirmed what it got")
            await self.decode(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream below."""
        await self.inner.wait_send_all_might_not_block()

    async def explain(self, why: str) -> None:
        """As the stream below."""
        await self.inner.explain(why)

    async def flush(self) -> None:
        """As the stream below."""
        await self.inner.flush()

    def abort(self) -> None:
        """End it without FINAL_DATA, which says that it was cut."""
        self.inner.abort()

    async def aclose(self) -> None:
        """Say that nothing more comes, and close once the peer has it all, or in a moment."""
        try:
            if self.reader.ended:
                await self.finish()
            elif not self._final_sent and not self.turn.taken:
                with trio.move_on_after(_CLOSING):
                    await self.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await self.inner.aclose()

    async def finish(self) -> None:
        """See `Stream.finish`. A peer that confirms nothing gets a moment."""
        if self._finished:
            return
        self._finished = True
        if not self._final_sent:
            await self.send_eof()
        if self._confirms:
            if not self._done_sent:
                await self._send_done()
            await self.watch()
            return
        with trio.move_on_after(_CLOSING):
            # After its FINAL_DATA a peer still sends keepalives, which nobody has read.
            await self.inner.linger()
