"""A TLS session that does a bounded amount of work a turn of the loop, however the peer cuts what it sends.

`SSL_read` on a socket goes on until it has payload or the kernel has nothing more. Records without payload (key
updates, tickets, refused renegotiations) never end it: the peer refills the kernel's buffer faster than OpenSSL
empties it, and for that long no other tunnel has its turn. Looking at the heads with MSG_PEEK first does not help.
In TLS 1.3 a head does not say what is in its record, a key update can be padded to 16 KiB, and what arrives after
the look is read all the same. So OpenSSL never reads the socket here: it gets one record at a time, by a memory BIO.

In CPU, against a non-blocking SSLSocket (medians of 21 interleaved pairs of downloads): a client takes 1.07 of it, a
server that sends capsules 0.66, one that sends raw bytes 1.17. A tunnel that had bulk keeps some 70 KiB, of which two
BIOs that never shrink are 44.

A turn is at most `RECORDS` records, of which `BARREN` may be without payload; handshakes have one turn after the other.
A peer that sends `MAX_BARREN` records in a row without payload is broken off.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

# RFC 8446, section 5.1: a record has at most 16 KiB. Asking for more has Python allocate more for each.
RECORD = 16 * 1024
CHUNK = 4 * RECORD

#: Records a turn. A busy peer's 64 KiB are five; 32 of one byte take a tenth of a millisecond.
RECORDS = 32
#: Records without payload a turn, or one that is not small: tickets by the hundred fit in it.
BARREN = 8
_SMALL = 1024
#: Records in a row without payload. A renegotiation has some 30, a key update is one in gigabytes.
MAX_BARREN = 128
#: Records of one handshake, for there are those who cut a hello into single bytes.
MAX_HANDSHAKE = 4096

_HEAD = 5
_NOTHING = memoryview(b"")

# Once glibc has seen a block of this size freed, it takes such blocks from its heap. Until then it maps and unmaps each
# buffer for a read of 256 KiB, and whether it has seen one is chance: an upload by stdin costs twice the CPU without.
bytes(320 * 1024)


class Records:
    """Bytes as they came, cut by the heads of their records (RFC 8446, section 5.1)."""

    __slots__ = ("_at", "_data", "_left", "odd")

    def __init__(self) -> None:
        self._data = b""
        self._at = 0
        #: What is missing of the record that was taken last.
        self._left = 0
        #: Its head is none, which OpenSSL says best.
        self.odd = False

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire."""
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    @property
    def ready(self) -> bool:
        """Whether `take` has something."""
        return len(self._data) - self._at >= (1 if self._left else _HEAD)

    @property
    def whole(self) -> bool:
        """Whether what was taken last was a record, or the rest of one."""
        return not self._left

    def take(self) -> memoryview:
        """The next record or what there is of it; empty where a whole head is missing."""
        data, at = self._data, self._at
        if len(data) - at < (1 if self._left else _HEAD):
            return _NOTHING
        if not self._left:
            kind = data[at]
            if kind & 0x80:
                # The hello of SSL 2, which OpenSSL takes for TLS 1.2.
                self._left, self.odd = 2 + ((kind & 0x7F) << 8) + data[at + 1], True
            else:
                length = (data[at + 3] << 8) + data[at + 4]
                self._left = _HEAD + length
                self.odd = not 20 <= kind <= 24 or data[at + 1] != 3 or length > RECORD + 2048
        end = min(len(data), at + self._left)
        self._left -= end - at
        self._at = end
        if end == len(data):
            # An idle tunnel does not keep its last chunk.
            self._data, self._at = b"", 0
        return memoryview(data)[at:end]

    def rest(self) -> bytes:
        """At the end of the stream: the part of a head."""
        rest, self._data, self._at = self._data[self._at :], b"", 0
        return rest


class TooManyRecords(ssl.SSLError):
    """The peer keeps us busy with records that carry nothing."""

    def __init__(self) -> None:
        super().__init__(1, "too many TLS records without data")
        self.reason = "TOO_MANY_RECORDS_WITHOUT_DATA"


