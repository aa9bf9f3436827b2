"""The commands in the documentation's pages: found, and run as their reader would, in a machine made for them.

A block ```console has commands behind `$ `, lines that go on with a command behind `> `, and under each command what it
prints. `…` stands for anything within a line, and a line `…` for any lines. How wide a gap is does not count.
A comment above the block may say more:

    <!-- not run: REASON -->     it cannot run in a test
    <!-- left running -->        its last command does not end by itself; its reader opens another terminal

and above a block in another language, such as ```nginx:

    <!-- file: PATH -->          it is what root writes to this file

The machine is a directory with a home and an /etc, real servers on free ports, and a PATH. What stands for what is
in `Machine`, and is all that differs from what the page says.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.support.processes import PATIENCE, program

NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")
LEFT_RUNNING = "<!-- left running -->"
FILE = re.compile(r"<!-- file: (/\S+) -->")

# What the program makes by chance: a token, its SHA-256.
_CHANCE = re.compile(r"(?<![\w-])(?:[0-9a-f]{64}|[\w-]{43})(?![\w-])")

# curl has colours on a terminal, whatever NO_COLOR says; and a line that was erased was not there.
_UNSEEN = re.compile(r"\x1b\[[0-9;]*m|[^\n]*\r\x1b\[2K")


class Command(NamedTuple):
    """One command and what it prints."""

    line: int
    text: str
    output: tuple[str, ...]


class Block(NamedTuple):
    """A ```console block, or a file, which a command writes."""

    page: Path
    commands: tuple[Command, ...]
    not_run: str | None
    left_running: bool


def blocks(page: Path) -> list[Block]:
    """All that the reader of a page does, in its order."""
    lines = page.read_text().splitlines()
    found = []
    for start, line in enumerate(lines):
        if not re.fullmatch(r"```\w+", line):
            continue
        above = next((text.strip() for text in reversed(lines[:start]) if text.strip()), "")
        content = lines[start + 1 : lines.index("```", start + 1)]
        if line == "```console":
            reason = NOT_RUN.fullmatch(above)
            commands = tuple(_commands(content, start + 2))
            found.append(Block(page, commands, reason and reason[1], above == LEFT_RUNNING))
        elif file := FILE.fullmatch(above):
            text = "\n".join([f"sudo tee {file[1]} > /dev/null <<'END'", *content, "END"])
            found.append(Block(page, (Command(start + 1, text, ()),), None, False))
    return found


def _commands(lines: Sequence[str], number: int) -> list[Command]:
    found: list[Command] = []
    for offset, line in enumerate(lines):
        if line.startswith("$ "):
            found.append(Command(number + offset, line[2:], ()))
            continue
        last = found.pop()  # a block begins with a command
        if line.startswith("> ") and not last.output:
            found.append(last._replace(text=f"{last.text}\n{line[2:]}"))
        else:
            found.append(last._replace(output=(*last.output, line)))
    return found


