"""Sans-IO WebSocket frames, by wsproto: RFC 6455, sections 5 to 7. The opening handshake is not here.

`WebSocket.receive` takes bytes as they come, and `payload` returns the contents of binary messages without waiting for
whole messages or frames, so memory stays bounded by what the caller feeds. Message boundaries have no meaning. If the
peer expects an answer (a pong, a Close), `answer` makes it: the caller calls this when it is able to send.
Import this module only when it is needed: it loads wsproto, which takes as long as the rest of the client's start.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from enum import IntEnum

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, RsvBits

from http2tcp.errors import Http2tcpError
from http2tcp.printable import printable

# The largest message that we send. Some servers (Jetty) do not accept larger ones by default.
MAX_SENT = 64 * 1024
# The largest message that we accept. We never hold a whole one, but a message has to end at some point. Browsers and
# tools send a file as one message.
MAX_MESSAGE = 16 * 1024 * 1024
_TOO_BIG = f"a message of more than {MAX_MESSAGE // 1024**2} MiB came"
# How many frames are handled before other tasks get their turn. 32 short frames take 0.3 ms, as much as 128 KiB in long
# frames. So a peer that sends single bytes or pings delays others no more than a peer that uploads.
_AT_ONCE = 32

_BINARY_FINAL = 0x82
_MASKED = 0x80


class Code(IntEnum):
    """The close codes that we send first (RFC 6455, section 7.4.1). The answer to a Close repeats the peer's code."""

    DONE = 1000
    #: The client leaves before both sides were done.
    LEAVING = 1001
    PROTOCOL_ERROR = 1002
    NOT_BINARY = 1003
    TOO_BIG = 1009
    #: The server's connection to the target broke.
    FAILED = 1011


#: Never sent: it stands for a Close without a code.
_NO_CODE = 1005


