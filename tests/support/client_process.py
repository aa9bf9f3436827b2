"""`http2tcp -c` as a process of its own, as ssh starts it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.support.loopback import TOKEN
from tests.support.processes import environment, http2tcp


@asynccontextmanager
async def client(
    *arguments: str, command: Sequence[str] | None = None, environ: dict[str, str] | None = None, **descriptors: Any
) -> AsyncIterator[trio.Process]:
    """A client with TOKEN in its environment; stdin, stdout and stderr are pipes unless told otherwise.

    `command` goes before the arguments in place of the usual one. The process is killed at the end.
    """
    for name in ("stdin", "stdout", "stderr"):
        descriptors.setdefault(name, subprocess.PIPE)
    whole = [*(http2tcp() if command is None else command), "-c", *arguments]
    env = environ or environment(HTTP2TCP_TOKEN=TOKEN)
    process = await trio.lowlevel.open_process(whole, env=env, **descriptors)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def close_stdin(process: trio.Process) -> None:
    """What ssh does as soon as stdout has ended."""
    assert process.stdin is not None
    await process.stdin.aclose()


async def ended(process: trio.Process, within: float = 20.0) -> tuple[int, str]:
    """Wait for the end: the exit status, and what was said on stderr. Generous, since only a failure waits."""
    said = bytearray()
    assert process.stderr is not None
    with trio.fail_after(within):
        while data := await process.stderr.receive_some():
            said += data
        status = await process.wait()
    return status, said.decode()


def patched(*statements: str) -> list[str]:
    """A command that runs http2tcp after these statements, such as a constant made shorter."""
    return [sys.executable, "-c", "\n".join([*statements, "from http2tcp.__main__ import main", "main()"])]


def one_line(said: str) -> str:
    """The one sentence that a user reads."""
    assert said.endswith("\n"), said
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert TOKEN not in said
    return said.rstrip("\n")
