"""What masking costs a WebSocket client: `python -m tests.benchmarks.masking`. MB/s, the best of many rounds.

RFC 6455, section 5.3: a client masks everything that it sends, with four random bytes for each frame. The last two
lines are whole uploads with our own client and server, both in this process, so that they share a core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import trio
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage
from wsproto.frame_protocol import XorMaskerSimple

import http2tcp
from http2tcp.protocol.transport import Transport
from http2tcp.protocol.websocket import WebSocket
from tests.support.loopback import TOKEN, served, target

_SIZE = 256 * 1024
_ROUNDS = 300
_UPLOAD = 512 * 1024 * 1024

_DATA = os.urandom(_SIZE)
_KEY = os.urandom(4)


def _by_integers(step: int = 8192) -> bytes:
    """What one would try first: XOR of large integers."""
    mask = int.from_bytes(_KEY, "big") * int.from_bytes(b"\0\0\0\1" * (step // 4), "big")
    parts = (_DATA[start : start + step] for start in range(0, _SIZE, step))
    return b"".join([(int.from_bytes(part, "big") ^ mask).to_bytes(step, "big") for part in parts])


def _operations() -> dict[str, Callable[[], object]]:
    ours, theirs = WebSocket(client=True), Connection(ConnectionType.CLIENT)
    server = WebSocket(client=False)
    wire = b"".join(WebSocket(client=True).messages(_DATA))

    def receive() -> None:
        server.receive(wire)
        while server.payload() is not None:
            pass

    assert _by_integers() == XorMaskerSimple(_KEY).process(bytearray(_DATA))
    return {
        "the mask alone, by large integers": _by_integers,
        "the mask alone, by wsproto's tables": lambda: XorMaskerSimple(_KEY).process(bytearray(_DATA)),
        "a client's messages, by wsproto": lambda: theirs.send(BytesMessage(_DATA)),
        "a client's messages, as we make them": lambda: list(ours.messages(_DATA)),
        "a server takes them": receive,
    }


async def _upload(transport: Transport) -> float:
    whole = trio.Event()

    async def drain(stream: trio.SocketStream) -> None:
        left = _UPLOAD
        while left:
            left -= len(await stream.receive_some(_SIZE))
        whole.set()
        await trio.sleep_forever()

    async with target(drain) as where, served() as server:
        stream = await http2tcp.open_tunnel(server.url, where, token=TOKEN, transport=transport)
        began = time.perf_counter()
        for _ in range(_UPLOAD // _SIZE):
            await stream.send_all(_DATA)
        await whole.wait()
        took = time.perf_counter() - began
        stream.abort()
    return took


def main() -> None:
    operations = _operations()
    best = dict.fromkeys(operations, float("inf"))
    # Interleaved, so that a machine that slows down slows all of them down.
    for _ in range(_ROUNDS):
        for name, operation in operations.items():
            began = time.perf_counter()
            operation()
            best[name] = min(best[name], time.perf_counter() - began)
    for name, seconds in best.items():
        print(f"{name:40} {_SIZE / seconds / 1e6:7.0f}")
    for transport in (Transport.CONNECT_TCP, Transport.WEBSOCKET):
        seconds = min(trio.run(_upload, transport) for _ in range(3))
        print(f"{f'an upload by {transport.value}':40} {_UPLOAD / seconds / 1e6:7.0f}")


if __name__ == "__main__":
    main()
