"""docs/troubleshooting.md: what the page says that ssh prints is what the real ssh prints, or at least has in it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import environment, free_port, http2tcp, program

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
SECTION = PAGE.partition("## What ssh says")[2].partition("\n## ")[0]
ROWS = [line.split(" | ")[0] for line in SECTION.splitlines() if line.startswith("| `")]
CLOSED, NOT_FOUND, FDPASS, *_ = [re.findall(r"`([^`]+)`", row) for row in ROWS]
QUOTED = [words for row in ROWS for words in re.findall(r"`([^`]+)`", row)]


def said_by_ssh(proxy_command: str, *options: str, **variables: str) -> str:
    """What ssh prints with such a ProxyCommand."""
    command = [program("ssh"), "-F", "none", "-o", "BatchMode=yes", "-o", f"ProxyCommand={proxy_command}", *options]
    done = subprocess.run(
        [*command, "mybox", "true"], capture_output=True, text=True, timeout=60, env=environment(**variables)
    )
    assert done.returncode == 255
    return done.stderr


@pytest.fixture
def client() -> str:
    """A client that fails: nothing listens there."""
    return shlex.join(http2tcp("-c", "-e", f"http://127.0.0.1:{free_port()}/", "-d", "localhost:22"))


def test_the_section_is_read() -> None:
    assert len(ROWS) == 10


def test_a_client_that_fails_is_one_line_of_ours_above_those_of_ssh(client: str) -> None:
    ours, *theirs = said_by_ssh(client).splitlines()
    assert ours.startswith("http2tcp: TCP: cannot connect to")
    assert theirs == CLOSED


def test_a_program_that_is_not_there_is_told_by_the_shell() -> None:
    (words,) = NOT_FOUND
    assert words in said_by_ssh("http2tcp -c", PATH="/nowhere", SHELL="/bin/sh")


def test_a_failure_with_fdpass_ends_in_the_words_of_ssh(client: str) -> None:
    (words,) = FDPASS
    assert words in said_by_ssh(f"{client} --fdpass --transport tcp", "-o", "ProxyUseFdpass=yes")


@pytest.mark.parametrize("words", [words for words in QUOTED if words not in (*CLOSED, *NOT_FOUND)])
def test_ssh_has_what_the_page_quotes(words: str) -> None:
    # The system's words for an error are the C library's, which the interpreter has loaded too.
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line}
    has = b"".join(Path(file).read_bytes() for file in (program("ssh"), *libraries))
    # A function's name, which ssh prints before what the function says, is not in the same text.
    parts = [part.strip() for part in re.split(r"…|: ", words)]
    assert [part for part in parts if part.encode() not in has] == []
