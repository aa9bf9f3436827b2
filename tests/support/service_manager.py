"""As much of systemd as a service of Type=notify sees: it holds sockets, starts, reloads, restarts and listens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.support.processes import PATIENCE, environment, wait_until

# In the child, between fork and exec: descriptors from 3 on, and its own process number.
_EXEC = """
import fcntl, os, sys
names, numbers, *command = sys.argv[1:]
fds = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 64) for number in numbers.split(",") if number]
for place, fd in enumerate(fds, 3):
    os.dup2(fd, place, inheritable=True)
    os.close(fd)
if fds:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(command[0], command)
"""


class ServiceManager:
    """One unit: a command, the sockets that it is started with, and what it says."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        *,
        sockets: dict[str, socket.socket] | None = None,
        watchdog: float | None = None,
        **variables: str,
    ) -> None:
        """`sockets` are passed under their names, and stay the caller's; `watchdog` is in seconds."""
        self._command = command
        self._sockets = sockets or {}
        self.log_file = directory / "journal"
        self.log_file.touch()
        # pytest's own temporary paths are too long for a socket at times.
        self._address = f"http2tcp-{os.urandom(8).hex()}"
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(f"\0{self._address}")
        self._ear.setblocking(False)
        self._env = environment(NOTIFY_SOCKET=f"@{self._address}", **variables)
        if watchdog is not None:
            self._env["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        #: Every datagram so far.
        self.heard: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        #: How often it was started.
        self.starts = 0

    def __enter__(self) -> ServiceManager:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
        self._ear.close()

    @property
    def log(self) -> str:
        """What the service has written to stderr, all of its processes' one after the other."""
        return self.log_file.read_text()

    @property
    def status(self) -> str:
        """The last STATUS."""
        self.listen()
        lines = [line for said in self.heard for line in said.split("\n") if line.startswith("STATUS=")]
        return lines[-1].removeprefix("STATUS=") if lines else ""

    def listen(self) -> list[str]:
        """Take what was said, and return all of it."""
        while True:
            try:
                self.heard.append(self._ear.recv(4096).decode())
            except BlockingIOError:
                return self.heard

    def count(self, assignment: str) -> int:
        """How often it was said, as in `READY=1`."""
        return sum(said.split("\n").count(assignment) for said in self.listen())

    def start(self) -> None:
        """As `systemctl start`: returns when the service is ready."""
        ready = self.count("READY=1")
        process = self.spawn()
        wait_until(lambda: process.poll() is not None or self.count("READY=1") > ready, "the service is ready")
        assert process.poll() is None, self.log

    def fail(self) -> int:
        """Start it where it cannot start; the exit status."""
        return self.spawn().wait(PATIENCE)

    def spawn(self) -> subprocess.Popen[bytes]:
        """A process of the service, which need not be ready."""
        self.starts += 1
        fds = [sock.fileno() for sock in self._sockets.values()]
        wrapper = [sys.executable, "-S", "-c", _EXEC, ":".join(self._sockets), ",".join(map(str, fds))]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*wrapper, *self._command],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
            )
        return self.process

    def signal(self, number: signal.Signals) -> None:
        """Send it to the service."""
        assert self.process is not None
        self.process.send_signal(number)

    def reload(self) -> None:
        """As `systemctl reload` of Type=notify-reload: returns when the reload is over."""
        ready, reloading = self.count("READY=1"), self.count("RELOADING=1")
        self.signal(signal.SIGHUP)
        wait_until(lambda: self.count("RELOADING=1") > reloading, "the service reloads")
        wait_until(lambda: self.count("READY=1") > ready, "the service has reloaded")

    def stop(self) -> int:
        """As `systemctl stop`: returns when the service has left; its exit status."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def restart(self) -> None:
        """As `systemctl restart`: the new process starts when the old one has left."""
        assert self.stop() == 0, self.log
        self.start()


def listening(family: socket.AddressFamily = socket.AF_INET, path: str = "") -> socket.socket:
    """A socket as a socket unit makes it."""
    sock = socket.socket(family)
    if family is socket.AF_UNIX:
        sock.bind(path)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::" if family is socket.AF_INET6 else "127.0.0.1", 0))
    # SOMAXCONN, Backlog='s default in systemd 252 and newer.
    sock.listen(4096)
    return sock