@dataclass
class Machine:
    """Where the commands run: a directory, which has `home/me` and `bin`, with what stands for what.

    What the first command that was left running prints is in its `left-running-0`, beside `left-running-0.pid`.
    """

    root: Path
    #: Plain texts of commands and what they are here, in this order.
    replacements: list[tuple[str, str]]
    #: Patterns of what is printed and what the page says in their place, in this order.
    printed: list[tuple[str, str]]
    variables: dict[str, str]
    #: What runs a command line, which is added to it.
    shell: Sequence[str] = ("bash", "-c")
    #: What was made by chance, by what the page has in its place.
    learnt: dict[str, str] = field(default_factory=dict)
    left_running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.root / "home/me"

    def wrap(self, name: str, *lines: str) -> None:
        """Put a shell script on the PATH."""
        file = self.root / "bin" / name
        file.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        file.chmod(0o755)

    def link(self, name: str, file: Path) -> None:
        """Put a program on the PATH."""
        (self.root / "bin" / name).symlink_to(file)

    def run(self, block: Block) -> None:
        """Type the block in. Raises AssertionError where it prints something else than the page says."""
        for command in block.commands:
            place = f"{block.page.name}, line {command.line}: {command.text}"
            stays = block.left_running and command is block.commands[-1]
            shown = self.root / (f"left-running-{len(self.left_running)}" if stays else "terminal")
            terminal = _Terminal(self.here(command.text), self, shown)
            if stays:
                shown.with_suffix(".pid").write_text(f"{terminal.process.pid}\n")
                self.left_running.append(terminal.process)
                matches = self._comes_to_match(command, terminal)
            else:
                terminal.wait()
                matches = self._matches(command, terminal.text)
            said = "\n".join(["--- the page has:", *command.output, "--- it printed:", self._there(terminal.text)])
            assert matches, f"{place}\n{said}"

    def end(self, kept: int = 0) -> None:
        """End what was left running, but for the first `kept` of them."""
        while len(self.left_running) > kept:
            _end_group(self.left_running.pop())

    def here(self, text: str) -> str:
        """A documented command as it is on this machine."""
        for documented, actual in (*self.replacements, *self.learnt.items()):
            text = text.replace(documented, actual)
        return text

    def _there(self, text: str) -> str:
        """What was printed as it would be on the documented machine."""
        for pattern, documented in self.printed:
            text = re.sub(pattern, documented, text)
        return text

    def _comes_to_match(self, command: Command, terminal: _Terminal) -> bool:
        deadline = time.monotonic() + PATIENCE
        while not self._matches(command, terminal.text):
            if time.monotonic() > deadline or terminal.process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def _matches(self, command: Command, printed: str) -> bool:
        names: dict[str, str] = {}
        pattern = "".join(self._pattern(line, names) for line in command.output)
        lines = [_narrow(line) + "\n" for line in self._there(printed).splitlines()]
        found = re.fullmatch(pattern, "".join(lines))
        if found:
            self.learnt.update({documented: found[group] for documented, group in names.items()})
        return found is not None

    def _pattern(self, line: str, names: dict[str, str]) -> str:
        if line.strip() == "…":
            return r"(?:[^\n]*\n)*?"

        def chance(documented: re.Match[str]) -> str:
            if documented[0] in self.learnt:
                return re.escape(self.learnt[documented[0]])
            names[documented[0]] = f"n{len(names)}"
            return rf"(?P<{names[documented[0]]}>[\w-]{{{len(documented[0])}}})"

        parts = []
        for part in _narrow(line).split("…"):
            escaped, at = "", 0
            for made in _CHANCE.finditer(part):
                escaped += re.escape(part[at : made.start()]) + chance(made)
                at = made.end()
            parts.append(escaped + re.escape(part[at:]))
        return r"[^\n]*?".join(parts) + r"\n"


class _Terminal:
    """A command on a terminal of its own, without a keyboard, and what it prints, which goes to the file `shown`."""

    def __init__(self, command: str, machine: Machine, shown: Path) -> None:
        master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (24, 80))
        path = os.pathsep.join([str(machine.root / "bin"), "/usr/local/bin", "/usr/bin", "/bin"])
        self.process = subprocess.Popen(
            [program(machine.shell[0]), *machine.shell[1:], command],
            cwd=machine.home,
            # Nothing of the environment of the tests: a user has just logged in.
            env={
                "HOME": str(machine.home),
                "PATH": path,
                "NO_COLOR": "1",
                "LC_ALL": "C.UTF-8",
                "TERM": "xterm",
                **machine.variables,
            },
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._shown = shown
        self._shown.write_bytes(b"")
        self._reader = threading.Thread(target=self._read, args=(master,))
        self._reader.start()

    def _read(self, master: int) -> None:
        with self._shown.open("ab", buffering=0) as shown:
            try:
                while data := os.read(master, 4096):
                    shown.write(data)
            except OSError:
                pass  # the last of its processes has closed it
            finally:
                os.close(master)

    @property
    def text(self) -> str:
        return _UNSEEN.sub("", self._shown.read_bytes().decode(errors="replace").replace("\r\n", "\n"))

    def wait(self) -> None:
        try:
            self.process.wait(2 * PATIENCE)
        finally:
            _end_group(self.process)
        self._reader.join(PATIENCE)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
        except ProcessLookupError:
            break
        try:
            process.wait(10)
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


def _narrow(line: str) -> str:
    return " ".join(line.split())
