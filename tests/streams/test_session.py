"""A session ends once, whatever else happens to it, and gives back what it held."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from http2tcp.address import TCPAddress
from http2tcp.errors import LimitReached, TooManyRequests, Unauthorized
from http2tcp.server.limits import Limits
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Outcome, Reason, Refused
from http2tcp.server.policy import Token, digest
from http2tcp.server.session import Phase, Session
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import State, prepare

CLIENT = TCPAddress("192.0.2.1", 40000)
DB = TCPAddress("db", 5432)
ALICE = Token("alice", digest("alices"))
BOB = Token("bob", digest("bobs"))


def serving(**settings: object) -> State:
    return State(ServerSettings(tokens=[ALICE, BOB], **settings))  # type: ignore[arg-type]


def asked(state: State) -> Session:
    session = Session(state, CLIENT)
    session.admit(state.policy.grant(ALICE), DB)
    return session


def opened(state: State) -> Session:
    session = asked(state)
    session.open(DB, "tcp", 0.1)
    return session


REFUSED = Refused(Unauthorized())
LEFT = Abandoned(NoSession.CLIENT_LEFT)
CLOSED = Ended(Reason.CLOSED)


@pytest.mark.parametrize(
    ("begin", "first", "record"),
    [(asked, REFUSED, "refused"), (asked, LEFT, "abandoned"), (opened, CLOSED, "ended")],
)
@pytest.mark.parametrize("second", [REFUSED, LEFT, CLOSED, None], ids=["refused", "abandoned", "ended", "stopped"])
async def test_only_the_first_outcome_is_recorded_and_counted(
    begin: Callable[[State], Session],
    first: Outcome,
    second: Outcome | None,
    record: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    state = serving()
    session = begin(state)
    caplog.clear()
    session.over(first)
    if second is None:
        session.stopped()
    else:
        session.over(second)
    assert [line.getMessage().partition(" ")[0] for line in caplog.records] == [record]
    metrics = state.metrics
    counted = [
        sum(sample.value for sample in counter.samples())
        for counter in (metrics.refusals, metrics.abandoned, metrics.sessions_ended)
    ]
    assert sorted(counted) == [0, 0, 1]
    assert (len(state.tunnels), len(state.sessions)) == (0, 0)
    assert session.phase is Phase.OVER


@pytest.mark.parametrize(("begin", "record"), [(Session, "abandoned"), (asked, "abandoned"), (opened, "ended")])
async def test_a_server_that_stops_ends_what_is_open_and_abandons_what_is_not(
    begin: Callable[..., Session], record: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    state = serving()
    session = Session(state, CLIENT) if begin is Session else begin(state)
    caplog.clear()
    session.stopped()
    (line,) = caplog.records
    assert line.getMessage().startswith(f"{record} session={session.id} ")
    assert line.getMessage().endswith(" reason=stopped")


async def test_a_session_that_is_admitted_again_under_another_token_holds_that_tokens_place_alone() -> None:
    state = serving(limits=Limits(max_tunnels_per_token=1))
    session = asked(state)
    session.admit(state.policy.grant(BOB), DB)
    assert len(state.tunnels) == 1
    asked(state)  # alice's place is free
    with pytest.raises(TooManyRequests):
        Session(state, CLIENT).admit(state.policy.grant(BOB), DB)
    session.over(REFUSED)
    Session(state, CLIENT).admit(state.policy.grant(BOB), DB)


async def test_a_session_that_finds_no_place_when_it_is_admitted_again_holds_none() -> None:
    state = serving(limits=Limits(max_tunnels=1))
    session = asked(state)
    state.reload(prepare(ServerSettings(tokens=[ALICE, BOB], limits=Limits(max_tunnels=0))))
    with pytest.raises(LimitReached):
        session.admit(state.policy.grant(ALICE), DB)
    assert len(state.tunnels) == 0
    session.over(REFUSED)
    assert len(state.tunnels) == 0


async def test_a_session_has_its_tokens_newest_expiry() -> None:
    state = serving()
    session = opened(state)
    prolonged = Token("alice", digest("alices"), 4e9)
    state.reload(prepare(ServerSettings(tokens=[prolonged])))
    assert session.token is prolonged
    session.over(CLOSED)
