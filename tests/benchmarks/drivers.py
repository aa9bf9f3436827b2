"""The near end of the tunnels, in this process: open, drain, send a byte to and fro, many at once.

Draining copies nothing: MSG_TRUNC drops a socket's bytes, and a pipe's are spliced to /dev/null. So this end is not
what limits the figures; the column `direct` shows how fast it is by itself.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.benchmarks.procfs import Group

_BULK = 1024 * 1024
_TIMEOUT = 10.0
_NOTHING = Group()
GIB = 1024**3

#: The figures of one measurement, by key.
Sample = dict[str, float]


@dataclass(frozen=True)
class Door:
    """Where a tunnel to the target begins, and which programs carry it."""

    port: int
    #: The request that opens the tunnel, which a head with the status 101 answers; empty: it is open at once.
    head: bytes = b""
    server: Group = _NOTHING
    client: Group = _NOTHING

    @property
    def groups(self) -> dict[str, Group]:
        """The measured programs by their part."""
        parts = {"server": self.server, "client": self.client}
        return {part: group for part, group in parts.items() if group}


def enter(door: Door) -> tuple[socket.socket, bytes]:
    """A tunnel, and the bytes that came behind the head that opened it."""
    sock = socket.create_connection(("127.0.0.1", door.port), timeout=_TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not door.head:
        return sock, b""
    sock.sendall(door.head)
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = sock.recv(4096)
        if not data:
            raise ConnectionError(f"no tunnel: {answer[:200]!r}")
        answer += data
    head, _, ahead = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(f"no tunnel: {head[:200]!r}")
    return sock, ahead


def open_greeted(door: Door) -> socket.socket:
    """A tunnel that has carried its target's greeting."""
    sock, ahead = enter(door)
    if not ahead and not sock.recv(1):
        raise ConnectionError("closed before the target's greeting")
    return sock


# --- bulk ---------------------------------------------------------------------------------------


def drain_socket(sock: socket.socket, seconds: float, groups: Mapping[str, Group]) -> Sample:
    """Throughput of a socket, and CPU of the programs behind it."""
    nowhere = bytearray(_BULK)
    return _drain(lambda: sock.recv_into(nowhere, _BULK, socket.MSG_TRUNC), seconds, groups)


def drain_pipe(pipe: int, seconds: float, groups: Mapping[str, Group]) -> Sample:
    """Throughput of a pipe, and CPU of the programs behind it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        if not select.select([pipe], [], [], _TIMEOUT)[0]:
            raise TimeoutError("nothing comes")
        return _drain(lambda: os.splice(pipe, nowhere, _BULK), seconds, groups)
    finally:
        os.close(nowhere)


def _drain(take: Callable[[], int], seconds: float, groups: Mapping[str, Group]) -> Sample:
    _take_for(take, seconds / 4)  # the windows open and the buffers fill
    before = {part: group.cpu() for part, group in groups.items()}
    taken, elapsed = _take_for(take, seconds)
    sample = {"gib/s": taken / GIB / elapsed}
    for part, group in groups.items():
        sample[f"{part} s/gib"] = (group.cpu() - before[part]) * GIB / taken
    return sample


def _take_for(take: Callable[[], int], seconds: float) -> tuple[int, float]:
    taken, start = 0, time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        size = take()
        if not size:
            raise ConnectionError("the stream ended")
        taken += size
    return taken, now - start


# --- a byte to and fro --------------------------------------------------------------------------


def round_trips(sock: socket.socket, count: int, groups: Mapping[str, Group]) -> Sample:
    """Microseconds that a byte takes to the target and back: the median and the 99th percentile."""
    _trips(sock, count // 10)
    before = {part: group.cpu() for part, group in groups.items()}
    taken = sorted(_trips(sock, count))
    sample = {"p50": taken[count // 2], "p99": taken[count * 99 // 100]}
    for part, group in groups.items():
        sample[f"{part} us"] = (group.cpu() - before[part]) / count * 1e6
    return sample


def _trips(sock: socket.socket, count: int) -> list[float]:
    clock, taken = time.perf_counter_ns, []
    for _ in range(count):
        start = clock()
        sock.send(b"!")
        if not sock.recv(1):
            raise ConnectionError("the stream ended")
        taken.append((clock() - start) / 1000)
    return taken


# --- many, one after the other ------------------------------------------------------------------


def tunnels_a_second(door: Door, at_once: int, seconds: float) -> Sample:
    """How many tunnels a second are opened, greeted, half-closed and ended, `at_once` at any time; CPU for each."""
    mill = _Mill(door, at_once)
    try:
        mill.run(seconds / 4)
        before = {part: group.cpu() for part, group in door.groups.items()}
        start = time.perf_counter()
        done = mill.run(seconds)
        elapsed = time.perf_counter() - start
        sample = {"tunnels/s": done / elapsed}
        for part, group in door.groups.items():
            sample[f"{part} us"] = (group.cpu() - before[part]) / done * 1e6
        return sample
    finally:
        mill.close()


class _Mill:
    """A fixed number of tunnels at once; each that ends is followed by another."""

    def __init__(self, door: Door, at_once: int) -> None:
        self._door = door
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, bytearray]] = {}
        for _ in range(at_once):
            self._begin()

    def run(self, seconds: float) -> int:
        """How many have ended in that time."""
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            events = self._poll.poll(_TIMEOUT)
            if not events:
                raise TimeoutError(f"{len(self._open)} tunnels do not end")
            for descriptor, event in events:
                done += self._advance(descriptor, event)
        return done

    def _begin(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", self._door.port))
        self._open[sock.fileno()] = sock, bytearray()
        self._poll.register(sock, select.EPOLLOUT)

    def _advance(self, descriptor: int, event: int) -> int:
        sock, answer = self._open[descriptor]
        if event & select.EPOLLOUT:
            if self._door.head:
                sock.send(self._door.head)
            self._poll.modify(sock, select.EPOLLIN)
            return 0
        data = sock.recv(4096)
        if data:
            answer += data
            # One byte of greeting, after the blank line where there is a head.
            if not self._door.head or (b"\r\n\r\n" in answer and not answer.endswith(b"\r\n\r\n")):
                sock.shutdown(socket.SHUT_WR)
            return 0
        if not answer or (self._door.head and not answer.startswith(b"HTTP/1.1 101")):
            raise ConnectionError(f"no tunnel: {bytes(answer[:200])!r}")
        self._poll.unregister(sock)
        sock.close()
        del self._open[descriptor]
        self._begin()
        return 1

    def close(self) -> None:
        self._poll.close()
        for sock, _ in self._open.values():
            sock.close()
