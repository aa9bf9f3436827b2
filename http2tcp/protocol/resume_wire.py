"""Sans-IO capsules of a resumable tunnel: HELLO, CHALLENGE, ACK and PING.

docs/wire.md, "Resuming", has the layouts. This module reads and writes the capsules; `http2tcp.protocol.resume` decides
what to do about them. The errors of this module carry the RESET to answer with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from http2tcp.errors import Http2tcpError
from http2tcp.protocol.capsule import (
    DATA_TYPES,
    DONE_TYPE,
    MAX_WORDS,
    RESET_TYPE,
    Reset,
    ResetCode,
    decode_varint,
    encode_varint,
    parse_reset,
    reset,
)

if TYPE_CHECKING:
    pass

# Capsule types, chosen at random like those of capsule.py.
HELLO_TYPE = 0x316EEF55
CHALLENGE_TYPE = 0x3FE5EBA9
ACK_TYPE = 0x16F884A5
PING_TYPE = 0x3DD10190

#: The size of a secret, of a nonce and of a proof, in bytes: that of a SHA-256 digest.
KEY_SIZE = 32
# The most bytes in the value of a HELLO. All parameters of today take about 250; the rest is for future ones.
MAX_HELLO = 1024
# The most bytes that are read of the value of a RESET. Its code takes 8 bytes at most.
_MAX_RESET = 8 + MAX_WORDS
# The longest time in a HELLO: 24 days in milliseconds, or 68 years in seconds. A longer one is a mistake.
_MAX_TIME = (1 << 31) - 1

#: A session's id: `[NODE-]12 hex`. It is sent in a header field, by which a front end can route the request.
SESSION = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,62}-)?[0-9a-f]{12}")

_DATA = frozenset(data for data, _ in DATA_TYPES)
_FINAL = frozenset(final for _, final in DATA_TYPES)


# --- errors ---------------------------------------------------------------------------------------


class ResumeError(Http2tcpError):
    """This peer, or this attempt of it, is refused. The error's sentence contains no secret."""

    #: The code of the RESET for the peer.
    code = ResetCode.PROTOCOL

    def capsule(self) -> bytes:
        """The RESET that answers this error."""
        return reset(self.code, str(self))


class Violation(ResumeError):
    """The peer broke the rules. If its connection is attached, or its proof is right, the session is over."""


class Gap(ResumeError):
    """The peer has not received bytes that are no longer kept: the session is over."""

    code = ResetCode.GAP


class NotYours(ResumeError):
    """The proof is wrong or missing. The session is unchanged."""

    code = ResetCode.NOT_YOURS


class Stale(ResumeError):
    """The attempt is not newer than the last one that attached. The session is unchanged."""

    code = ResetCode.BUSY


# --- capsules without parameters ------------------------------------------------------------------


def _capsule(kind: int, value: bytes) -> bytes:
    return encode_varint(kind) + encode_varint(len(value)) + value


#: The whole PING, which asks the peer for an ACK at once.
PING = _capsule(PING_TYPE, b"")


def ack(position: int) -> bytes:
    """The whole ACK: `position` positions of the peer's direction have been handed on."""
    return _capsule(ACK_TYPE, encode_varint(position))


def challenge(nonce: bytes) -> bytes:
    """The whole CHALLENGE. `nonce` is KEY_SIZE random bytes."""
    assert len(nonce) == KEY_SIZE
    return _capsule(CHALLENGE_TYPE, nonce)


class Gone(NamedTuple):
    """The words of a RESET with GONE: which server does not know the session, and when that server started."""

    #: The server's `--node`; empty if it has none.
    node: str
    #: When the server started, in seconds since 1970; 0 if the words do not say.
    started: int


def gone(node: str, started: int) -> bytes:
    """The whole RESET of a server that does not know the session."""
    return reset(ResetCode.GONE, f"{node or '-'} {started}")


def parse_gone(words: str) -> Gone:
    """Read the words of a RESET with GONE. Words that cannot be read are not an error."""
    node, _, started = words.partition(" ")
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", node)
    return Gone(node if known else "", int(started) if re.fullmatch(r"[0-9]{1,12}", started) else 0)


