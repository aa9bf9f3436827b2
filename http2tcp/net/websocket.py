"""A WebSocket after its opening handshake, as a stream over any other.

Binary messages carry the bytes; the boundaries of messages mean nothing. A Close ends both directions, and a stream
that ends without one was cut. To half-close, send capsules in the messages (`http2tcp.net.capsules`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from http2tcp.net.send_lock import SendLock
from http2tcp.net.streams import CHUNK, EOF_PATIENCE, Bytes, Ends, HalfCloseUnsupported, Queue, Stream, check_size
from http2tcp.protocol.websocket import MAX_SENT, Code, WebSocket, WebSocketError

# How many bytes to receive at a time. This is less than for other streams: each byte is copied several times, and
# malloc returns larger buffers to the system in between.
_RECEIVED = 128 * 1024
# How long closing may wait for the peer's Close, in seconds, and how many bytes of payload may come before it.
_CLOSING = 1.0
_CLOSING_BYTES = CHUNK
# How long, in seconds, a client may be silent after the server has sent Close, before it counts as gone. Also how long
# `finish` may wait for room to send our Close.
_CLOSE_PATIENCE = 5.0
# A server whose target has ended sends Close, and takes what the client sends until the client's own Close. If a client
# sent Close for an EOF, it would lose the reply, since a server answers a Close by ending both directions.
_SERVER_ENDS = Ends(eof_patience=_CLOSE_PATIENCE, eof_is_last=True)
_CLIENT_ENDS = Ends(half_close=False, eof_patience=EOF_PATIENCE, eof_is_last=True)
# How long, in seconds, to wait until the kernel has room for a pong, if a program receives without running `attend`.
_PONG_PATIENCE = 0.1


class WebSocketStream(Stream):
    """A stream whose bytes travel in binary messages over `inner`, which it owns.

    `keepalive`: after this many seconds without sending, `attend` sends a ping.
    """

    needs_attention = True
    # The size of a message, less the head of a capsule.
    chunk = MAX_SENT - 16

    def __init__(self, inner: Stream, *, client: bool, keepalive: float) -> None:
        self.inner = inner
        self.ends = _CLIENT_ENDS if client else _SERVER_ENDS
        self._machine = WebSocket(client=client)
        self._failure = Code.LEAVING if client else Code.FAILED
        self._keepalive = keepalive
        self._send_lock = SendLock()
        self._receiving = False
        self._attended = False
        self._owing = trio.Event()
        # Whether our own caller has ended sending; our Close was sent as a whole; this stream was closed; the peer
        # broke the rules.
        self._shut = False
        self._told = False
        self._closed = False
        self._failed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive payload; b"" after a Close without an error. Raises BrokenResourceError for any other end."""
        check_size(max_bytes)
        if self._closed:
            raise trio.ClosedResourceError("this stream was already closed")
        while not self._ahead and not self._machine.ended:
            payload = await self._payload()
            if payload is None:
                await self._feed()
                continue
            self._ahead = payload
            # Many frames may have come at once: let the other tunnels run between them.
            await trio.lowlevel.checkpoint()
        if not self._ahead:
            await trio.lowlevel.checkpoint()
        return self.take_ahead(max_bytes)

    async def _payload(self) -> bytes | None:
        try:
            payload = self._machine.payload()
        except WebSocketError as error:
            # Part with the peer only once: a caller that receives again must not wait again.
            if not self._failed:
                self._failed = True
                await self._part(error.code, str(error), self.inner.linger)
            raise trio.BrokenResourceError(str(error)) from error
        if self._machine.owes:
            # The peer may not read until it has finished sending, so the receiving task must never block on a send.
            if self._attended:
                self._owing.set()
            else:
                await self._pay_at_once()
        return payload

    async def _feed(self) -> None:
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            data = await self.inner.receive_some(_RECEIVED)
        finally:
            self._receiving = False
        if not data:
            raise trio.BrokenResourceError("it ended without a Close frame")
        self._machine.receive(data)

    async def send_all(self, data: Bytes) -> None:
        """Send `data` as binary messages. Raises BrokenResourceError if the peer takes no more."""
        if self._closed:
            raise trio.ClosedResourceError("this stream was already closed")
        self._begin_sending()
        try:
            if not data:
                await trio.lowlevel.checkpoint()
            async with self._send_lock:
                if self._machine.can_send:
                    for message in self._machine.messages(data):
                        await self.inner.send_all(message)
                    return
        finally:
            self._sending = False
        if self._shut:
            raise trio.ClosedResourceError("this stream was already closed")
        raise self._over()

    def _over(self) -> trio.BrokenResourceError:
        """The error for a stream whose peer has ended it, by a Close or by a mistake that we answered with a Close."""
        return trio.BrokenResourceError(self._machine.complaint or "the peer had closed it already")

    async def _say(self, make: Callable[[], bytes]) -> None:
        """Take the lock, call `make`, and send the frame that it returns.

        `make` is called under the lock, since its frame depends on the frames sent before. If this is cancelled, it
        sends either the whole frame or nothing: wsproto cannot take back a frame that was sent in part.
        """
        cancelled: trio.Cancelled | None = None
        async with self._send_lock:
            try:
                await self.inner.wait_send_all_might_not_block()
            except trio.Cancelled as error:
                # No frame was made, so leave the lock without an error: the next task may send.
                cancelled = error
            else:
                # There is room, and a control frame has 139 bytes at most: this hardly ever waits.
                with trio.move_on_after(_CLOSING, shield=True) as patience:
                    await self.inner.send_all(make())
                    self._told = self._machine.closed
                if patience.cancelled_caught:
                    raise trio.BrokenResourceError("it took no more bytes")
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled

    async def send_eof(self) -> None:
        """On a server, send Close and go on receiving. A client raises HalfCloseUnsupported.

        Raises BrokenResourceError if a Close has already answered a mistake of the peer.
        """
        if not self.ends.half_close:
            raise HalfCloseUnsupported("a client's Close would end both directions")
        if not self._shut and self._machine.closed:
            raise self._over()
        self._shut = True
        await self._say(lambda: self._machine.close(Code.DONE))

    async def finish(self) -> None:
        """See `Stream.finish`. Returns once each side has sent its Close, and ours was sent as a whole."""
        if not self._machine.ended:
            raise trio.BrokenResourceError(self._machine.complaint or "it did not answer our Close")
        with trio.move_on_after(_CLOSE_PATIENCE):
            await self._say(lambda: self._machine.close(Code.DONE))
        if not self._told:
            raise trio.BrokenResourceError("it took no more bytes, our Close among them")
        await self.inner.finish()

    async def attend(self) -> None:
        """Answer pings and the peer's Close; send a ping whenever nothing else was sent for the interval."""
        self._attended = True
        try:
            while True:
                silent_since = trio.current_time() if self._send_lock.held else self._send_lock.released_at
                with trio.move_on_at(silent_since + self._keepalive):
                    await self._owing.wait()
                if self._owing.is_set():
                    self._owing = trio.Event()
                    await self._say(self._machine.answer)
                elif not self._send_lock.held and trio.current_time() >= self._send_lock.released_at + self._keepalive:
                    await self._say(self._machine.ping)
        except trio.BrokenResourceError:
            return  # the task that receives finds out why
        finally:
            self._attended = False

    async def _pay_at_once(self) -> None:
        # Shielded: a program that stops receiving may still use the stream, and a pong sent in part would tear it.
        with trio.move_on_after(_PONG_PATIENCE, shield=True):
            if not self._send_lock.held:
                try:
                    await self._say(self._machine.answer)
                except trio.BrokenResourceError:
                    pass  # there may still be something to receive

    async def send_reason(self, why: str, code: int = 0) -> None:
        """Send a Close whose code says that the tunnel broke, with the reason."""
        self._shut = True
        await self._part(self._failure, why, self._hear_close)

    async def _part(self, code: int, why: str, hear: Callable[[], Awaitable[None]]) -> None:
        """Send a Close, then call `hear` to receive what still comes, for a moment.

        A socket that is closed with bytes unread sends a reset, which could make the peer lose the Close.
        """
        with trio.move_on_after(_CLOSING):
            try:
                if not self._send_lock.held:
                    await self._say(lambda: self._machine.close(code, why))
                await hear()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer is gone

    async def _hear_close(self) -> None:
        unread = _CLOSING_BYTES
        while unread > 0 and not (self._machine.ended or self._receiving):
            payload = await self._payload()
            if payload is None:
                await self._feed()
            else:
                unread -= len(payload)
                # As in `receive_some`, let the other tunnels run.
                await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the stream below has room."""
        if self._closed:
            raise trio.ClosedResourceError("this stream was already closed")
        self._begin_sending()
        try:
            await self.inner.wait_send_all_might_not_block()
        finally:
            self._sending = False

    async def flush(self) -> None:
        """See `Stream.flush`: that of the stream below."""
        await self.inner.flush()

    def queue(self) -> Queue:
        """See `Stream.queue`: that of the stream below."""
        return self.inner.queue()

    async def linger(self) -> None:
        """Return at once: `aclose` waits for the peer's Close."""

    def abort(self) -> None:
        """Close the stream below without a Close frame, so that the peer sees that the tunnel was cut."""
        self._shut = self._closed = True
        self.inner.abort()

    async def aclose(self) -> None:
        """Send a Close, wait a moment for the peer's, and close."""
        self._shut = True
        if self._closed:
            await self.inner.aclose()
            return
        self._closed = True
        try:
            await self._part(Code.DONE, "", self._hear_close)
        finally:
            await self.inner.aclose()
