"""The help: grouped, whole, within the terminal; and the version."""

from __future__ import annotations

import re
import subprocess

import click
import pytest

from http2tcp.command.cli import command
from http2tcp.version import __version__
from tests.support import processes
from tests.support.processes import environment

from .conftest import Run


@pytest.fixture
def page(http2tcp: Run, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    ran = http2tcp("--help")
    assert ran.status == 0
    assert ran.err == ""
    return ran.out


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^(\w+):\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_short_flag_shows_the_same_page(http2tcp: Run, page: str) -> None:
    assert http2tcp("-h").out == page


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_page_fits_the_terminal(http2tcp: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = http2tcp("-h").out.splitlines()
    assert max(map(len, lines)) <= min(columns, 100)


def test_in_a_narrow_pane_the_texts_keep_their_width(http2tcp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    lines = http2tcp("-h").out.splitlines()
    # Command lines are there to be copied, and are not broken.
    assert [line for line in lines if len(line) > 62 and "://" not in line] == []
    assert max(len(line) for line in lines if line.startswith(" " * 20)) > 50


def test_options_stand_under_server_client_and_both(page: str) -> None:
    groups = sections(page)
    assert list(groups) == ["Server", "Client", "Both"]
    assert "--path" in groups["Server"]
    assert "--grace" in groups["Server"]
    assert "--endpoint" in groups["Client"]
    assert "--insecure" in groups["Client"]
    for name in ("--token", "--token-file", "--destination", "--listen", "--verbose", "--quiet", "--demo", "--help"):
        assert name in groups["Both"]


def test_every_option_is_there_in_every_spelling_with_a_word_about_it(page: str) -> None:
    context = click.Context(command)
    for parameter in command.get_params(context):
        assert isinstance(parameter, click.Option)
        for spelling in parameter.opts:
            assert re.search(rf"(^|[ ,]){re.escape(spelling)}\b", page, re.MULTILINE), spelling
        assert parameter.help, parameter.name


def test_the_page_tells_of_variables_and_exit_status(page: str) -> None:
    words = " ".join(page.split())
    assert "HTTP2TCP_TOKEN" in words
    assert "Exit status: 0 done" in words
    # The page says that the last four options have no variable: so they have to be the last four.
    options = re.findall(r"^  (?:-\w, )?(--[\w-]+)", page, re.MULTILINE)
    but = "--new-token, --as, --json, --ssh-config and the last four"
    assert f"Every option but {but} can come from the environment" in words
    assert options[-4:] == ["--check", "--demo", "--version", "--help"]


def test_defaults_are_the_real_ones(page: str) -> None:
    words = " ".join(page.split())
    assert "127.0.0.1:12345" in words
    assert f"[default: http2tcp/{__version__}]" in words
    defaults = {parameter.name: parameter.default for parameter in command.get_params(click.Context(command))}
    assert f"[default: {defaults['connect_timeout']}]" in words
    assert f"[default: {defaults['grace']}]" in words
    assert f"[default: {defaults['transport']}]" in words


def test_the_version_is_one_line(http2tcp: Run) -> None:
    ran = http2tcp("--version")
    assert (ran.status, ran.out, ran.err) == (0, f"http2tcp {__version__}\n", "")


def test_help_wins_over_mistakes(http2tcp: Run) -> None:
    assert http2tcp("-h", "-s", "-c").status == 0


@pytest.mark.parametrize("level", ["1", "2"])
def test_an_interpreter_that_drops_docstrings_shows_the_same_page(page: str, level: str) -> None:
    """PYTHONOPTIMIZE=2 does."""
    variables = environment(PYTHONOPTIMIZE=level, COLUMNS="80", PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(processes.http2tcp("--help"), capture_output=True, text=True, timeout=60, env=variables)
    assert (done.returncode, done.stdout) == (0, page)
    assert "Reach any TCP port" in page


@pytest.mark.parametrize("mode", ["-s", "-c"])
@pytest.mark.parametrize("time", ["0.3", "0.999", "1"])
def test_a_keepalive_is_a_second_at_least(http2tcp: Run, mode: str, time: str) -> None:
    ran = http2tcp(mode, "-e", "http://h/", "-d", "db:22", "--keepalive", time)
    assert ran.started == (time == "1")
    assert ran.status == (0 if time == "1" else 2)
