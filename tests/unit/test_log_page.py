"""docs/log.md against the code: every event, key and reason is on the page, and nothing else is."""

from __future__ import annotations

import json
import logging
import re
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from http2tcp.address import TCPAddress
from http2tcp.errors import Forbidden, HeadTimeout, TooManyRequests, Unauthorized
from http2tcp.server.audit import Event, Refusals, SessionRecords
from http2tcp.server.counters import RESUMES
from http2tcp.server.log_writer import JSONFormatter
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Reason, Refused

PAGE = (Path(__file__).parents[2] / "docs" / "log.md").read_text()
METRICS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
LOG = "log"


def table(first_heading: str) -> list[list[str]]:
    """The cells of the table with this first heading."""
    lines = iter(PAGE.splitlines())
    for line in lines:
        if line.startswith(f"| {first_heading} |"):
            next(lines)
            rows = []
            while (row := next(lines)).startswith("|"):
                rows.append([cell.strip() for cell in row.strip("|").split(" | ")])
            return rows
    raise AssertionError(f"there is no table of {first_heading}")


def words(cell: str) -> list[str]:
    return re.findall(r"`([a-z_]+)`", cell)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    """A line of each event, with every key that it can have."""
    caplog.set_level(logging.DEBUG)

    def session() -> SessionRecords:
        made = SessionRecords(TCPAddress("192.0.2.1", 40000))
        made.client_is(ip_address("203.0.113.9"), 5)
        return made

    def asked() -> SessionRecords:
        made = session()
        made.authenticated("alice")
        made.asked(TCPAddress("db", 5432))
        return made

    opened = asked()
    opened.opened(TCPAddress("10.0.0.7", 5432), "tcp", 0.1)
    opened.detached("it broke")
    opened.resumed(asked(), "tcp", 0.1, 1)
    opened.over(Ended(Reason.CLIENT_BROKE, "it broke"))
    other = session()
    other.authenticated("alice")
    other.not_resumed("gone")
    asked().over(Refused(Forbidden(rule="deny *:*")))
    expired = session()
    expired.failed_authentication("bob")
    expired.over(Refused(Unauthorized()))
    asked().over(Abandoned(NoSession.STOPPED, "words"))
    try:
        raise ValueError
    except ValueError:
        logging.getLogger("http2tcp.test").error("x", exc_info=sys.exc_info())
    return [json.loads(JSONFormatter().format(record)) for record in caplog.records]


def test_the_page_has_every_event() -> None:
    assert [words(row[0])[0] for row in table("event")] == [*(event.value for event in Event), LOG]


def test_the_page_has_every_reason() -> None:
    rows = {words(row[0])[0]: row[1] for row in table("reason")}
    # Both have `stopped`.
    assert list(rows) == list(dict.fromkeys(reason.value for reason in (*Reason, *NoSession)))
    only = {name for name, text in rows.items() if text.startswith("Only `abandoned`")}
    assert only == {reason.value for reason in NoSession} - {reason.value for reason in Reason}


def test_the_page_and_that_of_the_metrics_have_every_result_of_an_attempt_to_resume() -> None:
    (listed,) = re.findall(r"^`not_resumed` has reasons(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    (row,) = re.findall(r"^\| `http2tcp_resumes_total` \|(.*)$", METRICS, re.MULTILINE)
    # Who is resumed, or learns that the tunnel is over, has got what it asked for.
    assert words(listed.partition(":")[2]) == [result for result in RESUMES if result not in ("resumed", "over")]
    assert [word for word in words(row) if word != "result"] == list(RESUMES)


def test_the_page_has_every_key_in_its_order(lines: list[dict[str, object]]) -> None:
    keys = [words(row[0])[0] for row in table("key")]
    assert {key for line in lines for key in line} == set(keys)
    # A refusal's keys come before those of an end, though no record has both.
    for line in lines:
        assert list(line) == [key for key in keys if key in line]


def test_the_page_says_of_every_key_which_records_have_it(lines: list[dict[str, object]]) -> None:
    events = {event.value for event in Event}
    # What is asked for is known only once the token has been accepted, and who resumes asks for a session.
    never = {("target", Event.AUTHENTICATION_FAILED.value), ("target", Event.NOT_RESUMED.value)}
    for key, where, _ in table("key"):
        (name,) = words(key)
        expected = {"JSON": events | {LOG}, "all": events}.get(where, set(words(where)))
        found = {line["event"] for line in lines if name in line} - {LOG if where == "all" else None}
        assert found == expected - {event for key_, event in never if key_ == name}, name


def test_the_page_has_every_cause(lines: list[dict[str, object]], caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    for name in ("bob", None):
        session = SessionRecords(None)
        session.failed_authentication(name)
        session.over(Refused(Unauthorized()))
    found = {record.msg["cause"] for record in caplog.records}  # type: ignore[index]
    (row,) = [row for row in table("key") if row[0] == "`cause`"]
    assert set(words(row[2])) == found


def test_the_page_says_which_records_are_for_the_verbose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    rows = {words(row[0])[0]: row[1:] for row in table("event")}
    refusals = Refusals()
    for _ in range(11):
        caplog.clear()
        waiting = SessionRecords(None, refusals)
        waiting.failed_authentication()
        waiting.over(Refused(TooManyRequests()))
    SessionRecords(None).over(Refused(HeadTimeout()))
    SessionRecords(None).over(Abandoned(NoSession.CLIENT_LEFT))
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert "408" in rows["refused"][1]
    assert "from the eleventh in a minute on" in rows["authentication_failed"][1]
    assert rows["abandoned"][0] == "debug, info"


def test_the_examples_are_what_the_server_writes() -> None:
    examples = [line for line in PAGE.splitlines() if re.match(r"2027-\S+Z ", line)]
    order = [words(row[0])[0] for row in table("key")]
    assert len(examples) == 4
    for line in examples:
        keys = re.findall(r" ([a-z_]+)=", line)
        assert keys == [key for key in order if key in keys]
    for line in PAGE.splitlines():
        if line.startswith('{"time"'):
            parsed = json.loads(line)
            assert list(parsed) == [key for key in order if key in parsed]
