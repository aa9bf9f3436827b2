"""Raw bytes, WebSocket frames and capsules on a connection, written without the product's code.

Each layer is a `Wire`: bytes in, bytes out. What is on the wire varies as the protocols allow it: where messages and
capsules are cut, fragments, pings, capsules that nobody knows, the types of older revisions.
"""

from __future__ import annotations

import base64
import itertools
import random
import socket
import ssl
from typing import Protocol

import trio

from tests.campaign.talk import Gone
from tests.support.loopback import reset

_CHUNK = 256 * 1024
#: How long the other side may take to answer a close that it owes an answer to.
_CLOSING = 15.0


#: linux/tcp_states.h: the state of a connection that is over, which is the first byte of TCP_INFO.
_TCP_CLOSE = 7


def was_reset(stream: trio.SocketStream) -> bool:
    """Whether an EOF was a reset. The kernel reports a reset only once, and a send may have received the report."""
    sock = stream.socket
    if sock.fileno() < 0:
        return True  # this side has closed it
    if sock.did_shutdown_SHUT_WR:
        return False  # this side had sent its EOF: two EOFs close a connection too
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE


class Wire(Protocol):
    """Bytes over something."""

    async def send(self, data: bytes) -> None:
        """Raises Gone."""

    async def receive(self) -> bytes:
        """b"" is an EOF. Raises Gone."""

    async def send_eof(self) -> None:
        """Send EOF. Raises Gone."""

    def cut(self) -> None:
        """End it by RST."""

    async def close(self) -> None:
        """Close it, with a closing message if the protocol has one. Raises nothing."""


class Connection:
    """A TCP connection, or TLS on one."""

    def __init__(
        self, socket: trio.SocketStream, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
    ) -> None:
        self._tcp = socket
        self._stream = stream
        self._ahead = b""

    async def send(self, data: bytes) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone(f"sending: {error.__cause__ or error}") from error

    async def receive(self) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead, b""
            return data
        try:
            data = bytes(await self._stream.receive_some(_CHUNK))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone(f"receiving: {error.__cause__ or error}") from error
        if not data and self._stream is self._tcp and was_reset(self._tcp):
            raise Gone("receiving: it was reset")
        return data

    async def send_eof(self) -> None:
        if not isinstance(self._stream, trio.SocketStream):
            return
        try:
            await self._stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone(f"ending: {error}") from error

    def cut(self) -> None:
        if self._tcp.socket.fileno() >= 0:
            reset(self._tcp)

    async def close(self) -> None:
        with trio.move_on_after(_CLOSING):
            try:
                await self._stream.aclose()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        self._tcp.socket.close()

    async def ask(self, request: bytes) -> str:
        """Send a request, and give the head of the answer. Raises Gone if it is not 101."""
        await self.send(request)
        received = b""
        while b"\r\n\r\n" not in received:
            data = await self.receive()
            if not data:
                raise Gone(f"no whole answer: {received[:200]!r}")
            received += data
        head, _, self._ahead = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise Gone(f"no tunnel: {received[:300]!r}")
        return head.decode("latin-1")


async def open_connection(port: int, context: ssl.SSLContext | None) -> Connection:
    """Connect to 127.0.0.1, and shake hands if there is a context. Raises Gone."""
    try:
        tcp = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError as error:
        raise Gone(f"connecting: {error}") from error
    if context is None:
        return Connection(tcp, tcp)
    secured = trio.SSLStream(tcp, context, server_hostname="localhost")
    try:
        await secured.do_handshake()
    except (trio.BrokenResourceError, ssl.SSLError) as error:
        tcp.socket.close()
        raise Gone(f"shaking hands: {error.__cause__ or error}") from error
    except BaseException:
        tcp.socket.close()
        raise
    return Connection(tcp, secured)


# --- WebSocket: RFC 6455, section 5 -----------------------------------------------------------------------

_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x2, 0x8, 0x9, 0xA