class TLSSocket(socket.socket):
    """A non-blocking socket that takes the place of another one, and speaks TLS on it, as ssl.SSLSocket does.

    What is said here of records apart, its methods raise what those of SSLSocket raise.
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
        #: Records in a row that carried nothing.
        self._barren = 0
        #: The peer has said close_notify.
        self.ended = False
        self._failure: OSError | None = None
        self._cut = False
        # What OpenSSL has made and the kernel has not taken, and the payload in it that `send` was given.
        self._unsent: list[memoryview] = []
        self._accepted = 0

    def version(self) -> str | None:
        """As of an SSLSocket."""
        return self._session.version()

    def certificate(self) -> bytes | None:
        """The peer's, in DER."""
        return self._session.getpeercert(binary_form=True)

    def pending(self) -> int:
        """As of an SSLSocket."""
        return self._session.pending()

    @property
    def buffered(self) -> bool:
        """Whether `receive` has something to do before the kernel has anything new."""
        # A peer that is the cause of a failure need not close: who asks again does not wait for it.
        return self._records.ready or self._session.pending() > 0 or self._failure is not None

    @property
    def owes(self) -> bool:
        """Whether the peer is owed an answer for which the kernel had no room, and that nobody's `send` sends."""
        return not self._accepted and (bool(self._unsent) or self._outgoing.pending > 0)

    def do_handshake(self) -> bool:
        """A turn's part of it; whether it is done. Raises SSLWantReadError, SSLWantWriteError or any SSLError."""
        for _ in range(BARREN):
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                fed = self._feed()
                self._count(MAX_HANDSHAKE)
                if fed > _SMALL and self._records.ready:
                    # Its answer is made in the next turn.
                    return False
            except ssl.SSLError:
                self._flush_if_room()  # an alert, where there is one
                raise
            else:
                self.flush()
                self._barren = 0
                return True
        return False

    def receive(self, wanted: int) -> bytes:
        """The payload of a turn's records, up to `wanted` bytes; b"" where they had none, or at the end (`ended`)."""
        if self._outgoing.pending > RECORD:
            self.flush()  # answers to a peer that does not read them
        elif self.owes:
            self._flush_if_room()
        session, records = self._session, self._records
        parts: list[bytes] = []
        size = barren = fed = 0
        waits: OSError | None = None
        # Only at first: what is read below is a whole record, or the last that was wanted.
        pending = session.pending()
        try:
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
                        break
                    fed = 0
                    continue
                if not data:
                    self.ended = True
                    break
                self._barren = fed = 0
                parts.append(data)
                size += len(data)
                if size >= wanted:
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            waits = error
        except OSError as error:
            self._flush_if_room()  # an alert, where there is one
            # For good: asked again after the peer's fatal alert, OpenSSL speaks of a clean end.
            self._failure = error
            if not parts:
                raise
        if parts or self.ended:
            self._flush_if_room()
            return b"".join(parts)
        # What the peer waits for, such as our part of a renegotiation; whoever sends sends that too.
        if not self._accepted:
            self.flush()
        if waits is not None:
            try:
                raise waits
            finally:
                waits = None  # it knows this frame: a cycle for each wait
        return b""

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """What is `pending`, or else as `receive`."""
        return self._session.read(bufsize) if self._session.pending() else self.receive(bufsize)

    def send(self, data: Any, flags: int = 0) -> int:
        """How much of it the kernel has. After SSLWantWriteError the same data have to be given again."""
        if not self._accepted:
            self._encrypt(memoryview(data)[:CHUNK])
        self.flush()
        accepted, self._accepted = self._accepted, 0
        return accepted

    def unwrap(self) -> None:
        """Send close_notify. Raises SSLWantReadError then, unless the peer's has come."""
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
        """Hand the kernel what OpenSSL has made. Raises SSLWantWriteError where it has no room."""
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
            pass  # it is gone, or does not read

    def _encrypt(self, data: memoryview) -> None:
        # By single records: the BIO never gives back what it grew to, and growing copies what it has.
        while self._accepted < len(data):
            try:
                self._accepted += self._write(data[self._accepted : self._accepted + RECORD])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError):
                if not self._accepted:
                    raise
                return  # what there is goes first
            except OSError as error:
                # As in `receive`: what a renegotiation ran into, in the middle of a write, no read may take for an end.
                self._failure = error
                raise
            self._unsent.append(memoryview(self._outgoing.read()))

    def _write(self, data: memoryview) -> int:
        while True:
            try:
                return self._session.write(data)
            except ssl.SSLWantReadError:
                # In a renegotiation of the server's (TLS 1.2).
                self.flush()
                self._feed()
                self._count(MAX_BARREN)

    def _feed(self) -> int:
        """Hand OpenSSL the next record, or a part of it: its size. Raises SSLWantReadError, or OSError."""
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
