"""WebSocket frames written and read byte by byte, without the library that the program uses. RFC 6455, section 5.2."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

KEY = b"\x12\x34\x56\x78"


class Frame(NamedTuple):
    """One frame, unmasked."""

    opcode: int
    payload: bytes
    final: bool = True
    #: None: it was not masked.
    key: bytes | None = None


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, key: bytes | None = KEY, reserved: int = 0
) -> bytes:
    """A frame for the wire: a client's with its mask, a server's with `key=None`."""
    mask = 0 if key is None else 0x80
    head = bytearray([final << 7 | reserved << 4 | opcode])
    if len(payload) < 126:
        head.append(mask | len(payload))
    elif len(payload) < 1 << 16:
        head += bytes([mask | 126]) + len(payload).to_bytes(2, "big")
    else:
        head += bytes([mask | 127]) + len(payload).to_bytes(8, "big")
    return bytes(head) + (payload if key is None else key + masked(payload, key))


def close(code: int | None = None, reason: str = "", *, key: bytes | None = KEY) -> bytes:
    """A Close for the wire."""
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason.encode(), key=key)


def masked(payload: bytes, key: bytes) -> bytes:
    """Section 5.3; the same undoes it."""
    repeated = (key * (len(payload) // 4 + 1))[: len(payload)]
    return bytes(a ^ b for a, b in zip(payload, repeated, strict=True))


def frames(wire: bytes) -> list[Frame]:
    """What is on the wire, which has to be whole frames."""
    found = []
    while wire:
        opcode, final, length, position = wire[0] & 0x0F, bool(wire[0] & 0x80), wire[1] & 0x7F, 2
        assert not wire[0] & 0x70, "a reserved bit is set"
        if length > 125:
            size = 2 if length == 126 else 8
            length, position = int.from_bytes(wire[2 : 2 + size], "big"), 2 + size
        key = None
        if wire[1] & 0x80:
            key, position = wire[position : position + 4], position + 4
        end = position + length
        assert len(wire) >= end, "the last frame is not whole"
        payload = wire[position:end]
        found.append(Frame(opcode, payload if key is None else masked(payload, key), final, key))
        wire = wire[end:]
    return found


def close_of(wire: bytes) -> tuple[int | None, str]:
    """The code and the reason of the one Close on the wire."""
    (found,) = [each for each in frames(wire) if each.opcode == CLOSE]
    code = int.from_bytes(found.payload[:2], "big") if found.payload else None
    return code, found.payload[2:].decode()


#: Each breaks a rule of RFC 6455 or of ours, made with the mask of the sender's side.
BROKEN_FRAMES: dict[str, Callable[[bytes | None], bytes]] = {
    "text": lambda key: frame(TEXT, b"hello", key=key),
    "text that is no UTF-8": lambda key: frame(TEXT, b"\xff", key=key),
    "the mask of the other side": lambda key: frame(BINARY, b"x", key=KEY if key is None else None),
    "a reserved bit": lambda key: frame(BINARY, b"x", key=key, reserved=4),
    "an unknown opcode": lambda key: frame(0x3, b"x", key=key),
    "an unknown control opcode": lambda key: frame(0xB, key=key),
    "a continuation of nothing": lambda key: frame(CONTINUATION, b"x", key=key),
    "a message within a message": lambda key: frame(BINARY, b"", final=False, key=key) + frame(BINARY, b"y", key=key),
    "a ping in fragments": lambda key: frame(PING, b"x", final=False, key=key),
    "a ping of 126 bytes": lambda key: frame(PING, bytes(126), key=key),
    "a length too long written": lambda key: (
        bytes([0x82, 126 | (0 if key is None else 0x80), 0, 1]) + (key or b"") + b"x"
    ),
    "a frame of a terabyte": lambda key: (
        bytes([0x82, 127 | (0 if key is None else 0x80)]) + (1 << 40).to_bytes(8, "big") + (key or b"")
    ),
    "a Close of one byte": lambda key: frame(CLOSE, b"\x03", key=key),
    "a Close with 1006": lambda key: close(1006, key=key),
    "a Close with no UTF-8": lambda key: frame(CLOSE, b"\x03\xe8\xff", key=key),
    "a Close that tells of a failure": lambda key: close(1011, "on fire", key=key),
}
