"""One record when a session opens and one when it ends, or one when it is refused; no secret in any."""

from __future__ import annotations

import logging
import re

import pytest

from http2tcp.address import TCPAddress, UnixAddress
from http2tcp.audit import Reason, Session
from http2tcp.errors import Forbidden, TargetUnreachable, Unauthorized

CLIENT = "192.0.2.1:40000"
DB = TCPAddress("db", 5432)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture):
    """Every record so far, as text, at any level."""
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records]


def opened() -> Session:
    session = Session(CLIENT)
    session.asked(DB)
    session.opened(TCPAddress("10.0.0.7", 5432), "tcp")
    return session


def test_a_session_has_a_record_when_it_opens_and_one_when_it_ends(records) -> None:
    session = opened()
    session.traffic.forth.bytes = 1000
    session.traffic.back.bytes = 7
    session.ended(Reason.CLOSED)
    first, last = records()
    where = f"session={session.id} client={CLIENT} target=db:5432 dialled=10.0.0.7:5432 transport=tcp"
    assert first == f"opened {where}"
    assert re.fullmatch(
        re.escape(f"ended {where} bytes_up=1000 bytes_down=7 seconds=") + r"\d+\.\d{3} reason=closed", last
    )


def test_a_session_that_broke_says_on_which_side_and_how(records) -> None:
    opened().ended(Reason.TARGET_BROKE, "the connection broke: Connection reset by peer")
    assert records()[-1].endswith("reason=target_broke detail='the connection broke: Connection reset by peer'")


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_one_word(records, reason: Reason) -> None:
    opened().ended(reason)
    assert records()[-1].endswith(f"reason={reason.value}")
    assert re.fullmatch("[a-z_]+", reason.value)


def test_a_refused_session_has_one_record(records) -> None:
    session = Session(CLIENT)
    session.asked(DB)
    session.refused(TargetUnreachable("cannot reach db:5432", proxy_error="connection_refused"))
    session.ended(Reason.STOPPED)
    assert records() == [
        f"refused session={session.id} client={CLIENT} target=db:5432 status=502 error=connection_refused"
    ]


def test_a_session_that_was_refused_before_it_named_a_target_has_one_record(records) -> None:
    session = Session(CLIENT)
    session.refused(Unauthorized())
    session.ended(Reason.STOPPED)
    assert records() == [f"refused session={session.id} client={CLIENT} status=401 error=http_request_denied"]


def test_a_session_that_never_opened_has_no_end(records) -> None:
    Session(CLIENT).ended(Reason.STOPPED)
    assert records() == []


def test_the_text_of_a_refusal_is_not_in_the_log(records) -> None:
    """It may quote what the client sent."""
    Session(CLIENT).refused(Forbidden("client made this up"))
    assert "made" not in records()[0]


def test_sessions_can_be_told_apart(records) -> None:
    assert len({Session(CLIENT).id for _ in range(100)}) == 100


@pytest.mark.parametrize("path", ["/a b reason=closed", "/ü", "/'\"\\", "/a=b", "/\u202e"])
def test_a_target_is_one_word_so_that_no_client_can_add_fields_to_a_record(records, path: str) -> None:
    session = Session(CLIENT)
    session.asked(UnixAddress(path))
    session.opened(UnixAddress(path), "tcp")
    (record,) = records()
    assert record.isascii()
    words = record.split(" ")
    assert [word.partition("=")[0] for word in words] == [
        "opened",
        "session",
        "client",
        "target",
        "dialled",
        "transport",
    ]


def test_an_addresss_own_characters_stay_readable(records) -> None:
    session = Session(CLIENT)
    session.asked(TCPAddress("fe80::1%eth0", 22))
    session.opened(UnixAddress("/run/sshd.sock"), "tcp")
    assert "target=[fe80::1%eth0]:22 dialled=unix:/run/sshd.sock " in records()[0]


def test_a_detail_cannot_begin_a_new_line(records) -> None:
    opened().ended(Reason.CLIENT_BROKE, "a\nended session=0 reason=closed\x1b[2J")
    assert records()[-1].isprintable()
