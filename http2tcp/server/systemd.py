"""The service's interface to systemd: it inherits sockets (sd_listen_fds(3)), and reports its state (sd_notify(3)).

This takes only environment variables, inherited descriptors and datagrams, so systemd's own library is not needed. The
variables are removed from the environment once they are read, since they are meant for this process only.
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
# systemd's name for a socket without FileDescriptorName= and without a known unit.
_UNNAMED = "unknown"
# How often the status line is updated, in seconds. People read it in `systemctl status`.
_STATUS_PERIOD = 5.0
# The longest assignment in bytes; a longer one, such as a status, is cut. systemd drops datagrams of more than 4,096
# bytes (NOTIFY_BUFFER_MAX).
_MAX_ASSIGNMENT = 2048


class InheritedSocket(NamedTuple):
    """A listening socket, and the name that its unit gives it (FileDescriptorName=)."""

    name: str
    socket: socket.socket


def inherited_sockets() -> list[InheritedSocket]:
    """Return the listening sockets that the service manager opened for this process; an empty list if it opened none.

    The caller must close them. Raises ListenError if a descriptor is not a listening stream socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "")
    os.environ.pop("LISTEN_PIDFDID", None)
    if not count:
        return []
    if pid != str(os.getpid()):
        logger.warning("ignoring LISTEN_FDS: it is for another process (a shell that starts http2tcp must exec it)")
        return []
    if not count.isdecimal():
        raise ListenError("LISTEN_FDS is not a number, as systemd would set it")
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
        raise ListenError(f"{what} is not a socket: {reason}") from error
    expected = "expected a socket unit with ListenStream="
    fault = ""
    if sock.family not in (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None)):
        fault = f"is neither a TCP nor a Unix socket: {expected}"
    elif sock.type != socket.SOCK_STREAM:
        fault = f"is not a stream socket: {expected}"
    elif not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        fault = f"is not listening: {expected} and without Accept=yes"
    if fault:
        sock.close()
        raise ListenError(f"{what} {fault}")
    return sock


class Notifier:
    """Reports to the service manager. Does nothing if there is no service manager."""

    def __init__(self) -> None:
        """Read the service manager's variables from the environment: sd_notify(3), sd_watchdog_enabled(3)."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        self._socket: socket.socket | None = None
        self._address = ""
        # Datagrams that are not sent yet, because the service manager's socket had no room; the oldest first.
        self._untold: deque[bytes] = deque()
        #: The watchdog must hear from us at least once in this many seconds. None: there is no watchdog.
        self.watchdog: float | None = None
        if not address:
            return
        if not address.startswith(("/", "@")):
            logger.warning("NOTIFY_SOCKET is neither a path nor @NAME: the service manager is not notified")
            return
        # An abstract socket's name begins with a zero octet.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        # Keep the socket open, so that the watchdog can be fed even if the process is out of descriptors.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        if microseconds.isdecimal() and int(microseconds) > 0 and pid in ("", str(os.getpid())):
            self.watchdog = int(microseconds) / 1e6

    def tell(self, *assignments: str) -> None:
        """Send the assignments in one datagram, now or when there is room for it. Never blocks."""
        if self._socket is not None:
            self._untold.append(b"\n".join(map(_encoded, assignments)))
            self._flush()

    def close(self) -> None:
        """Close the socket. Later calls do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def reloading(self) -> None:
        """Report that a reload begins; `READY=1` reports its end. Type=notify-reload needs the time as well."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    async def keep_telling(self, status: Callable[[], str], extend: Callable[[], float]) -> None:
        """Report `status()` when it has changed, and feed the watchdog, until cancelled.

        This runs in the event loop of the server: if the loop is stuck, the watchdog gets no message, and systemd
        restarts the server.
        While `extend()` is above 0, ask the service manager to wait this many seconds for the server to stop.
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
                # Ask for little more time than there is until the next report, so that a process that hangs is soon
                # stopped.
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
    # Replace what is not UTF-8, and cut the text: a status may contain a file name in another encoding, or a long error
    # message.
    return assignment.encode("utf-8", "replace")[:_MAX_ASSIGNMENT].decode("utf-8", "ignore").encode()
