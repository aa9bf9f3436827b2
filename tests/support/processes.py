"""Real programs as processes: found, started on free ports, waited for, ended by pid."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

# The daemons are not on every user's path.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])

# Generous, since only a failure waits for so long.
PATIENCE = 20.0


def program(name: str) -> str:
    """The program's path. Where it is missing the test fails in CI, and is skipped on a developer's machine."""
    path = shutil.which(name, path=_PATH)
    if path is None:
        reason = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def http2tcp(*arguments: str) -> list[str]:
    """The command line of http2tcp as it is in this environment."""
    return [sys.executable, "-m", "http2tcp", *arguments]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without the user's own http2tcp settings and proxies, and with the variables."""
    # PYTHONUNBUFFERED hides what becomes of a log line that could not be written.
    unwanted = ("HTTP2TCP_", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return {name: value for name, value in kept.items() if not name.upper().endswith("_PROXY")} | variables


def free_port() -> int:
    """A port of 127.0.0.1 that a server can listen on within the next minute, and nobody else is given."""
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.connect(listener.getsockname())
        # Whoever closes first keeps the pair of ports in TIME_WAIT: no port 0 gets it, SO_REUSEADDR does.
        accepted, _ = listener.accept()
        accepted.close()
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str, within: float = PATIENCE) -> None:
    """Look every 20 ms until the condition holds. Raises AssertionError with `what` after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether 127.0.0.1 accepts connections at the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def running(
    command: Sequence[str],
    log: Path,
    ready: Callable[[], object],
    *,
    env: dict[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process that is `ready`; its output goes to the file `log`; it is ended at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env or environment()
        )
    try:
        wait_until(lambda: process.poll() is not None or ready(), f"{command[0]} is ready")
        assert process.poll() is None, f"{command[0]} has ended:\n{log.read_text(errors='replace')}"
        yield process
    finally:
        end(process, stop)


@contextmanager
def conversation(command: Sequence[str], *, stderr: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The command with pipes to its stdin and stdout; killed at the end, or when it has taken far too long."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment())
    # Reading a line from it has no timeout of its own.
    watchdog = threading.Timer(3 * PATIENCE, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        with process:
            pass


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str], stop: signal.Signals = signal.SIGTERM) -> None:
    """End the process, kindly first."""
    if process.poll() is None:
        process.send_signal(stop)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait(5)
