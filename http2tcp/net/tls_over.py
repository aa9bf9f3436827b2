"""TLS over any stream that is not a plain socket, such as the TLS session with an https proxy.

OpenSSL gets a few records at a time, for the reason that `http2tcp.net.tls_session` gives. As in `http2tcp.net.tls`, a
stream that ends without close_notify was cut, and there is no half-close.
"""

from __future__ import annotations

import ssl
from collections.abc import Collection

import trio

from http2tcp.net.streams import CHUNK, UNSAID_END, Bytes, HalfCloseUnsupported, Queue, Stream, check_size
from http2tcp.net.tls import TLS_ENDS, check_pin, name_to_verify, what_broke
from http2tcp.net.tls_session import BARREN, MAX_BARREN, MAX_HANDSHAKE, RECORD, Records, TooManyRecords


class ByRecords(trio.abc.Stream):
    """The stream below a TLS session. It returns a few records at a time, and lets other tasks run in between."""

    def __init__(self, carrier: Stream) -> None:
        self._carrier = carrier
        self._records = Records()
        self._given = 0
        self._limit = MAX_HANDSHAKE

    def fruitful(self) -> None:
        """Restart the count of records without payload: those so far had payload, or completed the handshake."""
        self._given, self._limit = 0, MAX_BARREN

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._given > self._limit:
            raise trio.BrokenResourceError(what_broke(TooManyRecords()))
        while not self._records.ready:
            data = await self._carrier.receive_some(CHUNK)
            if not data:
                return self._records.rest()
            self._records.receive(data)
        await trio.lowlevel.checkpoint()
        given = bytearray()
        for _ in range(BARREN):
            given += self._records.take()
            self._given += self._records.whole
            if not self._records.ready or len(given) > RECORD:
                break
        return bytes(given)

    async def send_all(self, data: Bytes) -> None:
        await self._carrier.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._carrier.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._carrier.aclose()


# How long, in seconds, closing may wait until the kernel has room for a close_notify.
_CLOSING = 1.0


class TLSOverStream(Stream):
    """A TLS session on a stream that it owns. Make one with `open_tls_over`."""

    ends = TLS_ENDS

    def __init__(self, carrier: Stream, records: ByRecords, tls: trio.SSLStream[ByRecords]) -> None:
        self._carrier = carrier
        self._records = records
        self._tls = tls

    def version(self) -> str | None:
        """The protocol's version, as OpenSSL names it."""
        version: str | None = self._tls.version()
        return version

    def certificate(self) -> bytes | None:
        """The peer's certificate, in DER."""
        certificate: bytes | None = self._tls.getpeercert(binary_form=True)
        return certificate

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive up to `max_bytes` (default 256 KiB); b"": the peer sent close_notify. Raises BrokenResourceError."""
        check_size(max_bytes)
        if self._ahead:
            await trio.lowlevel.checkpoint()
            return self.take_ahead(max_bytes)
        try:
            data = bytes(await self._tls.receive_some(max_bytes or CHUNK))
        except trio.BrokenResourceError as error:
            raise _broken(error) from error
        self._records.fruitful()
        return data

    async def send_all(self, data: Bytes) -> None:
        """Send everything. Cancelling it tears the stream: nothing can be sent after that."""
        try:
            await self._tls.send_all(data)
        except trio.BrokenResourceError as error:
            raise _broken(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room."""
        try:
            await self._tls.wait_send_all_might_not_block()
        except trio.BrokenResourceError as error:
            raise _broken(error) from error

    async def send_eof(self) -> None:
        """Raises HalfCloseUnsupported, always."""
        raise HalfCloseUnsupported("TLS has no half-close here")

    async def flush(self) -> None:
        """See `Stream.flush`: that of the stream below."""
        await self._carrier.flush()

    def queue(self) -> Queue:
        """See `Stream.queue`: that of the stream below."""
        return self._carrier.queue()

    async def finish(self) -> None:
        """Send close_notify and close, without waiting for the peer's close_notify."""
        await self._tls.aclose()

    def abort(self) -> None:
        """Close without close_notify, with RST."""
        self._carrier.abort()

    async def aclose(self) -> None:
        """Send close_notify and close, without waiting for the peer's close_notify.

        If the kernel has no room for it in time, reset the connection instead and raise BrokenResourceError.
        """
        with trio.move_on_after(_CLOSING) as closing:
            await self._tls.aclose()
        if closing.cancelled_caught:
            self.abort()
            raise trio.BrokenResourceError(UNSAID_END)


def _broken(error: trio.BrokenResourceError) -> trio.BrokenResourceError:
    """Make an error that says what broke: trio's own error has the words only in its cause."""
    if isinstance(error.__cause__, ssl.SSLError):
        return trio.BrokenResourceError(what_broke(error.__cause__))
    return trio.BrokenResourceError(str(error) or "an earlier send was cancelled half-way")


async def open_tls_over(
    carrier: Stream, context: ssl.SSLContext, server_name: str, pins: Collection[bytes] = ()
) -> TLSOverStream:
    """Like `http2tcp.net.tls.open_tls`, but on any stream.

    The caller sets the deadline. Raises ssl.SSLError, OSError or PinMismatch, after it has aborted the carrier.
    """
    try:
        records = ByRecords(carrier)
        tls = trio.SSLStream(records, context, server_hostname=name_to_verify(server_name))
        await tls.do_handshake()
        records.fruitful()
        check_pin(tls.getpeercert(binary_form=True), pins)
    except trio.BrokenResourceError as error:
        carrier.abort()
        if isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from None
        raise OSError(0, str(error)) from error
    except BaseException:
        carrier.abort()
        raise
    return TLSOverStream(carrier, records, tls)