def websocket_fields(*, capsules: bool) -> list[str]:
    """What its opening handshake adds to a request."""
    key = base64.b64encode(random.randbytes(16)).decode()
    fields = [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13"]
    return [*fields, "Sec-WebSocket-Protocol: http2tcp-capsules"] if capsules else fields


class WebSocketWire:
    """A client's end of a WebSocket."""

    def __init__(self, inner: Connection, whim: random.Random) -> None:
        self._inner = inner
        self._whim = whim
        self._buffer = bytearray()
        self._ended = False
        self._closed = False
        #: Two tasks may send, and frames that are mixed up would end the connection.
        self._turn = trio.Lock()

    async def send(self, data: bytes) -> None:
        cuts = [0, len(data)]
        if len(data) > 1 and self._whim.random() < 0.3:
            cuts = sorted({*cuts, *(self._whim.randrange(len(data)) for _ in range(self._whim.randint(1, 3)))})
        frames = [] if self._whim.random() < 0.95 else [_frame(_PING, self._whim.randbytes(5))]
        for begin, end in itertools.pairwise(cuts):
            opcode = _BINARY if begin == 0 else _CONTINUATION
            frames.append(_frame(opcode, data[begin:end], final=end == len(data)))
        await self._say(b"".join(frames))

    async def _say(self, frames: bytes) -> None:
        async with self._turn:
            await self._inner.send(frames)

    async def receive(self) -> bytes:
        while not self._ended:
            frame = self._take()
            if frame is None:
                data = await self._inner.receive()
                if not data:
                    raise Gone("it ended without a Close")
                self._buffer += data
                continue
            opcode, payload = frame
            if opcode == _PING and not self._closed:
                await self._say(_frame(_PONG, payload))
            elif opcode == _CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1000
                if code != 1000:
                    raise Gone(f"Close {code}: {payload[2:].decode(errors='replace')}")
                self._ended = True
            elif opcode in (_BINARY, _CONTINUATION) and payload:
                return payload
        return b""

    def _take(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[1] & 0x80:
            raise Gone("a server's frame is masked")
        length, position = buffer[1] & 0x7F, 2
        if length > 125:
            position = 4 if length == 126 else 10
            if len(buffer) < position:
                return None
            length = int.from_bytes(buffer[2:position], "big")
        if len(buffer) < position + length:
            return None
        opcode, payload = buffer[0] & 0x0F, bytes(buffer[position : position + length])
        del buffer[: position + length]
        return opcode, payload

    async def send_eof(self) -> None:
        """Say Close; what the server still sends is received."""
        self._closed = True
        await self._say(_frame(_CLOSE, (1000).to_bytes(2, "big")))

    def cut(self) -> None:
        self._inner.cut()

    async def close(self) -> None:
        with trio.move_on_after(_CLOSING):
            try:
                if not self._closed:
                    await self.send_eof()
                while not self._ended:
                    await self.receive()
            except Gone:
                pass
        await self._inner.close()


def _frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame, masked."""
    head = bytes([final << 7 | opcode])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    elif len(payload) < 1 << 16:
        head += b"\xfe" + len(payload).to_bytes(2, "big")
    else:
        head += b"\xff" + len(payload).to_bytes(8, "big")
    key = random.randbytes(4)
    mask = (key * (len(payload) // 4 + 1))[: len(payload)]
    # XOR of one large number: byte by byte would hold up all other tunnels.
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")
    return head + key + masked.to_bytes(len(payload), "big")


# --- capsules: RFC 9297, section 3.2; the types are those of docs/wire.md ----------------------------------

_TYPES = ((0x2028D7F2, 0x2028D7F3), (0x2028D7F0, 0x2028D7F1))
_KEEPALIVE, _DONE = 0x1E2A6B5D, 0x2C61F04B


class Capsules:
    """A peer's end of a tunnel in capsules."""

    def __init__(self, wire: Wire, whim: random.Random, *, confirms: bool) -> None:
        self._wire = wire
        self._whim = whim
        self._confirms = confirms
        self._data, self._final = whim.choice(_TYPES)
        self._buffer = bytearray()
        #: How much of the current capsule's value is still to come, and whether it is payload.
        self._left = 0
        self._payload = False
        self._last = False
        self._ended = False
        self._turn = trio.Lock()
        #: Whether the other side has confirmed that it has everything.
        self.done = False

    async def send(self, data: bytes) -> None:
        capsules = b""
        if self._whim.random() < 0.05:
            capsules += _capsule(_KEEPALIVE, b"")
        if self._whim.random() < 0.05:
            # RFC 9297, section 3.2: skip a capsule of an unknown type.
            capsules += _capsule(self._whim.randrange(0x4000_0000_0000) * 0x29 + 0x17, self._whim.randbytes(20))
        await self._say(capsules + _capsule(self._data, data))

    async def _say(self, capsules: bytes) -> None:
        async with self._turn:
            await self._wire.send(capsules)

    async def send_eof(self) -> None:
        await self._say(_capsule(self._final, b""))

    async def receive(self) -> bytes:
        while True:
            if payload := self._take():
                return payload
            if self._ended:
                return b""
            await self._feed()

    async def _feed(self) -> None:
        data = await self._wire.receive()
        if not data:
            raise Gone("it ended without FINAL_DATA" if not self._ended else "it ended without done")
        self._buffer += data

    def _take(self) -> bytes:
        """Payload that has arrived; b"" if more bytes are needed or it has ended."""
        while self._buffer:
            if not self._left and not self._head():
                return b""
            value = bytes(self._buffer[: self._left])
            del self._buffer[: self._left]
            self._left -= len(value)
            payload = self._payload
            self._ended = self._ended or (self._last and not self._left)
            if value and payload:
                return value
        return b""

    def _head(self) -> bool:
        first = _integer(self._buffer, 0)
        second = first and _integer(self._buffer, first[1])
        if not first or not second:
            return False
        kind, (self._left, end) = first[0], second
        del self._buffer[:end]
        self._payload = any(kind in pair for pair in _TYPES)
        if self._payload and self._ended:
            raise Gone("data came after FINAL_DATA")
        self._last = self._last or any(kind == final for _, final in _TYPES)
        self._ended = self._ended or (self._last and not self._left)
        if kind == _DONE:
            self.done = True
        return True

    async def finish(self) -> None:
        """Confirm, and see it confirmed, where this peer does; then close. Otherwise the server closes first."""
        if self._confirms:
            await self._say(_capsule(_DONE, b""))
            while not self.done:
                self._take()
                if not self.done:
                    await self._feed()
        else:
            # A keepalive that reached a closed socket would be answered with a reset.
            try:
                while await self._wire.receive():
                    pass
            except Gone:
                pass
        await self._wire.close()

    async def break_off(self) -> None:
        self._wire.cut()

    async def leave(self) -> None:
        self._wire.cut()


def _capsule(kind: int, value: bytes) -> bytes:
    return _varint(kind) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000, section 16)."""
    for size, (bits, prefix) in enumerate(((6, 0), (14, 1), (30, 2), (62, 3))):
        if value < 1 << bits:
            return (prefix << (8 * (1 << size) - 2) | value).to_bytes(1 << size, "big")
    raise ValueError(value)


def _integer(buffer: bytearray, position: int) -> tuple[int, int] | None:
    if position >= len(buffer):
        return None
    size = 1 << (buffer[position] >> 6)
    if position + size > len(buffer):
        return None
    return int.from_bytes(buffer[position : position + size], "big") & ((1 << (8 * size - 2)) - 1), position + size