class WebSocketError(Http2tcpError):
    """The peer broke the rules, or closed with a code for a bad end. `code` is for the Close frame that we send."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


class _FrameLimit(Extension):
    """Refuses a frame that is too long as soon as its head comes.

    wsproto shows heads only to extensions, so this class is one. It is never offered to a peer.
    """

    name = "http2tcp-limit"

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False

    def frame_inbound_header(
        self, proto: object, opcode: object, rsv: object, payload_length: int
    ) -> CloseReason | RsvBits:
        return CloseReason.MESSAGE_TOO_BIG if payload_length > MAX_MESSAGE else RsvBits(False, False, False)


def _mask(data: bytearray, start: int, key: bytes) -> None:
    """Mask the bytes from `start` on, in place (section 5.3). This is faster than XOR of large integers."""
    for offset, byte in enumerate(key, start):
        data[offset::4] = data[offset::4].translate(_xor_table(byte))


@functools.cache
def _xor_table(byte: int) -> bytes:
    return bytes(other ^ byte for other in range(256))


class WebSocket:
    """One end of a connection after its opening handshake."""

    def __init__(self, *, client: bool) -> None:
        self._client = client
        self._connection = Connection(ConnectionType.CLIENT if client else ConnectionType.SERVER, [_FrameLimit()])
        self._message_size = 0
        self._ping: Ping | None = None
        self._close: CloseConnection | None = None
        self._error: WebSocketError | None = None
        #: The peer has sent Close, with a code that means a good end. It sends nothing more.
        self.ended = False
        #: `close` has made our Close, and nothing may be sent after a Close. Only the caller knows whether it was sent.
        self.closed = False

    # --- receiving ---

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire. Call this only when `payload` has nothing left to return."""
        self._connection.receive_data(data)

    def payload(self) -> bytes | None:
        """Return the payload since the last call. None: feed more bytes. b"": call again, unless the peer has `ended`.

        Raises WebSocketError. After that, each later call raises it again, and the caller can only `close`.
        """
        if self._error is not None:
            raise self._error
        parts: list[bytes | bytearray] = []
        try:
            done = self._take(parts)
        except WebSocketError as error:
            self._error = error
            if not parts:
                raise
            done = False
        return None if done and not (parts or self.ended) else b"".join(parts)

    def _take(self, parts: list[bytes | bytearray]) -> bool:
        """Put the payload of the next frames into `parts`. Return whether these were all the frames that have come."""
        for seen, event in enumerate(self._connection.events(), 1):
            match event:
                case BytesMessage():
                    self._count(event)
                    parts.append(event.data)
                case TextMessage():
                    raise WebSocketError(Code.NOT_BINARY, "a text message came, and tunnels are binary")
                case Ping():
                    # RFC 6455, section 5.5.3: only the latest ping needs an answer. A flood of pings costs no memory.
                    self._ping = event
                case CloseConnection():
                    self._ends(event)
            if seen == _AT_ONCE:
                return False
        return True

    def _count(self, event: BytesMessage) -> None:
        self._message_size += len(event.data)
        if self._message_size > MAX_MESSAGE:
            raise WebSocketError(Code.TOO_BIG, _TOO_BIG)
        if event.message_finished:
            self._message_size = 0

    def _ends(self, event: CloseConnection) -> None:
        if self._connection.state in (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING):
            # wsproto reports a frame that it cannot parse as a Close, although its state says that none has come.
            too_big = event.code == Code.TOO_BIG
            raise WebSocketError(event.code, _TOO_BIG if too_big else "a frame came that breaks the rules of WebSocket")
        self._close = event
        self._ping = None
        if event.code in (Code.DONE, _NO_CODE):
            self.ended = True
            return
        words = f"the peer closed it with code {int(event.code)}"
        # Show a server's words to the user, but keep a client's words out of the server's log.
        if self._client and event.reason:
            words += f": {printable(event.reason)}"
        raise WebSocketError(event.code, words)

    @property
    def complaint(self) -> str:
        """What the peer did wrong, or why it closed with a code for a bad end; empty if it did neither."""
        return str(self._error or "")

    @property
    def owes(self) -> bool:
        """Whether `answer` has something to send."""
        return not self.closed and (self._ping is not None or self._answers_close)

    @property
    def _answers_close(self) -> bool:
        # A server answers later, with its own `close`: clients such as websocat send Close at the end of their input,
        # as if it were a half-close, and go on receiving until the answer.
        return self._client and self._close is not None

    @property
    def can_send(self) -> bool:
        """Whether messages may still be sent."""
        return not (self.closed or self._answers_close)

    # --- sending: the caller must send all bytes that these methods return, in the same order ---

    def messages(self, data: bytes | bytearray | memoryview) -> Iterator[bytearray]:
        """Make the binary messages that carry `data`, one at a time. Call this only while `can_send` is true."""
        # This makes frames without wsproto, which copies the data four times, and is twice as fast.
        with memoryview(data) as view:
            for start in range(0, len(view), MAX_SENT):
                part = view[start : start + MAX_SENT]
                if not self._client:
                    yield bytearray().join((self._header(len(part)), part))
                    continue
                # Section 10.3: the key is random, so that a program that chooses the payload cannot choose the bytes
                # on the wire.
                key = os.urandom(4)
                message = bytearray().join((self._header(len(part)), key, part))
                _mask(message, len(message) - len(part), key)
                yield message

    def _header(self, length: int) -> bytes:
        mask = _MASKED if self._client else 0
        if length < 126:
            return bytes((_BINARY_FINAL, mask | length))
        if length < 1 << 16:
            return bytes((_BINARY_FINAL, mask | 126)) + length.to_bytes(2, "big")
        return bytes((_BINARY_FINAL, mask | 127)) + length.to_bytes(8, "big")

    def ping(self) -> bytes:
        """Make a ping; b"" once either side has sent Close."""
        return b"" if self.closed or self._close is not None else self._connection.send(Ping())

    def answer(self) -> bytes:
        """Make the answer that the peer expects: a pong, or a Close in answer to its Close. b"" if it expects none."""
        if not self.owes:
            return b""
        if self._ping is None:
            return self.close(Code.DONE)
        ping, self._ping = self._ping, None
        return self._connection.send(ping.response())

    def close(self, code: int, reason: str = "") -> bytes:
        """Make a Close, or the answer to the peer's Close; b"" if this was done before. `reason` is cut to 123 bytes.

        The answer repeats the peer's code, as section 5.5.1 suggests, unless `code` says that this is not a good end.
        """
        if self.closed:
            return b""
        self.closed = True
        if self._close is not None and code in (Code.DONE, self._close.code):
            return self._connection.send(self._close.response())
        return self._connection.send(CloseConnection(code, reason or None))
