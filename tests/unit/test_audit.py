"""What every connection leaves in the log: exactly one record that says how it ended, and no secret in any."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from http2tcp.address import TCPAddress, UnixAddress
from http2tcp.errors import (
    Forbidden,
    HeadTimeout,
    NotFound,
    ProxyAuthenticationRequired,
    ProxyHeaderRefused,
    Refusal,
    TargetUnreachable,
    TooManyRequests,
    Unauthorized,
    UpgradeRequired,
)
from http2tcp.server import audit
from http2tcp.server.audit import Event, Record, Refusals, SessionRecords
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Reason, Refused

CLIENT = TCPAddress("192.0.2.1", 40000)
DB = TCPAddress("db", 5432)

Lines = Callable[[], list[str]]


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Lines:
    """Every record so far, as text, at any level."""
    caplog.set_level(logging.DEBUG)
    return lambda: [record.getMessage() for record in caplog.records]


def asked() -> SessionRecords:
    session = SessionRecords(CLIENT)
    session.authenticated("alice")
    session.asked(DB)
    return session


def opened() -> SessionRecords:
    session = asked()
    session.opened(TCPAddress("10.0.0.7", 5432), "tcp", 0.0123)
    return session


# --- one record when it opens, one when it is over ------------------------------------------------


def test_a_session_has_a_record_when_it_opens_and_one_when_it_ends(records: Lines) -> None:
    session = opened()
    session.traffic.up.bytes = 1000
    session.traffic.down.bytes = 7
    session.over(Ended(Reason.CLOSED))
    first, last = records()
    where = f"session={session.id} client=192.0.2.1 port=40000 token=alice target=db:5432 dialled=10.0.0.7:5432"
    assert first == f"opened {where} transport=tcp dial_seconds=0.012"
    assert re.fullmatch(
        re.escape(f"ended {where} transport=tcp bytes_up=1000 bytes_down=7 seconds=") + r"\d+\.\d{3} reason=closed",
        last,
    )


def test_a_session_that_broke_says_on_which_side_and_how(records: Lines) -> None:
    opened().over(Ended(Reason.TARGET_BROKE, "the connection broke: Connection reset by peer"))
    assert records()[-1].endswith("reason=target_broke detail='the connection broke: Connection reset by peer'")


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_one_word(records: Lines, reason: Reason) -> None:
    opened().over(Ended(reason))
    assert records()[-1].endswith(f"reason={reason.value}")
    assert re.fullmatch("[a-z_]+", reason.value)


def test_a_refused_session_has_one_record(records: Lines) -> None:
    session = asked()
    session.over(Refused(TargetUnreachable("cannot reach db:5432", proxy_error="connection_refused")))
    assert records() == [
        f"refused session={session.id} client=192.0.2.1 port=40000 token=alice target=db:5432 "
        "status=502 error=connection_refused"
    ]


def test_a_session_that_was_refused_before_it_named_a_target_has_one_record(records: Lines) -> None:
    session = SessionRecords(CLIENT)
    session.over(Refused(Unauthorized()))
    assert records() == [
        f"refused session={session.id} client=192.0.2.1 port=40000 status=401 error=http_request_denied"
    ]


def test_a_session_that_was_stopped_before_it_opened_has_one_record(records: Lines) -> None:
    session = asked()
    session.over(Abandoned(NoSession.STOPPED))
    assert records() == [
        f"abandoned session={session.id} client=192.0.2.1 port=40000 token=alice target=db:5432 reason=stopped"
    ]


def test_a_missing_proxy_header_is_explained_since_the_operator_has_to_turn_it_on(records: Lines) -> None:
    session = SessionRecords(CLIENT)
    session.over(Refused(ProxyHeaderRefused("it does not begin with a PROXY header")))
    assert records()[0].endswith(
        " status=400 error=proxy_configuration_error detail='it does not begin with a PROXY header'"
    )


def test_a_refusal_names_the_rule_for_the_operator(records: Lines) -> None:
    session = asked()
    session.over(Refused(Forbidden(rule="deny 10.20.9.0/24:*")))
    assert records()[0].endswith(" status=403 error=http_request_denied rule='deny 10.20.9.0/24:*'")


# --- what is told with -v alone -------------------------------------------------------------------


@pytest.mark.parametrize("reason", [NoSession.CLIENT_LEFT, NoSession.PUSHED_OUT, NoSession.STOPPED])
def test_a_connection_that_never_sent_a_request_is_logged_with_verbose_only(
    caplog: pytest.LogCaptureFixture, reason: NoSession
) -> None:
    caplog.set_level(logging.DEBUG)
    session = SessionRecords(CLIENT)
    session.over(Abandoned(reason))
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert record.getMessage() == f"abandoned session={session.id} client=192.0.2.1 port=40000 reason={reason.value}"


def test_a_session_with_an_accepted_token_is_always_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked().over(Abandoned(NoSession.STOPPED))
    assert len(caplog.records) == 1


def test_silent_connections_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    SessionRecords(CLIENT).over(Refused(HeadTimeout()))
    assert caplog.records == []


def test_only_records_of_unauthenticated_clients_may_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A flood of it is dropped before a session's record is."""
    caplog.set_level(logging.DEBUG)
    SessionRecords(CLIENT).over(Refused(Unauthorized()))
    SessionRecords(CLIENT).over(Abandoned(NoSession.CLIENT_LEFT))
    asked().over(Refused(Forbidden()))
    opened().over(Ended(Reason.CLOSED))
    assert [hasattr(record, "expendable") for record in caplog.records] == [True, True, False, False, False]


