"""Start programs, wait until they serve, and end them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
_READY = 10.0
_END = 5.0


class Programs:
    """The programs of one row; all of them end with it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._running: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for program in reversed(self._running):
            program.end()

    def start(self, *argv: str, pipes: bool = False, environment: Mapping[str, str] = {}) -> Program:
        """Start a program; its output goes to a file, or to pipes if it is used through stdin and stdout."""
        log = self.scratch / f"{len(self._running)}-{Path(argv[0]).name}.log"
        program = Program(argv, log, pipes, environment)
        self._running.append(program)
        return program


class Program:
    """A running program."""

    def __init__(self, argv: Sequence[str], log: Path, pipes: bool, environment: Mapping[str, str]) -> None:
        self._log = log
        self._name = " ".join(argv[:3])
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env=clean_environment() | dict(environment),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else file,
                stderr=file,
                bufsize=0,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self, pattern: str) -> str:
        """Wait until its output matches `pattern`; returns the first group."""
        deadline = time.monotonic() + _READY
        while time.monotonic() < deadline:
            if found := re.search(pattern, self._log.read_text(errors="replace")):
                return found[1]
            self._still_running()
            time.sleep(0.01)
        raise TimeoutError(f"{self._name} did not say {pattern!r}: {self.last_words()}")

    def accepts(self, port: int) -> None:
        """Wait until something listens at that port."""
        deadline = time.monotonic() + _READY
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            except OSError:
                self._still_running()
                time.sleep(0.02)
        raise TimeoutError(f"{self._name} does not listen: {self.last_words()}")

    def end(self) -> None:
        """End it: by SIGTERM, or by SIGKILL if it does not end."""
        self.process.terminate()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            # Twice, since our server's first SIGTERM lets open tunnels finish.
            self.process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            try:
                self.process.wait(timeout=_END)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _still_running(self) -> None:
        if self.process.poll() is not None:
            raise ChildProcessError(f"{self._name} ended with {self.process.returncode}: {self.last_words()}")

    def last_words(self) -> str:
        """The end of its output."""
        return self._log.read_text(errors="replace").strip()[-300:] or "it said nothing"


def clean_environment() -> dict[str, str]:
    """Our own environment without the variables that http2tcp reads."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HTTP2TCP_")}


def free_port() -> int:
    """A free port, for a program that cannot choose one itself."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
