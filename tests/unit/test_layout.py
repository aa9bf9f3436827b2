"""What a person reads of a check, on a terminal and elsewhere, and what a program reads."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence

import pytest

from http2tcp.address import parse_endpoint
from http2tcp.client.check.hops import Advice, Attempt, Hop, Report, State, Verdict, failed
from http2tcp.client.check.layout import JSONReport, TextReport
from http2tcp.client.diagnosis import explain_refusal
from http2tcp.protocol.client_handshake import Refused
from http2tcp.protocol.transport import Transport

WORKS = Verdict("It works: connect-tcp carries the tunnel to db:5432.", transport="connect-tcp")
FAILS = Verdict(
    "It fails at the front end: https://example.com/ answered 400 (nginx/1.22.1) and did not pass the upgrade on.",
    67,
    "front_end",
    None,
    Advice("nginx", "In nginx.conf:", ["http {", "    map $http_upgrade $http2tcp_upgrade {", "    }", "}"]),
)
HOPS = [
    Hop("name", "name", State.OK, "example.com is 192.0.2.1", 0.0123, facts={"addresses": ["192.0.2.1"]}),
    Hop("tls", "TLS", State.NOTE, "TLSv1.3, certificate by R11", 1.5, ("for example.com", "sha256//x"), {"pin": "x"}),
    Hop("target", "target", State.FAILED, "db:5432", None),
]
ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")


class Screen(io.StringIO):
    """Something to write to: a terminal, unless told otherwise."""

    def __init__(self, *, terminal: bool = True, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, in colour."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "80"), ("LINES", "24")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def shown(report: Report, verdict: Verdict, hops: Sequence[Hop] = HOPS) -> None:
    report.begin("https://example.com/", ["db:5432"])
    for hop in hops:
        report.waiting(hop.label, "")
        report.hop(hop)
    report.end(verdict)


def text(verdict: Verdict, screen: Screen | None = None, *, quiet: bool = False) -> str:
    screen = screen or Screen(terminal=False)
    shown(TextReport(screen, quiet=quiet), verdict)
    return screen.getvalue()


# --- for a person ---------------------------------------------------------------------------------


def test_a_line_a_hop_and_a_sentence_at_the_end() -> None:
    assert text(WORKS).splitlines() == [
        "The way to db:5432 by https://example.com/",
        "",
        "  ✓ name             example.com is 192.0.2.1  12 ms",
        "  ! TLS              TLSv1.3, certificate by R11  1,500 ms",
        "                     for example.com",
        "                     sha256//x",
        "  ✗ target           db:5432",
        "",
        "It works: connect-tcp carries the tunnel to db:5432.",
    ]


def test_the_lines_of_configuration_come_before_the_sentence_to_be_copied() -> None:
    assert text(FAILS).splitlines()[-9:] == [
        "",
        "    http {",
        "        map $http_upgrade $http2tcp_upgrade {",
        "        }",
        "    }",
        "",
        FAILS.sentence,
        "",
        "In nginx.conf:",
    ]


@pytest.mark.parametrize("server", ["nginx", "Apache", "Caddy", "envoy", "traefik", "haproxy", "cloudflare", "x"])
@pytest.mark.parametrize("path", ["/", "/~http2tcp/"])
@pytest.mark.parametrize("status", [200, 404, 405])
def test_a_failing_check_has_its_verdict_and_its_fix_on_the_last_screen(server: str, path: str, status: int) -> None:
    refused = Refused(status, None, server=server)
    endpoint = parse_endpoint(f"https://tunnel.example.com{path}")
    attempt = Attempt(Transport.TCP, refused, [("server", server)])
    attempt.error = explain_refusal(refused, endpoint, None, Transport.TCP, with_token=True)
    verdict = failed(attempt.error, attempt, path)
    assert verdict.advice is not None
    screen = Screen()
    shown(TextReport(screen), verdict)
    written = ESCAPE.sub("", screen.getvalue()).splitlines()
    # 24 lines, the last of which has the shell's prompt.
    last = " ".join(" ".join(written[-23:]).split())
    assert verdict.sentence in last
    assert verdict.advice.note in last


def test_elsewhere_than_on_a_terminal_there_is_no_colour_and_no_line_is_broken() -> None:
    written = text(FAILS)
    assert "\x1b" not in written
    assert "\r" not in written
    assert FAILS.sentence in written.splitlines()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_on_a_terminal_no_line_is_wider_than_it(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    long = Hop("front_end", "front end", State.OK, "a very long text " * 9, 0.5, ("and a longer one " * 9,))
    screen = Screen()
    shown(TextReport(screen), FAILS._replace(advice=None), [*HOPS, long])
    for line in re.split(r"[\r\n]", screen.getvalue()):
        assert len(ESCAPE.sub("", line)) <= min(columns, 100)


def test_on_a_terminal_the_times_stand_at_the_right_margin() -> None:
    lines = [ESCAPE.sub("", line).split("\r")[-1] for line in text(WORKS, Screen()).splitlines()]
    assert [len(line) for line in lines if line.endswith(" ms")] == [80, 80]


def test_a_hop_under_way_is_shown_on_a_terminal_and_replaced() -> None:
    screen = Screen()
    report = TextReport(screen)
    report.waiting("TCP", "example.com:443")
    assert "TCP              example.com:443 ..." in screen.getvalue()
    report.hop(HOPS[0])
    assert ESCAPE.sub("", screen.getvalue().split("\r")[-1]).startswith("  ✓ name")


def test_beside_a_log_no_line_is_left_open() -> None:
    screen = Screen()
    TextReport(screen, live=False).waiting("TCP", "example.com:443")
    assert screen.getvalue() == ""


def test_a_check_that_is_interrupted_leaves_the_cursor_at_the_left_margin() -> None:
    screen = Screen()
    report = TextReport(screen)
    report.waiting("TCP", "example.com:443")
    report.interrupted()
    assert screen.getvalue().endswith("\n")


def test_a_terminal_gets_colours() -> None:
    assert "\x1b[32m✓\x1b[0m" in text(WORKS, Screen())
    assert f"\x1b[1;31m{FAILS.sentence[:20]}" in text(FAILS, Screen())


def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert re.search(r"\x1b\[[0-9;]*m", text(FAILS, Screen())) is None
    # https://no-color.org: an empty one is none.
    monkeypatch.setenv("NO_COLOR", "")
    assert "\x1b[32m" in text(WORKS, Screen())


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_dumb_terminal_gets_no_escape_at_all(term: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if term is None:
        monkeypatch.delenv("TERM")
    else:
        monkeypatch.setenv("TERM", term)
    assert "\x1b" not in text(FAILS, Screen())


def test_an_output_that_is_ascii_alone_gets_marks_that_it_has() -> None:
    written = text(WORKS, Screen(terminal=False, encoding="ascii"))
    assert written.isascii()
    assert "  ok name" in written
    assert "  no target" in written


def test_quiet_says_what_fails_alone() -> None:
    assert text(WORKS, quiet=True) == ""
    failed = text(FAILS, quiet=True)
    assert FAILS.sentence in failed.splitlines()
    assert "name " not in failed


@pytest.mark.parametrize("make", [TextReport, JSONReport])
def test_a_reader_that_has_left_is_no_error(make: type[TextReport] | type[JSONReport]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", buffering=1, closefd=False) as out:
        shown(make(out), FAILS)
        try:
            out.flush()
        except BrokenPipeError:
            pass
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


# --- for a program --------------------------------------------------------------------------------


def document(verdict: Verdict) -> dict[str, object]:
    screen = Screen(terminal=False)
    shown(JSONReport(screen), verdict)
    read: dict[str, object] = json.loads(screen.getvalue())
    return read


def test_the_document_has_its_keys() -> None:
    assert document(FAILS) == {
        "version": 1,
        "endpoint": "https://example.com/",
        "destinations": ["db:5432"],
        "works": False,
        "exit_status": 67,
        "failed_hop": "front_end",
        "transport": None,
        "sentence": FAILS.sentence,
        "hops": [
            {"hop": "name", "state": "ok", "ms": 12.3, "text": HOPS[0].text, "addresses": ["192.0.2.1"]},
            {"hop": "tls", "state": "note", "ms": 1500.0, "text": HOPS[1].text, "pin": "x"},
            {"hop": "target", "state": "failed", "ms": None, "text": "db:5432"},
        ],
        "advice": {"front_end": "nginx", "note": "In nginx.conf:", "lines": list(FAILS.advice.lines)},  # type: ignore[union-attr]
    }


def test_a_way_that_works_says_by_which_transport() -> None:
    read = document(WORKS)
    assert (read["works"], read["exit_status"], read["transport"], read["failed_hop"]) == (True, 0, "connect-tcp", None)
    assert read["advice"] is None
