"""The help: grouped, whole, within the terminal; and the version."""

from __future__ import annotations

import re
import subprocess

import pytest

from http2tcp.command import options
from http2tcp.server.limits import Limits
from http2tcp.version import __version__
from tests.support import processes
from tests.support.processes import environment

from .conftest import Run


def shown(http2tcp: Run, *arguments: str) -> str:
    ran = http2tcp(*arguments)
    assert ran.status == 0
    assert ran.err == ""
    return ran.out


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def page(http2tcp: Run) -> str:
    return shown(http2tcp, "--help")


@pytest.fixture
def server_page(http2tcp: Run) -> str:
    return shown(http2tcp, "-s", "--help")


@pytest.fixture
def client_page(http2tcp: Run) -> str:
    return shown(http2tcp, "-c", "--help")


MODES = ((), ("-s",), ("-c",))


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^(\w[\w ]+):\n", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


# --- the short page -----------------------------------------------------------------------------


def test_the_page_fits_a_screen(page: str) -> None:
    assert len(page.splitlines()) <= 40


def test_the_page_says_what_it_is_shows_five_examples_and_a_dozen_options(page: str) -> None:
    assert "Reach any TCP port" in page
    groups = sections(page)
    examples = [line for line in groups["Examples"].splitlines() if line]
    assert len(examples) == 5
    assert all(line.startswith("  http2tcp ") for line in examples)
    assert {"-s", "-c", "--demo"} <= {word for line in examples for word in line.split()}
    named = re.findall(r"^  (?:-\w, )?(--[\w-]+)", groups["What most people use"], re.MULTILINE)
    assert len(named) == 12
    assert {"--server", "--client", "--endpoint", "--destination", "--token-file", "--help"} <= set(named)


def test_the_page_leads_to_the_pages_of_the_modes_and_tells_of_the_exit_status(page: str) -> None:
    words = " ".join(page.split())
    assert "http2tcp -s --help" in words
    assert "http2tcp -c --help" in words
    assert "Exit status: 0 done" in words


# --- all pages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_short_flag_shows_the_same_page(http2tcp: Run, mode: tuple[str, ...]) -> None:
    assert shown(http2tcp, *mode, "-h") == shown(http2tcp, *mode, "--help") == shown(http2tcp, "-h", *mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_page_fits_the_terminal(
    http2tcp: Run, monkeypatch: pytest.MonkeyPatch, columns: int, mode: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(http2tcp, *mode, "-h").splitlines()
    assert max(map(len, lines)) <= min(columns, 100)


@pytest.mark.parametrize("mode", MODES)
def test_in_a_narrow_pane_the_texts_keep_their_width(
    http2tcp: Run, monkeypatch: pytest.MonkeyPatch, mode: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "62")
    lines = shown(http2tcp, *mode, "-h").splitlines()
    # Command lines are there to be copied, and are not broken.
    assert [line for line in lines if len(line) > 62 and "://" not in line] == []
    assert max(len(line) for line in lines if line.startswith(" " * 20)) > 50


def test_the_server_s_page_has_its_options_in_groups_and_none_of_the_client_s(server_page: str) -> None:
    groups = sections(server_page)
    assert "--path" in groups["Listening"]
    assert "--grace" in groups["Limits and times"]
    assert "--max-rate" in groups["Limits and times"]
    assert "--deny" in groups["Tokens and destinations"]
    assert not [row.long for row in options.rows() if row.mode == "client" and f" {row.long} " in server_page]


def test_the_client_s_page_has_its_options_in_groups_and_none_of_the_server_s(client_page: str) -> None:
    groups = sections(client_page)
    assert "--endpoint" in groups["Endpoint"]
    assert "--insecure" in groups["Certificates"]
    assert "--token-file" in groups["Tokens and destinations"]
    assert not [row.long for row in options.rows() if row.mode == "server" and f" {row.long} " in client_page]


@pytest.mark.parametrize("mode", ["server", "client"])
def test_every_option_is_there_in_every_spelling_with_a_word_about_it(
    server_page: str, client_page: str, mode: str
) -> None:
    page = server_page if mode == "server" else client_page
    words = " ".join(page.split())
    for row in options.rows():
        if row.mode in (mode, "both"):
            for spelling in row.names:
                assert re.search(rf"(^|[ ,]){re.escape(spelling)}\b", page, re.MULTILINE), spelling
            # A word that is broken at its hyphen has a blank there now.
            assert " ".join(row.help_text.split()).replace("-", "") in words.replace("- ", "").replace("-", "")


def test_the_page_tells_which_options_have_a_variable(server_page: str, client_page: str) -> None:
    for page, mode in (server_page, "server"), (client_page, "client"):
        words = " ".join(page.split())
        told = re.search(r"Every option but (.*) can come from the environment", words)
        assert told is not None
        without = {row.long for row in options.rows() if row.mode in (mode, "both") and not row.from_environment}
        assert set(re.findall(r"--[\w-]+", told[1])) == without
        assert "Exit status: 0 done" in words


def test_defaults_are_the_real_ones(http2tcp: Run, server_page: str, client_page: str) -> None:
    words = " ".join((server_page + client_page).split())
    assert "127.0.0.1:12345" in words
    assert f"[default: http2tcp/{__version__}]" in words
    settings = http2tcp("-s", "-t", "x").server
    for name in ("head_timeout", "connect_timeout", "grace", "keepalive", "forwarded_header", "log_format"):
        (row,) = [row for row in options.rows() if row.key == name]
        value = getattr(settings, name)
        assert row.shown == (value if isinstance(value, str) else f"{value:g}")
    limits = Limits()
    for row in options.rows():
        if hasattr(limits, row.key) and getattr(limits, row.key) is not None:
            assert row.shown == str(getattr(limits, row.key))


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
