"""A TLS session that does a bounded amount of work in one turn of the event loop, whatever records the peer sends.

On a socket, OpenSSL's `SSL_read` reads records until one has payload or the kernel has no more bytes. Records without
payload (key updates, tickets, refused renegotiations) do not stop it. A peer can send them faster than OpenSSL reads
them, and meanwhile no other tunnel runs. Peeking at the record headers first does not help: in TLS 1.3 a header does
not say what is in its record, a key update can be padded to 16 KiB, and OpenSSL also reads what arrives after the peek.
So OpenSSL never reads the socket here. We read it, and hand OpenSSL one record at a time through a memory BIO.

CPU time compared with a non-blocking SSLSocket (medians of 21 interleaved pairs of downloads): 1.07 times as much for a
client, 0.66 for a server that sends capsules, 1.17 for one that sends raw bytes. After a bulk transfer a tunnel keeps
some 70 KiB, of which 44 KiB are the two BIOs, which never shrink.

One turn takes at most `RECORDS` records, of which at most `BARREN` may be without payload. A peer that sends more than
`MAX_BARREN` records without payload in a row is cut off.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

# RFC 8446, section 5.1: a record has at most 16 KiB. Python allocates as much as a read asks for, so ask for no more.
RECORD = 16 * 1024
CHUNK = 4 * RECORD

#: The most records in one turn. A busy peer's 64 KiB are five records; 32 of one byte take a tenth of a millisecond.
RECORDS = 32
#: The most records without payload in one turn, if they are small. A record larger than `_SMALL` ends the turn.
BARREN = 8
_SMALL = 1024
#: The most records without payload in a row. A renegotiation has some 30; a key update comes once in gigabytes.
MAX_BARREN = 128
#: The most records in one handshake. The limit is high since some clients send their hello in records of one byte.
MAX_HANDSHAKE = 4096

_HEAD = 5
_NOTHING = memoryview(b"")

# Allocate and free one large block. Until glibc has seen that once, it maps and unmaps memory for each read of 256 KiB;
# afterwards it takes such blocks from its heap. Without this line, an upload from stdin can cost twice the CPU.
bytes(320 * 1024)


class Records:
    """Cuts bytes from the wire into records, by the records' headers (RFC 8446, section 5.1)."""

    __slots__ = ("_at", "_data", "_left", "odd")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        #: How many bytes of the record that was taken last are still to come.
        self._left = 0
        #: Whether the header of that record is not a TLS header. OpenSSL gets the record all the same, to report it.
        self.odd = False

    def receive(self, data: bytes) -> None:
        """Add bytes from the wire."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    @property
    def ready(self) -> bool:
        """Whether `take` returns bytes."""
        return len(self._data) - self._at >= (1 if self._left else _HEAD)

    @property
    def whole(self) -> bool:
        """Whether the bytes that were taken last completed a record."""
        return not self._left

    def take(self) -> memoryview:
        """Return the next record, or the part of it that has come; empty until its header is complete."""
        data, at = self._data, self._at
        if len(data) - at < (1 if self._left else _HEAD):
            return _NOTHING
        if not self._left:
            kind = data[at]
            if kind & 0x80:
                # A hello in the format of SSL 2, which OpenSSL accepts for TLS 1.2.
                self._left, self.odd = 2 + ((kind & 0x7F) << 8) + data[at + 1], True
            else:
                length = (data[at + 3] << 8) + data[at + 4]
                self._left = _HEAD + length
                self.odd = not 20 <= kind <= 24 or data[at + 1] != 3 or length > RECORD + 2048
        end = min(len(data), at + self._left)
        self._left -= end - at
        self._at = end
        if end == len(data):
            # Let the chunk go: an idle tunnel must not keep it in memory.
            self._data, self._at = b"", 0
        return memoryview(data)[at:end]

    def rest(self) -> bytes:
        """Return what is left at the end of the stream: a header that is not complete."""
        rest, self._data, self._at = self._data[self._at :], b"", 0
        return rest


class TooManyRecords(ssl.SSLError):
    """The peer has sent too many records without payload."""

    def __init__(self) -> None:
        super().__init__(1, "too many TLS records without data")
        self.reason = "TOO_MANY_RECORDS_WITHOUT_DATA"


class TLSSocket(socket.socket):
    """A non-blocking socket that takes over another one's descriptor and speaks TLS on it, like ssl.SSLSocket.

    Its methods raise what those of SSLSocket raise, and TooManyRecords.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: bytes | None = None,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # typeshed does not know that a name may be bytes.
        name: Any = server_hostname
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side, name)
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.fileno())
        sock.detach()
        self.setblocking(False)
        self._records = Records()
        #: How many records without payload have come in a row.
        self._barren = 0
        #: Whether the peer's close_notify has come.
        self.ended = False
        self._failure: OSError | None = None
        self._cut = False
        # Encrypted bytes that the kernel has not taken yet, and how many bytes of the data given to `send` they hold.
        self._unsent: list[memoryview] = []
        self._accepted = 0

    def version(self) -> str | None:
        """See `ssl.SSLSocket.version`."""
        return self._session.version()

    def certificate(self) -> bytes | None:
        """The peer's certificate, in DER."""
        return self._session.getpeercert(binary_form=True)

    def pending(self) -> int:
        """See `ssl.SSLSocket.pending`."""
        return self._session.pending()

    @property
    def buffered(self) -> bool:
        """Whether `receive` has something to do without new bytes from the kernel."""
        # After a failure, `receive` raises it again at once: the peer may leave its connection open for ever.
        return self._records.ready or self._session.pending() > 0 or self._failure is not None

    @property
    def owes(self) -> bool:
        """Whether bytes that TLS itself has to send wait for room in the kernel, and no `send` under way sends them."""
        return not self._accepted and (bool(self._unsent) or self._outgoing.pending > 0)

    def do_handshake(self) -> bool:
        """Do one turn's part of the handshake. Return whether the handshake is complete.

        Raises SSLWantReadError, SSLWantWriteError or any other SSLError.
        """
        for _ in range(BARREN):
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                fed = self._feed()
                self._count(MAX_HANDSHAKE)
                if fed > _SMALL and self._records.ready:
                    # A large record may cost a millisecond to answer: do that in the next turn.
                    return False
            except ssl.SSLError:
                self._flush_if_room()  # send an alert, if there is one
                raise
            else:
                self.flush()
                self._barren = 0
                return True
        return False

    def receive(self, wanted: int) -> bytes:
        """Return the payload of one turn's records, up to `wanted` bytes.

        b"" if they had no payload, or at the end (`ended`).
        """
        if self._outgoing.pending > RECORD:
            self.flush()  # the peer does not read TLS's answers: send them before reading on
        elif self.owes:
            self._flush_if_room()
        parts: list[bytes] = []
        waits: OSError | None = None
        try:
            self._decrypt(wanted, parts)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            waits = error
        except OSError as error:
            self._flush_if_room()  # send an alert, if there is one
            # Raise the same error in every later call: after a fatal alert, OpenSSL would next report a clean end.
            self._failure = error
            if not parts:
                raise
        if parts or self.ended:
            self._flush_if_room()
            return b"".join(parts)
        # The peer may be waiting for what OpenSSL has made, such as our part of a renegotiation. If a `send` is under
        # way, that sends it too.
        if not self._accepted:
            self.flush()
        if waits is not None:
            try:
                raise waits
            finally:
                waits = None  # its traceback refers to this frame, which would make a reference cycle for each wait
        return b""

    def _decrypt(self, wanted: int, parts: list[bytes]) -> None:
        """Take one turn's records, and append their payload to `parts`, up to `wanted` bytes.

        Raises SSLWantReadError, SSLWantWriteError or any other OSError. Even then, what is in `parts` is valid payload.
        """
        session, records = self._session, self._records
        size = barren = fed = 0
        # Ask for left-over payload only once: each read below takes the rest of its record, or reaches `wanted`.
        pending = session.pending()
        for _ in range(RECORDS):
            if pending:
                pending = 0
            else:
                fed += self._feed()
                if not (records.whole or records.odd or self._cut):
                    continue
            try:
                data = session.read(min(wanted - size, RECORD))
            except ssl.SSLWantReadError:
                self._count(MAX_BARREN)
                barren += 1
                if barren == BARREN or fed > _SMALL:
                    return
                fed = 0
                continue
            if not data:
                self.ended = True
                return
            self._barren = fed = 0
            parts.append(data)
            size += len(data)
            if size >= wanted:
                return

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Return bytes that are decrypted already (`pending`); if there are none, do the same as `receive`."""
        return self._session.read(bufsize) if self._session.pending() else self.receive(bufsize)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send. Return how many bytes of `data` the kernel has taken.

        After SSLWantWriteError, call this again with the same data.
        """
        if not self._accepted:
            self._encrypt(memoryview(data)[:CHUNK])
        self.flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def unwrap(self) -> None:
        """Send close_notify. Then raises SSLWantReadError, unless the peer's close_notify has come."""
        if self._failure is not None:
            raise self._failure
        failure = None
        try:
            self._session.unwrap()
        except ssl.SSLError as error:
            failure = error
        self.flush()
        if failure is not None:
            raise failure

    def flush(self) -> None:
        """Send what OpenSSL has encrypted. Raises SSLWantWriteError if the kernel has no room."""
        while self._unsent or self._outgoing.pending:
            if not self._unsent:
                self._unsent.append(memoryview(self._outgoing.read()))
            try:
                sent = super().sendmsg(self._unsent)
            except (BlockingIOError, InterruptedError):
                raise ssl.SSLWantWriteError("the kernel has no room") from None
            while self._unsent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.pop(0))
            if sent:
                self._unsent[0] = self._unsent[0][sent:]

    def _flush_if_room(self) -> None:
        try:
            self.flush()
        except OSError:
            pass  # the peer is gone, or does not read

    def _encrypt(self, data: memoryview) -> None:
        # One record at a time, so that the BIO stays small: it never shrinks, and it copies its bytes to grow.
        while self._accepted < len(data):
            try:
                self._accepted += self._write(data[self._accepted : self._accepted + RECORD])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError):
                if not self._accepted:
                    raise
                return  # first send what is encrypted
            except OSError as error:
                # As in `receive`, raise the same error in every later call: a renegotiation can fail in the middle of a
                # write, and the next read must not report a clean end.
                self._failure = error
                raise
            self._unsent.append(memoryview(self._outgoing.read()))

    def _write(self, data: memoryview) -> int:
        while True:
            try:
                return self._session.write(data)
            except ssl.SSLWantReadError:
                # The server has begun a renegotiation (TLS 1.2), whose records must come before we can write.
                self.flush()
                self._feed()
                self._count(MAX_BARREN)

    def _feed(self) -> int:
        """Give OpenSSL the next record or a part of it. Return its size. Raises SSLWantReadError or OSError."""
        if self._failure is not None:
            raise self._failure
        part = self._records.take()
        if not part and not self._cut:
            try:
                data = super().recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                raise ssl.SSLWantReadError("nothing has come") from None
            if not data:
                self._cut = True
                self._incoming.write(self._records.rest())
                self._incoming.write_eof()
                return 0
            self._records.receive(data)
            part = self._records.take()
            if not part:
                raise ssl.SSLWantReadError("a part of a head has come")
        return self._incoming.write(part) if part else 0

    def _count(self, limit: int) -> None:
        self._barren += 1
        if self._barren > limit:
            raise TooManyRecords