# --- authentication failures ----------------------------------------------------------------------


def test_a_token_that_is_not_known_has_a_line_of_its_own(records: Lines) -> None:
    session = SessionRecords(CLIENT)
    session.failed_authentication()
    session.over(Refused(Unauthorized()))
    assert records() == [
        f"authentication failed session={session.id} client=192.0.2.1 port=40000 "
        "status=401 error=http_request_denied cause=unknown"
    ]


def test_a_token_that_has_expired_is_named(records: Lines) -> None:
    session = SessionRecords(CLIENT)
    session.failed_authentication("alice")
    session.over(Refused(ProxyAuthenticationRequired()))
    assert " token=alice status=407 " in records()[0]
    assert records()[0].endswith(" cause=expired")


def guess(refusals: Refusals, client: str = "192.0.2.1", refusal: Refusal | None = None) -> None:
    session = SessionRecords(TCPAddress(client, 40000), refusals)
    session.failed_authentication()
    session.over(Refused(refusal or Unauthorized()))


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines without -v."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


@pytest.mark.parametrize("refusal", [Unauthorized, ProxyAuthenticationRequired, TooManyRequests])
def test_ten_wrong_tokens_a_minute_of_one_address_are_lines_whatever_they_are_answered(
    refusal: type[Refusal], caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever bans by these lines has had enough of them by then."""
    caplog.set_level(logging.DEBUG)
    refusals = Refusals()
    for _ in range(3):
        for _ in range(25):
            guess(refusals, refusal=refusal())
        assert len(heard(caplog)) == 10
        assert len(caplog.records) == 25
        refusals.sum_up()
        assert heard(caplog)[10:] == ["15 more refused: authentication_failed 15"]
        caplog.clear()


def test_each_guesser_has_lines_however_many_others_there_are(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusals = Refusals()
    for _ in range(500):
        SessionRecords(CLIENT, refusals).over(Refused(NotFound()))
    caplog.clear()
    for number in range(300):
        for _ in range(12):
            guess(refusals, f"10.0.{number // 256}.{number % 256}")
    lines = heard(caplog)
    assert all(sum(f"client=10.0.{n // 256}.{n % 256} " in line for line in lines) == 10 for n in range(300))


def test_one_who_has_a_whole_ipv6_network_is_one_guesser(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusals = Refusals()
    for number in range(50):
        guess(refusals, f"2001:db8::{number + 1:x}")
        guess(refusals, "::ffff:192.0.2.9" if number % 2 else "192.0.2.9")
    assert len(heard(caplog)) == 20


def test_the_memory_for_guessers_is_bounded_and_who_is_forgotten_is_heard_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(audit, "_ADDRESSES", 5)
    refusals = Refusals()
    for _ in range(11):
        guess(refusals, "10.0.0.1")
    for number in range(5):
        guess(refusals, f"10.0.1.{number}")
    guess(refusals, "10.0.0.1")
    assert len(heard(caplog)) == 10 + 5 + 1


def test_what_strangers_are_refused_is_summed_up_once_a_minute_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusals = Refusals()
    for _ in range(2):
        for _ in range(832):
            SessionRecords(CLIENT, refusals).over(Refused(NotFound()))
        for _ in range(23):
            SessionRecords(TCPAddress("192.0.2.9", 1), refusals).over(Refused(Unauthorized()))
        SessionRecords(CLIENT, refusals).over(Refused(ProxyHeaderRefused("it does not begin with a PROXY header")))
        for _ in range(50):
            SessionRecords(CLIENT, refusals).over(Refused(HeadTimeout()))
        assert len(heard(caplog)) == 20 + 20 + 1
        refusals.sum_up()
        assert heard(caplog)[41:] == ["815 more refused: not_found 812, unauthorized 3"]
        caplog.clear()
    refusals.sum_up()
    assert heard(caplog) == []


def test_without_a_token_to_ask_for_everybody_is_a_stranger_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusals = Refusals()
    for _ in range(100):
        session = SessionRecords(CLIENT, refusals)
        session.authenticated(None)
        session.over(Refused(UpgradeRequired()))
    assert len(heard(caplog)) == 20


def test_who_has_a_token_has_a_record_of_each_refusal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    refusals = Refusals()
    for _ in range(100):
        session = SessionRecords(CLIENT, refusals)
        session.authenticated("")
        session.over(Refused(Forbidden()))
    refusals.sum_up()
    assert len(heard(caplog)) == 100


def test_a_token_that_has_its_tunnels_open_already_is_a_refusal(records: Lines) -> None:
    session = asked()
    session.over(Refused(TooManyRequests("this token has its 2 tunnels open already")))
    assert records()[0].startswith("refused session=")
    assert " token=alice target=db:5432 status=429 " in records()[0]


# --- who -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (TCPAddress("2001:db8::1", 40000), "client=2001:db8::1 port=40000"),
        (TCPAddress("fe80::1%eth0", 40000), "client=fe80::1%eth0 port=40000"),
        (None, "client=unix"),
    ],
)
def test_a_client_is_named_by_its_address_alone(records: Lines, peer: TCPAddress | None, words: str) -> None:
    session = SessionRecords(peer)
    session.over(Refused(Unauthorized()))
    assert f" {words} status=401" in records()[0]


@pytest.mark.parametrize(
    ("peer", "via"), [(CLIENT, "192.0.2.1:40000"), (TCPAddress("::1", 7), "[::1]:7"), (None, "unix")]
)
def test_a_client_behind_a_proxy_is_named_and_the_proxy_too(records: Lines, peer: TCPAddress | None, via: str) -> None:
    session = SessionRecords(peer)
    session.client_is(ip_address("203.0.113.9"))
    session.over(Refused(Unauthorized()))
    assert f" client=203.0.113.9 via={via} status=401" in records()[0]


def test_of_two_proxies_that_name_the_client_the_nearer_is_recorded(records: Lines) -> None:
    """A PROXY header by the balancer, and a forwarded address in the head."""
    session = SessionRecords(CLIENT)
    session.client_is(ip_address("198.51.100.1"), 5)
    session.client_is(ip_address("203.0.113.9"))
    session.over(Refused(Unauthorized()))
    assert " client=203.0.113.9 via=192.0.2.1:40000 status=401" in records()[0]


def test_a_client_that_a_proxy_names_with_its_port_has_it(records: Lines) -> None:
    session = SessionRecords(CLIENT)
    session.client_is(ip_address("2001:db8::9"), 1234)
    session.over(Refused(Unauthorized()))
    assert " client=2001:db8::9 port=1234 via=192.0.2.1:40000 status=401" in records()[0]


def test_sessions_can_be_told_apart() -> None:
    ids = {SessionRecords(CLIENT).id for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{12}", each) for each in ids)


# --- nothing that a client made up ------------------------------------------------------------------


def test_the_text_of_a_refusal_is_not_in_the_log(records: Lines) -> None:
    """It may quote what the client sent."""
    SessionRecords(CLIENT).over(Refused(Forbidden("client made this up")))
    assert "made" not in records()[0]


@pytest.mark.parametrize("path", ["/a b reason=closed", "/ü", "/'\"\\", "/a=b", "/\u202e"])
def test_a_target_is_one_word_so_that_no_client_can_add_fields_to_a_record(records: Lines, path: str) -> None:
    session = SessionRecords(CLIENT)
    session.asked(UnixAddress(path))
    session.opened(UnixAddress(path), "tcp", 0)
    (record,) = records()
    assert record.isascii()
    words = record.split(" ")
    assert [word.partition("=")[0] for word in words] == [
        *("opened", "session", "client", "port", "target", "dialled", "transport", "dial_seconds")
    ]


@pytest.mark.parametrize("name", ["alice b reason=closed", "älice", "\udcff", "a\nb"])
def test_a_tokens_name_is_one_word_too(records: Lines, name: str) -> None:
    session = SessionRecords(CLIENT)
    session.authenticated(name)
    session.over(Refused(Forbidden()))
    (record,) = records()
    assert record.isascii()
    assert record.isprintable()
    assert [word.partition("=")[0] for word in record.split(" ")][4:] == ["token", "status", "error"]


def test_an_addresss_own_characters_stay_readable(records: Lines) -> None:
    session = SessionRecords(CLIENT)
    session.asked(TCPAddress("fe80::1%eth0", 22))
    session.opened(UnixAddress("/run/sshd.sock"), "tcp", 0)
    assert "target=[fe80::1%eth0]:22 dialled=unix:/run/sshd.sock " in records()[0]


def test_a_detail_cannot_begin_a_new_line(records: Lines) -> None:
    opened().over(Ended(Reason.CLIENT_BROKE, "a\nended session=0 reason=closed\x1b[2J"))
    assert records()[-1].isprintable()


# --- for programs -----------------------------------------------------------------------------------


def test_a_record_is_a_dict_for_other_handlers_of_the_standard_librarys_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    session = opened()
    session.over(Ended(Reason.CLOSED))
    first, last = (record.msg for record in caplog.records)
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert first == {
        "event": "opened",
        "session": session.id,
        "client": "192.0.2.1",
        "port": 40000,
        "token": "alice",
        "target": "db:5432",
        "dialled": "10.0.0.7:5432",
        "transport": "tcp",
        "dial_seconds": 0.012,
    }
    assert list(last)[-4:] == ["bytes_up", "bytes_down", "seconds", "reason"]
    assert [first["event"], last["event"]] == [Event.OPENED.value, Event.ENDED.value]
