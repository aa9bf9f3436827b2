"""`http2tcp --demo`: a target, a server and a client in one process, on loopback, checked end to end."""

from __future__ import annotations

import hashlib
import os
import statistics
import time

import trio

from http2tcp.address import TCPAddress
from http2tcp.client import open_tunnel
from http2tcp.net.streams import CHUNK, Stream
from http2tcp.server import serve
from http2tcp.settings import ServerSettings

_ROUND_TRIPS = 200
_BULK = 64 * 1024 * 1024


def run_demo() -> int:
    """Show and check a tunnel; the exit status: 0 where every byte came back as it went."""
    return 0 if trio.run(_demo) else 1


async def _demo() -> bool:
    token = os.urandom(12).hex()
    async with trio.open_nursery() as nursery:
        target = await nursery.start(_echo)
        settings = ServerSettings(listen=TCPAddress("127.0.0.1", 0), tokens=(token,))
        (listening,) = await nursery.start(serve, settings)
        _say("http2tcp demo: an echo service, an http2tcp server and a client, all in this process.\n")
        _say("The two lines that you would type:\n")
        _say(f"  http2tcp -s -t {token} -l {listening}")
        _say(f"  http2tcp -c -t {token} -e http://{listening}/ -d {target}\n")
        async with await open_tunnel(f"http://{listening}/", str(target), token=token) as tunnel:
            _say(f"  tunnel      open to {target}, through http://{listening}/")
            trip = await _round_trip(tunnel)
            _say(f"  round trip  {trip * 1e6:.0f} microseconds for 1 byte, median of {_ROUND_TRIPS}")
            whole, seconds = await _echo_bulk(tunnel)
            mebibytes = _BULK / 2**20
            _say(f"  throughput  {mebibytes / seconds:.0f} MiB/s each way at once, {mebibytes:.0f} MiB sent and echoed")
        verdict = "every byte came back, in order, once" if whole else "WRONG: what came back is not what was sent"
        _say(f"  check       SHA-256: {verdict}")
        nursery.cancel_scope.cancel()
    return whole


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:
        pass  # nobody reads on; the check goes on, and the exit status tells


async def _echo(*, task_status: trio.TaskStatus[TCPAddress]) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listeners[0].socket.getsockname()[:2]
    task_status.started(TCPAddress(host, port))
    await trio.serve_listeners(echo, listeners)


async def _round_trip(tunnel: Stream) -> float:
    """The median, in seconds."""
    times = []
    for _ in range(_ROUND_TRIPS):
        started = time.perf_counter()
        await tunnel.send_all(b"x")
        await tunnel.receive_some(1)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def _echo_bulk(tunnel: Stream) -> tuple[bool, float]:
    """Whether the echo is whole, half-close included, and the seconds that it took."""
    chunk = os.urandom(CHUNK)
    sent, received, size = hashlib.sha256(), hashlib.sha256(), 0
    started = time.perf_counter()

    async def send() -> None:
        for _ in range(_BULK // CHUNK):
            sent.update(chunk)
            await tunnel.send_all(chunk)
        await tunnel.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await tunnel.receive_some():
            received.update(data)
            size += len(data)
    return size == _BULK and sent.digest() == received.digest(), time.perf_counter() - started
