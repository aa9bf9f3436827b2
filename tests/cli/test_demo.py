"""`--demo`: what a colleague is shown, on whatever terminal, and that it is true."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from http2tcp.client.connector import open_tunnel
from http2tcp.command import demo
from http2tcp.errors import ConnectFailed, ListenError
from tests.support.processes import environment, http2tcp

ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")


def shown(**variables: str) -> str:
    done = subprocess.run(http2tcp("--demo"), capture_output=True, text=True, timeout=60, env=environment(**variables))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def on_a_terminal(**variables: str) -> str:
    """What a terminal is sent."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        http2tcp("--demo"), stdin=slave, stdout=slave, stderr=slave, env=environment(**variables)
    )
    os.close(slave)
    screen = b""
    try:
        while data := os.read(master, 65536):
            screen += data
    except OSError:
        pass  # Linux's way to say that nobody has the terminal open any more
    finally:
        os.close(master)
        assert process.wait(30) == 0
    return screen.decode()


def test_it_sends_real_data_and_shows_the_two_lines_to_type() -> None:
    said = shown()
    server = re.search(r"^  http2tcp -s -t (\w+) -l (\S+)$", said, re.MULTILINE)
    client = re.search(r"^  http2tcp -c -t (\w+) -e http://(\S+)/ -d \S+$", said, re.MULTILINE)
    assert server is not None
    assert client is not None
    assert server.groups() == client.groups()
    assert re.search(r"^  ✓ round trip +\d+ microseconds", said, re.MULTILINE)
    assert re.search(r"^  ✓ throughput +\d+ MiB/s", said, re.MULTILINE)
    assert "every byte came back" in said
    assert "✗" not in said


def test_it_shows_what_a_mistake_looks_like_on_both_sides() -> None:
    said = shown()
    bulk = 64 * 2**20 + 200
    assert re.search(rf"^  ✓ log +ended session=\w+ .* bytes_up={bulk} bytes_down={bulk} .* reason=closed$", said, re.M)
    for mistake in (
        r"wrong token +http2tcp server: the server does not know this token: .*\n +authentication failed .*status=401",
        r"closed port +target: cannot reach 127\.0\.0\.1:\d+ .*refused\n +refused .*=502 error=connection_refused",
        r"cloud's metadata http2tcp server: 169\.254\.169\.254:80 .*\n +refused .*status=403",
    ):
        assert re.search(f"^  ! {mistake}", said, re.MULTILINE), said
    ticked = [line for line in said.splitlines() if line.startswith("  ✓")]
    assert [line for line in ticked if "server:" in line or "target:" in line] == []


def test_it_needs_no_settings_of_the_users() -> None:
    shown(HTTP2TCP_SERVER="1", HTTP2TCP_TOKEN="", HTTP_PROXY="http://127.0.0.1:1", HTTP2TCP_PROXY="http://127.0.0.1:1")


def test_where_its_marks_cannot_be_written_it_does_without() -> None:
    said = shown(PYTHONIOENCODING="ascii")
    assert "  ok round trip" in said
    assert said.isascii()


@pytest.mark.parametrize("columns", ["60", "132"])
def test_on_a_terminal_it_is_coloured_and_its_lines_are_no_wider(columns: str) -> None:
    screen = on_a_terminal(TERM="xterm", COLUMNS=columns, LINES="24")
    assert "\x1b[32m✓" in screen
    report = ESCAPE.sub("", screen).partition("What they do:")[2]
    lines = [line for line in re.split(r"[\r\n]+", report) if line.startswith("  ")]
    assert len(lines) > 8
    assert max(map(len, lines)) <= min(int(columns), 100)


@pytest.mark.parametrize("variables", [{"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_where_colour_is_not_wanted_there_is_none(variables: dict[str, str]) -> None:
    screen = on_a_terminal(COLUMNS="80", LINES="24", **variables)
    assert re.search(r"\x1b\[[0-9;]*m", screen) is None
    assert "every byte came back" in re.sub(r"\s+", " ", screen)


@pytest.mark.parametrize("failure", [ConnectFailed("no loopback"), ListenError("no loopback")])
def test_a_machine_without_loopback_is_told_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(demo, "open_tunnel" if isinstance(failure, ConnectFailed) else "_echo", fails)
    with pytest.raises(type(failure), match="no loopback"):
        demo.run_demo()


def test_a_tunnel_that_should_not_open_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    genuine = open_tunnel

    async def lax(endpoint: str, destination: str, *, token: str) -> object:
        lax.token = getattr(lax, "token", token)  # type: ignore[attr-defined]
        return await genuine(endpoint, destination, token=lax.token)  # type: ignore[attr-defined]

    monkeypatch.setattr(demo, "open_tunnel", lax)
    monkeypatch.setattr(demo, "_BULK", 2**20)
    assert demo.run_demo() == 1
    said = capsys.readouterr().out
    assert "wrong token      WRONG: a tunnel was opened" in said
    assert "It FAILS" in said
