"""A shell at a terminal of its own, to type into and to read from."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support.processes import PATIENCE, environment


@dataclass
class Terminal:
    """What a person sees and types. `prompt` is what the shell shows when it reads keys."""

    fd: int
    prompt: str
    _shown: str = field(default="", repr=False)

    def press(self, keys: str) -> None:
        """Type, and wait for nothing."""
        os.write(self.fd, keys.encode())

    def until(self, words: str) -> str:
        """What is shown up to these words. Raises AssertionError where they do not come."""
        deadline = time.monotonic() + PATIENCE
        while words not in self._shown:
            readable, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"{words!r} was not shown, but {self._shown!r}"
            self._shown += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self._shown = self._shown.partition(words)
        return before

    def run(self, line: str) -> None:
        """Run a line that prints nothing."""
        self.press(f"{line}; echo DO''NE\n")
        self.until("DONE")
        self.until(self.prompt)


@contextmanager
def terminal(command: Sequence[str], prompt: str, **variables: str) -> Iterator[Terminal]:
    """The command at a terminal that is 200 columns wide; killed at the end."""
    master, slave = pty.openpty()
    # As a session leader with a terminal of its own, which an interactive shell asks for.
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="dumb", COLUMNS="200", LINES="100", **variables),
    )
    os.close(slave)
    try:
        yield Terminal(master, prompt)
    finally:
        os.close(master)  # the shell gets SIGHUP
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
