"""Each invariant is broken by what it is there for, and by nothing that the documentation allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from http2tcp.protocol.transport import Transport
from tests.campaign.cases import Case, Client, Cut, Finish, Order, Server, Side, Way, Weather
from tests.campaign.invariants import Kind, Observed, judge
from tests.campaign.servers import Told
from tests.campaign.talk import Account, Saw, Witness

_UP, _DOWN = b"the way up", b"the way down, which is longer"

_CASE = Case(
    seed=1,
    index=2,
    client=Client.STDIO,
    transport=Transport.CONNECT_TCP,
    server=Server.PLAIN,
    order=Order.INDEPENDENT,
    up=Side(size=len(_UP), piece=4),
    down=Side(size=len(_DOWN), piece=4),
)


def _account(sent: bytes, got: bytes, at: float) -> Account:
    account = Account(Witness(got), sent=len(sent), ended_at=at, saw=Saw.CLEAN, saw_at=2.5, over_at=2.5, opened_at=0.0)
    account.active = [(0.0, at)]
    account.got.receive(got)
    account.had_all_at_end = True
    return account


def _well(**changes: Any) -> Observed:
    """All went well with a case that is `_CASE` but for the changes."""
    record = {"reason": "closed", "bytes_up": len(_UP), "bytes_down": len(_DOWN)}
    seen = Observed(
        replace(_CASE, **changes),
        _account(_UP, _DOWN, 1.0),
        _account(_DOWN, _UP, 1.5),
        Told(opened=1, ended=[record]),
        status=0,
    )
    seen.client.confirmed = True
    return seen


def _kinds(seen: Observed) -> set[Kind]:
    return {finding.kind for finding in judge(seen)}


def _truncated(account: Account, most: int) -> None:
    whole = account.got
    account.got = Witness(whole.expected)
    account.got.receive(whole.expected[:most])


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("server", list(Server))
def test_what_went_well_is_no_finding(transport: Transport, server: Server) -> None:
    assert judge(_well(transport=transport, server=server)) == []


def test_a_wrong_byte_is_found_wherever_it_is() -> None:
    for at in (0, 5, len(_UP) - 1):
        seen = _well()
        got = bytearray(_UP)
        got[at] ^= 1
        seen.target.got = Witness(_UP)
        for byte in got:
            seen.target.got.receive(bytes([byte]))
        assert Kind.PREFIX in _kinds(seen)
        assert seen.target.got.wrong_at == at
    seen = _well()
    seen.client.got.receive(b"x")
    assert Kind.PREFIX in _kinds(seen)


def _cut_short(seen: Observed) -> None:
    _truncated(seen.target, 3)


def _not_said(seen: Observed) -> None:
    seen.client.ended_at = None


def _said_later(seen: Observed) -> None:
    seen.target.saw_at = 0.9


@pytest.mark.parametrize("doctor", [_cut_short, _not_said, _said_later])
def test_a_clean_end_that_was_none_is_found(doctor: Callable[[Observed], None]) -> None:
    for transport, server in [(t, s) for t in Transport for s in (Server.PLAIN, Server.TLS)]:
        seen = _well(transport=transport, server=server)
        doctor(seen)
        assert Kind.FALSE_END in _kinds(seen)
    # Also where something cut it, unless it was in raw bytes, which cannot tell.
    for transport in Transport:
        for server in (Server.PLAIN, Server.TLS, Server.NGINX):
            seen = _well(transport=transport, server=server)
            doctor(seen)
            seen.struck = True
            assert (Kind.FALSE_END in _kinds(seen)) == (not transport.raw or server is Server.TLS)


def test_a_clean_end_after_the_other_side_broke_off_is_found() -> None:
    seen = _well(client=Client.WEBSOCKET, transport=Transport.WEBSOCKET, order=Order.TARGET_BREAKS)
    seen.target.broke_off, seen.target.ended_at = True, None
    assert _kinds(seen) == {Kind.FALSE_END}


def test_a_client_that_is_told_that_all_is_well_while_the_target_was_reset_is_found() -> None:
    seen = _well()
    _truncated(seen.target, 3)
    seen.target.saw = Saw.BROKEN
    assert {Kind.FALSE_SUCCESS, Kind.NOT_WHOLE} == _kinds(seen)
    seen.struck = True
    assert {Kind.FALSE_SUCCESS} == _kinds(seen)
    # Not where the target had it so.
    seen.target.broke_off = True
    assert _kinds(seen) == set()


def test_a_target_may_be_reset_behind_all_that_was_confirmed_where_its_own_words_were_cut() -> None:
    for client, allowed in ((Client.CAPSULES, True), (Client.STDIO, False), (Client.API, False)):
        seen = _well(client=client)
        seen.struck, seen.target.saw = True, Saw.BROKEN
        assert Kind.FALSE_SUCCESS in _kinds(seen)
        _truncated(seen.client, 3)
        assert (Kind.FALSE_SUCCESS not in _kinds(seen)) == allowed
        _truncated(seen.target, 3)
        assert Kind.FALSE_SUCCESS in _kinds(seen)


def _status(seen: Observed) -> None:
    seen.status, seen.said = 71, "connection lost"


def _reason(seen: Observed) -> None:
    seen.told.ended[0]["reason"] = "client_broke"


def _miscounted(seen: Observed) -> None:
    seen.told.ended[0]["bytes_up"] += 1


def _broken(seen: Observed) -> None:
    seen.client.saw = Saw.BROKEN


@pytest.mark.parametrize("doctor", [_status, _reason, _miscounted, _broken])
def test_what_nothing_cut_has_to_end_well(doctor: Callable[[Observed], None]) -> None:
    seen = _well()
    doctor(seen)
    assert Kind.NOT_WHOLE in _kinds(seen)
    seen.struck = True
    assert Kind.NOT_WHOLE not in _kinds(seen)


def test_nginx_may_end_both_directions_of_raw_bytes_once_one_has_ended() -> None:
    for had_all in (False, True):
        seen = _well(client=Client.RAW, transport=Transport.TCP, server=Server.NGINX)
        _truncated(seen.target, 3)
        seen.target.had_all_at_end = had_all
        assert bool(judge(seen)) == had_all


def test_an_input_that_stays_open_and_silent_after_the_target_s_end_may_end_in_failure_and_never_in_an_end() -> None:
    seen = _well()
    _status(seen)
    seen.client.confirmed = False
    _broken(seen)
    seen.client.ended_at, seen.client.over_at = None, 5.0
    seen.target.saw = Saw.BROKEN
    assert judge(seen) == []
    seen.target.saw = Saw.CLEAN
    assert _kinds(seen) == {Kind.FALSE_END}


def test_an_idle_timeout_counts_only_where_somebody_stalled() -> None:
    found = {Kind.NOT_WHOLE, Kind.RECORD}
    for lull, server, kinds in ((7.0, Server.IDLE, set()), (1.0, Server.IDLE, found), (7.0, Server.PLAIN, found)):
        seen = _well(server=server)
        seen.target.over_at = 2.5 + lull
        seen.told.ended[0]["reason"] = "idle"
        assert _kinds(seen) == kinds


def test_a_tunnel_that_does_not_open_is_found_unless_something_was_in_the_way() -> None:
    seen = _well()
    seen.target = Account(Witness(_UP))
    seen.told = Told()
    seen.client = Account(Witness(_DOWN), saw=Saw.BROKEN, over_at=2.0)
    seen.status, seen.said = 67, "no tunnel"
    assert _kinds(seen) == {Kind.NOT_OPENED}
    seen.struck = True
    assert judge(seen) == []
    seen.struck, seen.case = False, replace(_CASE, near=Weather(piece=1, shaped=100))
    assert _kinds(seen) == {Kind.NOT_OPENED}
    seen.client.over_at = 11.0
    assert judge(seen) == []


@pytest.mark.parametrize(("opened", "ended"), [(1, 0), (1, 2), (2, 1), (0, 1)])
def test_one_tunnel_has_two_records(opened: int, ended: int) -> None:
    seen = _well()
    seen.told = Told(opened, seen.told.ended * ended)
    assert Kind.RECORD in _kinds(seen)


def test_a_record_that_tells_of_a_bug_is_found_even_where_it_was_cut() -> None:
    seen = _well(near=Weather(cut=Cut.RST, at=5, way=Way.UP))
    seen.struck = True
    seen.told.ended[0]["reason"] = "failed"
    assert _kinds(seen) == {Kind.RECORD}


@pytest.mark.parametrize("status", [1, 2, -11, 130])
def test_an_exit_status_that_no_failure_has_is_found(status: int) -> None:
    seen = _well()
    seen.status, seen.said, seen.struck = status, "words", True
    assert Kind.BUG in _kinds(seen)


def test_a_failure_without_a_word_and_a_traceback_are_found() -> None:
    seen = _well()
    seen.status, seen.struck = 71, True
    assert Kind.BUG in _kinds(seen)
    seen = _well(up=replace(_CASE.up, finish=Finish.LEAVE))
    seen.said = "Traceback (most recent call last):"
    assert Kind.BUG in _kinds(seen)
    seen = _well()
    seen.crash = "Traceback"
    assert _kinds(seen) == {Kind.BUG}


def test_a_forwarder_that_ends_by_itself_is_found() -> None:
    seen = _well(client=Client.FORWARDER)
    assert _kinds(seen) == {Kind.BUG}
    seen.status = None
    assert judge(seen) == []


def test_what_does_not_end_in_time_is_found() -> None:
    seen = _well()
    seen.late = "not over after 60 s"
    assert _kinds(seen) == {Kind.LATE}
