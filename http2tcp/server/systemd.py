"""What the service manager hands to a service and is told by it: sd_listen_fds(3), sd_notify(3).

All of it is variables of the environment, inherited descriptors and datagrams, so that nothing of systemd need be
installed. The variables are removed as they are read: they are meant for this process alone.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import trio

from http2tcp.errors import ListenError

logger = logging.getLogger("http2tcp.systemd")

# The first descriptor after stdin, stdout and stderr (SD_LISTEN_FDS_START).
_FIRST = 3
# What systemd calls a socket that has no FileDescriptorName=, and whose unit it does not know.
_UNNAMED = "unknown"
# Of the status line, in seconds: `systemctl status` is read by people.
_STATUS_PERIOD = 5.0
# Of a datagram, systemd reads 4,096 bytes (NOTIFY_BUFFER_MAX), and drops a longer one whole.
_MAX_ASSIGNMENT = 2048


class InheritedSocket(NamedTuple):
    """A listening socket, and the name that its unit gives it (FileDescriptorName=)."""

    name: str
    socket: socket.socket


def inherited_sockets() -> list[InheritedSocket]:
    """The listening sockets that this process was started with; none without a service manager's.

    They belong to the caller. Raises ListenError for a descriptor that cannot be served.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "")
    os.environ.pop("LISTEN_PIDFDID", None)
    if not count:
        return []
    if pid != str(os.getpid()):
        logger.warning("the sockets of LISTEN_FDS are another process's: a shell before http2tcp needs to exec it")
        return []
    if not count.isdecimal():
        raise ListenError("LISTEN_FDS is no number: expected what systemd sets")
    inherited: list[InheritedSocket] = []
    given = names.split(":")
    try:
        for index in range(int(count)):
            name = given[index] if index < len(given) and given[index] else _UNNAMED
            inherited.append(InheritedSocket(name, _listening_socket(_FIRST + index, name)))
    except ListenError:
        for each in inherited:
            each.socket.close()
        raise
    return inherited


def _listening_socket(fd: int, name: str) -> socket.socket:
    what = f"descriptor {fd} ({name!a}) of LISTEN_FDS"
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ListenError(f"{what} is no socket: {reason}") from error
    expected = "expected a socket unit with ListenStream="
    fault = ""
    if sock.family not in (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None)):
        fault = f"is of neither TCP nor Unix: {expected}"
    elif sock.type != socket.SOCK_STREAM:
        fault = f"carries no streams: {expected}"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        fault = f"does not listen: {expected} and without Accept=yes"
    if fault:
        sock.close()
        raise ListenError(f"{what} {fault}")
    return sock


class Notifier:
    """What the service manager is told. Without one, or where it does not listen, nothing is."""

    def __init__(self) -> None:
        """From the environment: sd_notify(3), sd_watchdog_enabled(3). It is closed at the end."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        self._address = ""
        # What it could not take yet, in order.
        self._untold: deque[bytes] = deque()
        #: How often it wants to hear from us, in seconds; None: never.
        self.watchdog: float | None = None
        if not address:
            return
        if not address.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET is neither a path nor @NAME: the service manager is not notified")
            return
        # An abstract socket's name begins with a zero octet.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # Held open: where descriptors have run out, the watchdog must be fed all the same.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        if microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid())):
            self.watchdog = int(microseconds) / 1e6

    def tell(self, *assignments: str) -> None:
        """Say it now, in one datagram, or as soon as there is room. It never waits."""
        if self._socket is not None:
            self._untold.append(b"\n".join(map(_encoded, assignments)))
            self._flush()

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reloading(self) -> None:
        """A reload begins; `READY=1` ends it. With the time, without which Type=notify-reload waits in vain."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def keep_telling(self, status: Callable[[], str], extend: Callable[[], float]) -> None:
        """Say `status()` when it has changed, and feed the watchdog, until cancelled.

        Both are said by a task of the very loop that serves: one that is stuck falls silent, and is restarted.
        While `extend()` is above 0, the service manager is asked for so many seconds of patience with a stop.
        """
        if self._socket is None:
            return
        period = _STATUS_PERIOD if self.watchdog is None else min(_STATUS_PERIOD, self.watchdog / 2)
        said = ""
        while True:
            assignments = []
            if self.watchdog is not None:
                assignments.append("WATCHDOG=1")
            if (line := status()) != said:
                assignments.append(f"STATUS={line}")
            if (seconds := extend()) > 0:
                # Anew each time, and for little more than until the next: a process that hangs gets no more.
                assignments.append(f"EXTEND_TIMEOUT_USEC={int((min(seconds, period) + _STATUS_PERIOD) * 1e6)}")
            self._flush()
            if assignments and not self._untold:
                self.tell(*assignments)
                said = line
            await trio.sleep(period)

    def _flush(self) -> None:
        assert self._socket is not None
        while self._untold:
            try:
                self._socket.sendto(self._untold[0], self._address)
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("the service manager cannot be notified: %s", error.strerror)
            self._untold.popleft()


def _encoded(assignment: str) -> bytes:
    # A status may name a file, whose name may be no UTF-8, and quote a mistake of any length.
    return assignment.encode("utf-8", "replace")[:_MAX_ASSIGNMENT].decode("utf-8", "ignore").encode()
