"""`http2tcp --demo`: run a target, a server and a client in one process, on loopback, and check them end to end.

It answers a newcomer's first questions: what to type, whether all bytes arrive and how fast, which message a user sees
when something is wrong, and what the server's log says then.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import socket
import statistics
import sys
import time

import trio

from http2tcp.address import TCPAddress
from http2tcp.client.check.hops import Hop, State, Verdict
from http2tcp.client.check.layout import TextReport
from http2tcp.client.connector import open_tunnel
from http2tcp.errors import Http2tcpError, ListenError, TunnelError, os_reason
from http2tcp.net.streams import CHUNK, Stream
from http2tcp.server.server import serve
from http2tcp.server.settings import ServerSettings

_ROUND_TRIPS = 200
_BULK = 64 * 1024 * 1024
# The address of a cloud's metadata service, which gives a machine's secrets to every program on that machine.
_METADATA = "169.254.169.254:80"
# How many seconds to wait for a record of the log: the server may write it after the client has seen the connection
# end.
_RECORD_TIMEOUT = 2.0


def run_demo() -> int:
    """Show and check tunnels. Return 0 if every byte came back and each error was reported, or else 1.

    Raises Http2tcpError if there is no loopback interface.
    """
    return 0 if trio.run(_demo) else 1


async def _demo() -> bool:
    failure: Http2tcpError | None = None
    works = False
    async with trio.open_nursery() as services:
        try:
            target = await services.start(_echo)
            token = os.urandom(12).hex()
            settings = ServerSettings(listen=TCPAddress("127.0.0.1", 0), tokens=(token,))
            (listening,) = await services.start(serve, settings)
            works = await _Show(f"http://{listening}/", listening, target, token).run()
        except Http2tcpError as error:
            failure = error
        services.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return works


class _Show:
    """Runs the demo step by step, and prints what it shows."""

    def __init__(self, endpoint: str, listening: object, target: TCPAddress, token: str) -> None:
        self._endpoint = endpoint
        self._listening = listening
        self._target = target
        self._token = token
        # stdout is None if it was closed when we began. The exit status still has the result.
        self._report = TextReport(sys.stdout or io.StringIO())
        self._works = True

    async def run(self) -> bool:
        """Run all steps. Return whether everything was as it should be."""
        _say("http2tcp demo: an echo service, a server and a client, all in this process.\n")
        _say("The two lines that you would type:\n")
        _say(f"  http2tcp -s -t {self._token} -l {self._listening}")
        _say(f"  http2tcp -c -t {self._token} -e {self._endpoint} -d {self._target}\n")
        _say("What they do:\n")
        records = _Records()
        logger = logging.getLogger("http2tcp.audit")
        level, propagate = logger.level, logger.propagate
        logger.addHandler(records)
        logger.setLevel(logging.INFO)
        # The demo shows the records itself: keep them off stderr.
        logger.propagate = False
        try:
            await self._tunnel(records)
            _say("\nWhat you read when something is wrong, and what the server's log says:\n")
            await self._mistake("wrong token", str(self._target), os.urandom(12).hex(), records)
            with socket.socket() as nobody:
                # The port is bound, so that no other program can take it, but nothing listens there.
                nobody.bind(("127.0.0.1", 0))
                await self._mistake("closed port", f"127.0.0.1:{nobody.getsockname()[1]}", self._token, records)
            await self._mistake("cloud's metadata", _METADATA, self._token, records)
        finally:
            logger.removeHandler(records)
            logger.setLevel(level)
            logger.propagate = propagate
        verdict = "It works: every byte came back, and each error was named."
        self._report.end(Verdict(verdict) if self._works else Verdict("It FAILS on this machine.", 1))
        return self._works

    async def _tunnel(self, records: _Records) -> None:
        started = time.perf_counter()
        async with await open_tunnel(self._endpoint, str(self._target), token=self._token) as tunnel:
            took = time.perf_counter() - started
            self._line("tunnel", f"open to {self._target}, through {self._endpoint}", seconds=took)
            trip = await _round_trip(tunnel)
            self._line("round trip", f"{trip * 1e6:.0f} microseconds for 1 byte, median of {_ROUND_TRIPS}")
            mebibytes = _BULK / 2**20
            self._report.waiting("throughput", f"{mebibytes:.0f} MiB each way")
            whole, took = await _echo_bulk(tunnel)
            speed = f"{mebibytes / took:.0f} MiB/s each way at once, {mebibytes:.0f} MiB sent and echoed"
            self._line("throughput", speed)
        if whole:
            self._line("check", "SHA-256: every byte came back, in order, once")
        else:
            self._line("check", "SHA-256: WRONG: what came back is not what was sent", good=False)
        await records.next("opened")
        self._line("log", await records.next("ended"))

    async def _mistake(self, label: str, destination: str, token: str, records: _Records) -> None:
        try:
            async with await open_tunnel(self._endpoint, destination, token=token):
                self._line(label, "WRONG: a tunnel was opened", good=False)
        except TunnelError as error:
            # The demo causes this failure on purpose. Still, mark it as a note: a green tick beside an error would
            # confuse.
            self._line(label, f"{error.hop}: {error}", state=State.NOTE, log=await records.next())

    def _line(
        self,
        label: str,
        text: str,
        *,
        good: bool = True,
        state: State = State.OK,
        seconds: float | None = None,
        log: str | None = None,
    ) -> None:
        self._works &= good
        state = state if good else State.FAILED
        self._report.hop(Hop(label, label, state, text, seconds, () if log is None else (log,)))


def _say(line: str) -> None:
    try:
        print(line, flush=True)
    except OSError:
        pass  # stdout is closed or broken; the exit status will have the result


class _Records(logging.Handler):
    """Collects the server's records, as its log would show them."""

    def __init__(self) -> None:
        super().__init__()
        self._send, self._receive = trio.open_memory_channel[str](math.inf)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record until `next` asks for it."""
        self._send.send_nowait(record.getMessage())

    async def next(self, event: str = "") -> str:
        """Wait for the next record that begins with `event`, and return it."""
        with trio.move_on_after(_RECORD_TIMEOUT):
            while True:
                line = await self._receive.receive()
                if line.startswith(event):
                    return line
        return "the server has written nothing"


async def _echo(*, task_status: trio.TaskStatus[TCPAddress]) -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()

    try:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    except OSError as error:
        raise ListenError(f"cannot listen on 127.0.0.1: {os_reason(error)}") from error
    host, port = listeners[0].socket.getsockname()[:2]
    task_status.started(TCPAddress(host, port))
    await trio.serve_listeners(echo, listeners)


async def _round_trip(tunnel: Stream) -> float:
    """Measure the median round-trip time of one byte, in seconds."""
    times = []
    for _ in range(_ROUND_TRIPS):
        started = time.perf_counter()
        await tunnel.send_all(b"x")
        await tunnel.receive_some(1)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


async def _echo_bulk(tunnel: Stream) -> tuple[bool, float]:
    """Send `_BULK` bytes and half-close. Return whether the same bytes came back, and how many seconds it took."""
    chunk = os.urandom(CHUNK)
    received: list[bytes] = []
    started = time.perf_counter()

    async def send() -> None:
        for _ in range(_BULK // CHUNK):
            await tunnel.send_all(chunk)
        await tunnel.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while data := await tunnel.receive_some():
            received.append(data)
    seconds = time.perf_counter() - started
    # Hash only now, after the time was taken: hashing would have slowed the measurement.
    sent = hashlib.sha256()
    for _ in range(_BULK // CHUNK):
        sent.update(chunk)
    came_back = hashlib.sha256()
    for data in received:
        came_back.update(data)
    return sent.digest() == came_back.digest(), seconds
