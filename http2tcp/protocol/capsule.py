"""Sans-IO capsules: RFC 9297, section 3.2, with the types of draft-ietf-httpbis-connect-tcp.

A capsule is a type, a length and a value; both numbers are variable-length integers (RFC 9000, section 16).
DATA carries payload. FINAL_DATA carries payload too, and ends its direction of the tunnel, like a TCP FIN. Three types
are our own. A capsule of any other type is skipped, whatever its length, so memory stays bounded by what the caller
feeds. Boundaries between capsules have no meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from http2tcp.errors import Http2tcpError
from http2tcp.printable import printable

# Pairs of types (DATA, FINAL_DATA). We send the first pair and accept all pairs. No numbers are registered yet.
DATA_TYPES = (
    (0x2028D7F2, 0x2028D7F3),  # revision 12 and later of the draft
    (0x2028D7F0, 0x2028D7F1),  # revisions 8 to 11
)

# Our own: a keepalive, which every peer may ignore. The number is random, as RFC 9000, section 22.1.2 demands.
KEEPALIVE_TYPE = 0x1E2A6B5D
# Our own: "all bytes up to your FINAL_DATA were handed on". After FINAL_DATA and DONE, an end sends nothing more, so
# its peer can close safely: bytes that reach a closed socket would cause a reset, which destroys data on its way.
DONE_TYPE = 0x2C61F04B

# Our own: the sender has broken the tunnel. The value says why. Nothing follows this capsule.
RESET_TYPE = 0x3A85D15D
#: How many bytes the words of a RESET have at most; longer words are cut.
MAX_WORDS = 256
# The code in front of the words has 8 bytes at most.
_MAX_RESET = 8 + MAX_WORDS

# How many capsule heads are read before other tasks get their turn. WebSocket frames have the same limit.
_BATCH = 32

MAX_VARINT = (1 << 62) - 1

_DATA = {data for data, _ in DATA_TYPES}
_FINAL = {final for _, final in DATA_TYPES}


class CapsuleError(Http2tcpError):
    """The peer broke the rules of the capsule protocol."""


def encode_varint(value: int) -> bytes:
    """Encode a number in as few bytes as possible. RFC 9000, section 16."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x4000_0000:
        return (value | 0x8000_0000).to_bytes(4, "big")
    if value <= MAX_VARINT:
        return (value | 0xC000_0000_0000_0000).to_bytes(8, "big")
    raise ValueError("a variable-length integer has at most 62 bits")


def decode_varint(buffer: bytes | bytearray, position: int) -> tuple[int, int] | None:
    """Return the integer at `position` and where it ends; None if bytes are missing. Longer encodings are valid too."""
    if position >= len(buffer):
        return None
    size = 1 << (buffer[position] >> 6)
    end = position + size
    if end > len(buffer):
        return None
    return int.from_bytes(buffer[position:end], "big") & ((1 << (size * 8 - 2)) - 1), end


_DATA_PREFIX = encode_varint(DATA_TYPES[0][0])

#: The whole capsule that ends a direction.
FINAL = encode_varint(DATA_TYPES[0][1]) + encode_varint(0)
#: The whole keepalive capsule, which we send after a time of silence.
KEEPALIVE = encode_varint(KEEPALIVE_TYPE) + encode_varint(0)
#: The whole capsule that says that everything from the peer has arrived.
DONE = encode_varint(DONE_TYPE) + encode_varint(0)


class ResetCode(IntEnum):
    """Why one end broke the tunnel. A RESET with any other code breaks the tunnel too."""

    UNSPECIFIED = 0
    #: The target reset its connection to the server, or that connection broke.
    TARGET = 1
    REVOKED = 2
    EXPIRED = 3
    IDLE = 4
    #: The tunnel had reached the maximum age.
    LONGEST = 5
    #: The server was stopped.
    STOPPED = 6
    #: The client leaves before both sides were done.
    LEAVING = 7
    # The codes from here on are used only for resumable tunnels.
    #: The peer broke the rules of resuming: its counts are false, or its figures are out of bounds.
    PROTOCOL = 8
    #: The session is not known, or it is over.
    GONE = 9
    #: The peer needs bytes that are no longer kept.
    GAP = 10
    #: The proof is wrong: the session belongs to another client.
    NOT_YOURS = 11
    #: The client was away for longer than the server waits.
    AWAY_TOO_LONG = 12
    #: The session cannot be resumed now. It is unchanged, and another attempt may succeed.
    BUSY = 13


