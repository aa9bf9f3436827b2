"""What is printed for a person: whoever stops reading it, and closed or full outputs, bring no traceback."""

from __future__ import annotations

import subprocess
import tomllib

import pytest

from http2tcp.version import __version__
from tests.support.loopback import closed_port
from tests.support.processes import environment, http2tcp


def shell(script: str, *arguments: str, within: float = 60) -> subprocess.CompletedProcess[str]:
    """Run bash with the http2tcp command and the arguments as `"$@"`; the status is that of the first in a pipe."""
    return subprocess.run(
        ["bash", "-c", f"{script}; exit ${{PIPESTATUS[0]}}", "bash", *http2tcp(*arguments)],
        capture_output=True,
        text=True,
        timeout=within,
        check=False,
        env=environment(),
    )


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("--demo",)], ids=lambda value: value[0])
@pytest.mark.parametrize("script", ['"$@" | true', '"$@" | head -c 1 > /dev/null', '"$@" >&-'])
def test_whoever_stops_reading_brings_no_complaint(script: str, arguments: tuple[str, ...]) -> None:
    done = shell(script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("status", "arguments"),
    [
        (0, ("-s", "-d", "localhost:22", "--check")),
        (65, ("-c", "-e", "http://127.0.0.1:{port}/", "--check")),
        (65, ("-c", "-e", "http://127.0.0.1:{port}/", "--check", "--json")),
    ],
    ids=["server", "client", "json"],
)
def test_a_check_without_a_stdout_is_told_by_its_status(status: int, arguments: tuple[str, ...]) -> None:
    port = closed_port()
    done = shell('"$@" >&-', *(argument.format(port=port) for argument in arguments))
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_the_lines_of_a_token_are_utf8_whatever_the_terminal_is(encoding: str) -> None:
    command = http2tcp("--new-token", "Jürgen")
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment(PYTHONIOENCODING=encoding))
    assert done.returncode == 0
    assert tomllib.loads(done.stdout.decode())["token"][0]["name"] == "Jürgen"
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_no_token_is_made_where_one_of_its_halves_could_not_be_shown(closed: str) -> None:
    done = shell(f'"$@" {">&-" if closed == "stdout" else "2>&-"}', "--new-token", "alice")
    assert (done.returncode, done.stdout) == (2, "")
    if closed == "stdout":
        assert done.stderr == (
            "http2tcp: --new-token shows the token on stderr and its lines on stdout, and stdout is closed\n"
        )


def test_a_mistake_with_stderr_closed_is_told_by_the_status_alone() -> None:
    done = shell('"$@" 2>&-', "--nonsense")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_mistake_with_a_full_stderr_is_told_by_the_status() -> None:
    assert shell('"$@" 2>/dev/full', "--nonsense").returncode == 2


def test_the_demo_is_judged_by_its_status_where_its_words_cannot_be_written() -> None:
    done = shell('"$@" >/dev/full', "--demo")
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_but_the_version_is_printed() -> None:
    done = shell('"$@"', "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"http2tcp {__version__}\n", "")
