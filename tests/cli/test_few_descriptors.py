"""A process that may open next to no files: it works, or it says so in one sentence and ends with 73."""

from __future__ import annotations

import re
import resource
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from http2tcp.address import TCPAddress
from tests.support.loopback import asking, echo, open_raw, read_all, target
from tests.support.processes import environment

ROOT = Path(__file__).parents[2]
# Without `site`, which executes the .pth files of what else is installed with one of them open: the coverage's.
_PATHS = [str(ROOT), *site.getsitepackages()]
_COMMAND = [
    sys.executable,
    "-S",
    "-c",
    f"import sys; sys.path[:0] = {_PATHS}; from http2tcp.__main__ import main; main()",
]
LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


def limited(most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def sentence(status: int | None, said: str) -> None:
    assert status == 73, said
    assert said.count("\n") == 1, said
    assert said.startswith("http2tcp: too many open files: at least ")


@pytest.mark.parametrize("most", [4, 5, 6, 7, 9, 12, 16, 19, 20, 21, 22, 24, 30])
async def test_a_server_that_says_that_it_listens_serves(most: int) -> None:
    async with target(echo) as where:
        process = subprocess.Popen(
            [*_COMMAND, "-s", "-d", where, "-l", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            preexec_fn=limited(most),
        )
        with process:
            try:
                assert process.stderr is not None
                said = await trio.to_thread.run_sync(process.stderr.readline)
                found = LISTENING.search(said)
                if found is None:
                    sentence(process.wait(20), said + process.stderr.read())
                    return
                assert most >= 16
                with trio.fail_after(20):
                    stream, _ = await open_raw(TCPAddress("127.0.0.1", int(found[1])), asking(where, token=None))
                    async with stream:
                        await stream.send_all(b"ping")
                        await stream.send_eof()
                        assert await read_all(stream) == b"ping"
            finally:
                process.terminate()
        assert process.returncode == 0


@pytest.mark.parametrize("most", [4, 6, 9, 12])
@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "-e", "http://127.0.0.1:9/", "-d", "localhost:22"],
        ["-c", "-e", "http://127.0.0.1:9/", "-d", "localhost:22", "-l", "0"],
        ["-c", "-e", "http://127.0.0.1:9/", "-d", "localhost:22", "--check"],
        ["--demo"],
        ["-s", "--check"],
    ],
    ids=["stdio", "forwarder", "check", "demo", "server-check"],
)
def test_no_other_command_ends_in_a_traceback(arguments: list[str], most: int) -> None:
    done = subprocess.run(
        [*_COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(),
        preexec_fn=limited(most),
    )
    sentence(done.returncode, done.stderr)
    assert done.stdout == ""