# --- HELLO ----------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """One HELLO. docs/wire.md says which side sends which of the fields, and when.

    Not a dataclass: creating such a class at import would slow down every login.
    """

    #: Milliseconds: its sender sends something at least this often.
    keepalive: int
    #: How many bytes its sender keeps of what it sends.
    window: int
    #: Seconds without a connection: how long a client wants the server to wait, or how long a server waits at most.
    grace: int | None = None
    session: str | None = None
    secret: bytes | None = None
    received: int | None = None
    proof: bytes | None = None
    #: Seconds of silence after which the server ends the tunnel.
    idle_timeout: int | None = None
    acked: int | None = None
    attempt: int | None = None
    nonce: bytes | None = None

    def __repr__(self) -> str:
        """Show all fields that are not secret: leave out the secret, the proof and the nonce."""
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name not in _KEYS.values())
        return f"Hello({', '.join(shown)})"

    def capsule(self) -> bytes:
        """Encode the HELLO as a whole capsule."""
        value = b""
        for key, name in _NUMBERS.items():
            if (number := getattr(self, name)) is not None:
                value += _parameter(key, encode_varint(number))
        for key, name in _KEYS.items():
            if (secret := getattr(self, name)) is not None:
                value += _parameter(key, secret)
        if self.session is not None:
            value += _parameter(_SESSION_KEY, self.session.encode("ascii"))
        return _capsule(HELLO_TYPE, value)


_SESSION_KEY = 4
_NUMBERS = {1: "keepalive", 2: "window", 3: "grace", 6: "received", 8: "idle_timeout", 9: "acked", 10: "attempt"}
_KEYS = {5: "secret", 7: "proof", 11: "nonce"}
_TIMES = {"keepalive", "grace", "idle_timeout"}


def _parameter(key: int, value: bytes) -> bytes:
    return encode_varint(key) + encode_varint(len(value)) + value


def parse_hello(value: bytes | bytearray) -> Hello:
    """Read the value of a HELLO. Raises Violation; unknown parameters are ignored."""
    found: dict[str, int | bytes | str] = {}
    seen: set[int] = set()
    at = 0
    while at < len(value):
        first = decode_varint(value, at)
        second = decode_varint(value, first[1]) if first else None
        if first is None or second is None or second[1] + second[0] > len(value):
            raise Violation("a HELLO is cut short")
        key, (size, start) = first[0], second
        at = start + size
        if key in seen:
            raise Violation(f"a HELLO has its parameter {key} twice")
        seen.add(key)
        part = bytes(value[start:at])
        if name := _NUMBERS.get(key):
            found[name] = _number(name, part)
        elif name := _KEYS.get(key):
            if size != KEY_SIZE:
                raise Violation(f"the {name} of a HELLO has {size} bytes, and not {KEY_SIZE}")
            found[name] = part
        elif key == _SESSION_KEY:
            session = part.decode("ascii", errors="replace")
            if not SESSION.fullmatch(session):
                raise Violation("the session of a HELLO is not an id")
            found["session"] = session
    if "keepalive" not in found or "window" not in found:
        raise Violation("a HELLO has no keepalive or no window")
    return Hello(**found)  # type: ignore[arg-type]


def _number(name: str, part: bytes) -> int:
    number = decode_varint(part, 0)
    if number is None or number[1] != len(part):
        raise Violation(f"the {name} of a HELLO is not a number")
    if (name in _TIMES and number[0] > _MAX_TIME) or (name == "keepalive" and not number[0]):
        raise Violation(f"the {name} of a HELLO is out of bounds")
    return number[0]


# --- reading --------------------------------------------------------------------------------------


class Challenge(NamedTuple):
    """The server knows the session, and wants a proof that covers this nonce."""

    nonce: bytes


class Ack(NamedTuple):
    """The peer has handed on our direction up to `position`."""

    position: int


class Mark(Enum):
    """A capsule that is fully described by its type."""

    FINAL = "final"
    PING = "ping"
    DONE = "done"
    #: A capsule that is skipped: of another type, or DATA without payload.
    OTHER = "other"


Event = bytes | Hello | Challenge | Ack | Reset | Mark

# The types whose value is read only once it is complete, and the most bytes that the value may have.
_VALUES = {HELLO_TYPE: MAX_HELLO, CHALLENGE_TYPE: KEY_SIZE, ACK_TYPE: 8, PING_TYPE: 0}


class Reader:
    """Turns the bytes of one connection into events, in order.

    Payload is passed on before its capsule is complete. Memory is bounded, whatever the peer sends: only the values of
    HELLO, CHALLENGE, ACK and RESET are kept until they are complete, and these are short.
    """

    __slots__ = ("_final", "_head", "_kind", "_over", "_skip_left", "_value", "payload_left")

    def __init__(self) -> None:
        self._head = b""
        #: How many of the next bytes are payload. A caller that moves them past this reader calls `took`.
        self.payload_left = 0
        self._final = False
        self._kind: int | None = None
        self._value = b""
        self._skip_left = 0
        self._over = False

    def took(self, count: int) -> bool:
        """Count `count` bytes of payload that went past this reader. Return whether they completed FINAL_DATA."""
        assert 0 <= count <= self.payload_left
        self.payload_left -= count
        ended = self._final and not self.payload_left
        self._final = self._final and not ended
        return ended

    def read(self, data: bytes) -> Iterator[Event]:
        """Yield the events that are in `data`. Raises Violation. Everything after a RESET is ignored."""
        view = memoryview(data)
        while view and not self._over:
            if self.payload_left:
                part = view[: self.payload_left]
                view = view[len(part) :]
                ended = self.took(len(part))
                yield bytes(part)
                if ended:
                    yield Mark.FINAL
            elif self._skip_left:
                part = view[: self._skip_left]
                view = view[len(part) :]
                self._skip_left -= len(part)
                if self._kind is not None:
                    self._value += part[: _MAX_RESET - len(self._value)] if self._kind == RESET_TYPE else part
                    if event := self._finish():
                        yield event
            else:
                before = len(self._head)
                # The head is two integers of 8 bytes at most. Bytes behind it are read again, from `view`.
                self._head += view[: 16 - before]
                first = decode_varint(self._head, 0)
                second = decode_varint(self._head, first[1]) if first else None
                if first is None or second is None:
                    return
                self._head = b""
                view = view[second[1] - before :]
                if event := self._begin(first[0], second[0]):
                    yield event

    def _begin(self, kind: int, length: int) -> Event | None:
        if kind in _DATA or kind in _FINAL:
            self.payload_left = length
            self._final = kind in _FINAL and length > 0
            if length:
                return None
            return Mark.FINAL if kind in _FINAL else Mark.OTHER
        most = _VALUES.get(kind)
        if most is not None and length > most:
            raise Violation(f"a capsule {kind:#x} has {length} bytes, and {most} at most are allowed")
        self._skip_left = length
        if most is not None or kind == RESET_TYPE:
            self._kind, self._value = kind, b""
            return self._finish()
        return Mark.DONE if kind == DONE_TYPE else Mark.OTHER

    def _finish(self) -> Event | None:
        kind, value = self._kind, self._value
        # Do not wait for the rest of a RESET that is too long.
        if self._skip_left and not (kind == RESET_TYPE and len(value) == _MAX_RESET):
            return None
        self._kind, self._value = None, b""
        if kind == RESET_TYPE:
            self._over = True
            return parse_reset(value)
        if kind == PING_TYPE:
            return Mark.PING
        if kind == HELLO_TYPE:
            return parse_hello(value)
        if kind == CHALLENGE_TYPE:
            if len(value) != KEY_SIZE:
                raise Violation("a CHALLENGE has the wrong length")
            return Challenge(value)
        number = decode_varint(value, 0)
        if number is None or number[1] != len(value):
            raise Violation("an ACK is not a number")
        return Ack(number[0])


class FirstCapsule:
    """Reads the first capsule of a connection and no further: it decides how the connection goes on.

    A first capsule that is neither HELLO, CHALLENGE nor RESET is Mark.OTHER, and is not consumed: all bytes that came
    are in `rest`, for a reader of plain capsules. The caller bounds the time; this class bounds the bytes.
    """

    __slots__ = ("rest",)

    def __init__(self) -> None:
        #: The bytes that have come and are not consumed. Until there is an event, these are all bytes.
        self.rest = b""

    def receive(self, data: bytes) -> Hello | Challenge | Reset | Mark | None:
        """Take more bytes. Return the first capsule, or None if it is not complete yet. Raises Violation."""
        self.rest += data
        first = decode_varint(self.rest, 0)
        if first is None:
            return None
        if first[0] not in (HELLO_TYPE, CHALLENGE_TYPE, RESET_TYPE):
            return Mark.OTHER
        second = decode_varint(self.rest, first[1])
        if second is None:
            return None
        length, start = second
        most = _MAX_RESET if first[0] == RESET_TYPE else _VALUES[first[0]]
        if first[0] != RESET_TYPE and length > most:
            raise Violation(f"a capsule {first[0]:#x} has {length} bytes, and {most} at most are allowed")
        end = start + min(length, most)
        if len(self.rest) < end:
            return None
        event = next(Reader().read(self.rest[:end]))
        assert isinstance(event, (Hello, Challenge, Reset))
        self.rest = self.rest[end:]
        return event


#: The version of the format that `freeze` writes.
VERSION = 1


class StateError(Http2tcpError):
    """A saved session or tombstone cannot be read: another version wrote it, or it is damaged."""
