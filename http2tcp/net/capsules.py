"""A tunnel in capsules, over any stream: half-close, truncation and keepalives pass through every front end."""

from __future__ import annotations

import math

import trio

from http2tcp.net.send_lock import SendLock
from http2tcp.net.streams import CHUNK, UNSAID_END, Bytes, Queue, Stream, check_size
from http2tcp.protocol.capsule import (
    DONE,
    FINAL,
    KEEPALIVE,
    CapsuleError,
    CapsuleReader,
    Reset,
    ResetCode,
    data_header,
    reset,
)

# A peer counts as gone after this many of its own keepalive intervals without a byte.
_MISSED = 3
# How long, in seconds, closing may wait for the peer, and `send_reason` may take to send RESET.
_CLOSING = 1.0


class CapsuleStream(Stream):
    """A stream whose payload travels in capsules over `inner`, which it owns.

    `keepalive`: after this many seconds without sending, `attend` sends a keepalive. `peer_keepalive`: the interval
    that the peer announced, or None if the peer may be silent for ever. `confirms`: each end acknowledges when it has
    handed everything on, and closes only once its peer has acknowledged. (A keepalive that reaches a closed socket is
    answered by a reset, which would overtake what the other side has not read yet.) `client`: the peer is the server,
    so the reason that it gives for breaking off is shown to the user.
    """

    framed = True
    needs_attention = True

    def __init__(
        self,
        inner: Stream,
        *,
        keepalive: float,
        peer_keepalive: float | None,
        confirms: bool = False,
        client: bool = False,
    ) -> None:
        self.inner = inner
        self.reader = CapsuleReader()
        self._keepalive = keepalive
        self._peer_patience = math.inf if peer_keepalive is None else _MISSED * peer_keepalive
        #: Every task that sends holds this lock, whether it sends through this stream or directly to the descriptor.
        self.send_lock = SendLock()
        self._client = client
        self._confirms = confirms
        # These two are set only once the send has returned: a send that was cancelled still has to be done.
        self._final_sent = False
        self._done_sent = False
        self._heard_out = False
        self._peer_is_gone = False
        self._closed = False
        #: Set while we still have to send DONE.
        self._owing = trio.Event()

    def source_fd(self) -> int | None:
        return self.inner.source_fd()

    def sink_fd(self) -> int | None:
        return self.inner.sink_fd()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive payload; b"" after FINAL_DATA.

        Raises BrokenResourceError if the stream ends without FINAL_DATA, or with RESET.
        """
        check_size(max_bytes)
        self._check_open()
        while not self._ahead:
            self.check()
            if self.reader.ended:
                await trio.lowlevel.checkpoint()
                return b""
            self._ahead = await self.decode(await self._receive())
        return self.take_ahead(max_bytes)

    async def _receive(self) -> bytes:
        with self.patience():
            return await self.inner.receive_some(CHUNK)
        from http2tcp.net.last_look import last_look

        return await last_look(lambda: self.inner.receive_some(CHUNK), self.given_up())

    def patience(self) -> trio.CancelScope:
        """Return a scope in which to wait for the peer's bytes.

        It limits only the time that we wait, so the peer does not count as silent while our own side reads slowly.
        """
        return trio.CancelScope(deadline=trio.current_time() + self._peer_patience)

    def given_up(self) -> trio.BrokenResourceError:
        """The error for a peer that was silent for too long, if a last look found nothing either."""
        return trio.BrokenResourceError(f"the peer was silent for {self._peer_patience:g} s")

    def check(self) -> None:
        """Raise BrokenResourceError if the peer has sent RESET. First hand on the payload that came before it."""
        if self.reader.reset is None:
            return
        if not self._client:
            raise trio.BrokenResourceError("the client broke it off before both sides were done")
        self.peer_reason = told_by(self.reader.reset)
        raise trio.BrokenResourceError(self.peer_reason)

    async def decode(self, data: bytes) -> bytes:
        """Return the payload in `data`, which `inner` received.

        Raises BrokenResourceError for an early EOF (`data` is empty) or for invalid capsules.
        """
        if not data:
            raise trio.BrokenResourceError("it ended without its last capsule (FINAL_DATA)")
        batches = self.reader.batches(data)
        try:
            payload = next(batches)
            for batch in batches:
                payload += batch
                # Let the other tunnels run. Shielded, since a cancellation would drop what has arrived.
                await trio.lowlevel.cancel_shielded_checkpoint()
        except CapsuleError as error:
            raise trio.BrokenResourceError(str(error)) from error
        return b"".join(payload)

    async def send_all(self, data: Bytes) -> None:
        """Send `data` as DATA capsules."""
        self._check_open()
        if self._final_sent:
            raise trio.ClosedResourceError("this stream's EOF was already sent")
        self._begin_sending()
        try:
            if not data:
                await trio.lowlevel.checkpoint()
            with memoryview(data) as view:
                for start in range(0, len(view), self.inner.chunk):
                    part = view[start : start + self.inner.chunk]
                    await self.send_whole(b"".join((data_header(len(part)), part)))
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Send FINAL_DATA, once. The connection below stays open both ways."""
        self._check_open()
        if self._final_sent:
            await trio.lowlevel.checkpoint()
            return
        self._begin_sending()
        try:
            await self._send_final()
        finally:
            self._sending = False

    async def _send_final(self) -> None:
        if not self._final_sent:
            await self.send_whole(FINAL)
            self._final_sent = True

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was already closed")

    async def send_whole(self, capsules: Bytes) -> None:
        """Send whole capsules. No other task's bytes get in between."""
        async with self.send_lock:
            await self.inner.send_all(capsules)

    async def attend(self) -> None:
        """Send a keepalive whenever nothing else was sent for the interval, and attend to `inner` if it needs that."""
        if not self.inner.needs_attention:
            await self._keep_alive()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.inner.attend)
            await self._keep_alive()

    async def _keep_alive(self) -> None:
        try:
            while True:
                silent_since = trio.current_time() if self.send_lock.held else self.send_lock.released_at
                with trio.move_on_at(silent_since + self._keepalive):
                    await self._owing.wait()
                if self._owing.is_set():
                    await self._send_done()
                elif self._done_sent and self._final_sent:
                    await trio.sleep_forever()  # nothing may follow DONE and FINAL_DATA
                elif not self.send_lock.held and trio.current_time() >= self.send_lock.released_at + self._keepalive:
                    await self.send_whole(KEEPALIVE)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the task that receives finds out why

    async def _send_done(self) -> None:
        """Send DONE, once. If `attend` is already sending it, wait for that."""
        if self._done_sent:
            return
        async with self.send_lock:
            if not self._done_sent:
                await self.inner.send_all(DONE)
                self._done_sent = True
                self._owing = trio.Event()

    def acknowledge_eof(self) -> None:
        """See `Stream.acknowledge_eof`. Either `attend` or `finish` sends the acknowledgement (DONE)."""
        if self._confirms and not self._done_sent:
            self._owing.set()

    @property
    def eof_acknowledged(self) -> bool:
        """See `Stream.eof_acknowledged`."""
        return self._done_sent

    async def wait_acknowledged(self) -> None:
        """See `Stream.wait_acknowledged`. Returns at once if the peer does not acknowledge."""
        while self._confirms and not self.reader.done:
            data = await self._receive()
            if not data:
                raise trio.BrokenResourceError("it ended before it had confirmed what it got")
            await self.decode(data)
            self.check()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream below has room."""
        self._check_open()
        self._begin_sending()
        try:
            await self.inner.wait_send_all_might_not_block()
        finally:
            self._sending = False

    async def send_reason(self, why: str, code: int = 0) -> None:
        """Send RESET, unless FINAL_DATA and DONE have told the peer that all is well.

        Then let the stream below send the reason in its own way, such as a WebSocket's Close.
        """
        with trio.move_on_after(_CLOSING):
            try:
                if not (self.send_lock.held or (self._final_sent and self._done_sent)):
                    await self.send_whole(reset(code or (ResetCode.LEAVING if self._client else 0), why))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer is gone
        await self.inner.send_reason(why, code)

    async def flush(self) -> None:
        """See `Stream.flush`: that of the stream below."""
        await self.inner.flush()

    def queue(self) -> Queue:
        """See `Stream.queue`: that of the stream below."""
        return self.inner.queue()

    def abort(self) -> None:
        """Close without FINAL_DATA, so that the peer sees that the tunnel was cut."""
        self._closed = True
        self.inner.abort()

    async def aclose(self) -> None:
        """Send FINAL_DATA and close.

        If the peer has ended, wait until it has everything, and raise BrokenResourceError if it breaks before that.
        If the peer has not ended, give it a moment to do so. If it does not even take FINAL_DATA, reset the connection
        and raise BrokenResourceError as well.
        """
        if self._closed:
            await self.inner.aclose()
            return
        self._closed = True
        said = False
        try:
            if self.reader.ended:
                await self.finish()
            else:
                with trio.move_on_after(_CLOSING):
                    await self._say_end()
                    await self._hear_end()
                if not self._final_sent and not self._peer_is_gone:
                    raise trio.BrokenResourceError(UNSAID_END)
            said = True
        finally:
            if said:
                await self._close_below()
            else:
                self.inner.abort()

    async def finish(self) -> None:
        """See `Stream.finish`. If the two sides do not use acknowledgements, give the peer a moment to end."""
        await self._send_final()
        if self._confirms:
            await self._send_done()
            await self.wait_acknowledged()
        elif not self._heard_out:
            with trio.move_on_after(_CLOSING):
                # No keepalive of ours may follow the FIN that lingering sends.
                async with self.send_lock:
                    # After its FINAL_DATA a peer may have sent keepalives. Left unread, they would cause a reset.
                    await self.inner.linger()
            self._heard_out = True

    async def _say_end(self) -> None:
        try:
            await self._send_final()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # No error: the caller closes before the peer has ended, so it does not want the rest.
            self._peer_is_gone = True

    async def _hear_end(self) -> None:
        """Wait until the peer ends too, so that its own `aclose` does not fail. Stop waiting if payload still comes."""
        try:
            while not (self._peer_is_gone or self._ahead or self.reader.ended):
                data = await self.inner.receive_some(CHUNK)
                if not data or await self.decode(data):
                    return
            # The peer ended, and none of its payload was dropped: we may acknowledge that.
            if self.reader.ended and not self._ahead:
                await self.finish()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            return  # the peer has left, or another task is still receiving

    async def _close_below(self) -> None:
        try:
            await self.inner.aclose()
        except trio.BrokenResourceError:
            pass  # the peer got our FINAL_DATA, so it needs no end of the stream below


def told_by(said: Reset) -> str:
    """Put the reason in the server's RESET into a sentence."""
    match said.code:
        case ResetCode.TARGET:
            words = said.words.removeprefix("the connection broke").removeprefix(": ")
            return f"the target broke the connection: {words}" if words else "the target broke the connection"
        case ResetCode.REVOKED:
            words = "the token was taken away"
        case ResetCode.EXPIRED:
            words = "the token has expired"
        case ResetCode.IDLE:
            words = "no byte went either way for too long"
        case ResetCode.LONGEST:
            words = "it had lasted as long as a tunnel may"
        case ResetCode.STOPPED:
            words = "the server was stopped"
        case _:
            words = f"for a reason that this client does not know (code {said.code})"
    return f"the server ended the tunnel: {said.words or words}"