class Reset(NamedTuple):
    """What a RESET says."""

    code: int
    #: The peer's own words, safe to print.
    words: str


def reset(code: int, words: str) -> bytes:
    """Make the whole RESET capsule. Words that are too long are cut."""
    value = encode_varint(code) + words.encode(errors="replace")[:MAX_WORDS].decode(errors="ignore").encode()
    return encode_varint(RESET_TYPE) + encode_varint(len(value)) + value


def parse_reset(value: bytes | bytearray) -> Reset:
    """Read the value of a RESET. A malformed value is read as far as possible. Words that are too long are cut."""
    number = decode_varint(value, 0)
    if number is None:
        return Reset(ResetCode.UNSPECIFIED, "")
    code, end = number
    text = bytes(value[end : end + MAX_WORDS]).decode(errors="replace")
    return Reset(code, printable(text))


def data_header(length: int) -> bytes:
    """Make the head of a DATA capsule with `length` bytes of payload, which the caller sends after it."""
    return _DATA_PREFIX + encode_varint(length)


class CapsuleReader:
    """Takes bytes as they come and returns their payload, without waiting for whole capsules."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._payload_left = 0
        self._skip_left = 0
        self._final_pending = False
        #: FINAL_DATA and all of its payload have come: the peer sends no more data.
        self.ended = False
        #: The peer has sent DONE: all of our data has arrived.
        self.done = False
        #: The RESET by which the peer broke the tunnel. Everything after it is ignored.
        self.reset: Reset | None = None
        self._reset_value: bytearray | None = None

    @property
    def payload_left(self) -> int:
        """How many of the next bytes are payload. A caller may move them without `receive`, and then calls `took`."""
        return self._payload_left

    def took(self, count: int) -> None:
        """Count `count` bytes of payload that the caller has moved without `receive`."""
        self._payload_left -= count
        self._finish()

    def receive(self, data: bytes) -> list[bytes]:
        """Return the payload in `data`, in order; an empty list if there is none. Raises CapsuleError."""
        return [part for batch in self.batches(data) for part in batch]

    def batches(self, data: bytes) -> Iterator[list[bytes]]:
        """Like `receive`, but in parts that each take little time: thousands of small capsules may come at once."""
        payload = []
        heads = 0
        view = memoryview(data)
        while view and self.reset is None:
            if self._payload_left:
                part, view = view[: self._payload_left], view[self._payload_left :]
                payload.append(bytes(part))
                self.took(len(part))
            elif self._skip_left:
                skipped = min(self._skip_left, len(view))
                self._skip_left -= skipped
                if self._reset_value is not None:
                    self._reset_value += view[: min(skipped, _MAX_RESET - len(self._reset_value))]
                    self._finish_reset()
                view = view[skipped:]
            else:
                view = self._read_head(view)
                heads += 1
                if heads % _BATCH == 0:
                    yield payload
                    payload = []
        yield payload

    def _read_head(self, view: memoryview) -> memoryview:
        # A head has two integers of 8 bytes at most. This may take more bytes than the head has: the returned slice
        # begins right after the head, so it still contains those bytes.
        before = len(self._head)
        self._head += view[: 16 - before]
        first = decode_varint(self._head, 0)
        second = decode_varint(self._head, first[1]) if first else None
        if first is None or second is None:
            return view[16 - before :]
        kind, (length, end) = first[0], second
        self._head.clear()
        if kind in _DATA or kind in _FINAL:
            if self.ended or self._final_pending:
                raise CapsuleError("a capsule with data came after FINAL_DATA")
            self._payload_left = length
            self._final_pending = kind in _FINAL
            self._finish()
        else:
            self.done = self.done or kind == DONE_TYPE
            self._skip_left = length
            if kind == RESET_TYPE:
                self._reset_value = bytearray()
                self._finish_reset()
        return view[end - before :]

    def _finish_reset(self) -> None:
        assert self._reset_value is not None
        # Do not wait for the rest of a RESET that is too long.
        if self._skip_left == 0 or len(self._reset_value) == _MAX_RESET:
            self.reset = parse_reset(self._reset_value)

    def _finish(self) -> None:
        if self._final_pending and self._payload_left == 0:
            self._final_pending = False
            self.ended = True
