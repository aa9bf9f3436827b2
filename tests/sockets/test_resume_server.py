"""A server whose tunnels come back: who may, how long it waits, what it writes, and what it holds."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from http2tcp.address import parse_destination
from http2tcp.protocol.capsule import Reset, ResetCode
from http2tcp.protocol.resume import Resumable
from http2tcp.protocol.resume_wire import KEY_SIZE, Challenge, Hello
from http2tcp.server import attempt, resumption
from http2tcp.server.audit import Record
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from tests.support import loopback, resuming
from tests.support.loopback import TOKEN, Served, echo, exchange, reset, target, upgrade
from tests.support.resuming import TERMS, Peer, abort, asks, begin, opening

OTHER = "tok-of-somebody-else-012"
ALICE, BOB = Token("alice", digest(TOKEN)), Token("bob", digest(OTHER))


@asynccontextmanager
async def served(**settings: Any) -> AsyncIterator[Served]:
    """A server, with which each connection of the test ends."""
    async with loopback.served(**settings) as server:
        try:
            yield server
        finally:
            resuming.close_all()


def records(caplog: pytest.LogCaptureFixture) -> list[Record]:
    """Those of sessions."""
    return [entry.msg for entry in caplog.records if isinstance(entry.msg, Record)]


def of(caplog: pytest.LogCaptureFixture, event: str) -> list[Record]:
    """Those of one event."""
    return [record for record in records(caplog) if record["event"] == event]


async def until(condition: object, *, within: float = 10.0) -> None:
    """Look until it holds."""
    with trio.fail_after(within):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.005)


async def away(server: Served, count: int = 1) -> None:
    """So many sessions wait for their client."""
    await until(lambda: server.server.state.resumption.away == count)


async def over(server: Served) -> None:
    """It has no session and no connection."""
    state = server.server.state
    await until(lambda: not state.sessions and not len(state.unauthenticated))
    assert len(state.tunnels) == 0
    assert state.resumption.memory.used == 0
    assert state.resumption.away == 0


# --- the records ----------------------------------------------------------------------------------


async def test_a_tunnel_that_came_back_is_one_opened_and_one_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        await peer.send(b"one")
        await peer.until(b"one")
        for word in (b"two", b"three"):
            peer.cut()
            await away(server)
            peer.machine.give(word)
            await peer.resume()
            await peer.until(b"onetwo" if word == b"two" else b"onetwothree")
        await peer.finish()
        await peer.until_end()
        await over(server)
    assert [record["event"] for record in records(caplog)] == [
        *("opened", "detached", "resumed", "detached", "resumed", "ended")
    ]
    assert len({record["session"] for record in records(caplog)}) == 1
    (ended,) = of(caplog, "ended")
    assert ended["resumes"] == 2
    assert "detached_seconds" in ended
    assert (ended["reason"], ended["bytes_up"], ended["bytes_down"]) == ("closed", 11, 11)


async def test_a_client_that_stays_away_is_lost_after_the_grace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(resume=1.0) as server:
        peer = await begin(server.address, where)
        await peer.send(b"one")
        await peer.until(b"one")
        peer.cut()
        await over(server)
        (ended,) = of(caplog, "ended")
        assert ended["reason"] == "client_lost"
        # It may come back all the same, and learns why it cannot go on.
        opened = await peer.attempt()
        said = await opened.first()
        assert isinstance(said, Reset)
        assert said.code == ResetCode.AWAY_TOO_LONG
    assert len(of(caplog, "ended")) == 1


async def fill(peer: Peer) -> None:
    """Send until the target, which does not read, takes nothing more."""
    stuck = False
    while not stuck:
        with trio.move_on_after(0.5) as scope:
            await peer.send(bytes(256 * 1024))
        stuck = scope.cancelled_caught


async def deaf(stream: trio.SocketStream) -> None:
    """A target that never reads."""
    await trio.sleep_forever()


async def test_a_lost_client_s_session_ends_though_its_target_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(deaf) as where, served(resume=1.0) as server:
        peer = await begin(server.address, where)
        await fill(peer)
        abort(peer.stream)
        # The server does not read: a keepalive that cannot be sent would tell it. Here it is another attempt.
        opened = await peer.attempt()
        assert isinstance(await opened.first(), Hello)
        entry = next(iter(server.server.state.resumption._entries.values()))
        entry.stream.detach("it was lost")
        await over(server)
    assert of(caplog, "ended")[0]["reason"] == "client_lost"


async def test_a_client_can_leave_past_bytes_that_the_target_does_not_read(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(deaf) as where, served() as server:
        peer = await begin(server.address, where)
        await fill(peer)
        peer.cut()
        peer.machine.terms = peer.machine.terms._replace(grace=0)
        await peer.attempt()
        await over(server)
    assert of(caplog, "ended")[0]["reason"] == "client_broke"


async def test_a_client_that_leaves_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        await peer.send(b"one")
        await peer.until(b"one")
        peer.machine.give_reset(ResetCode.LEAVING, "")
        await peer.flush()
        await over(server)
    (ended,) = of(caplog, "ended")
    assert ended["reason"] == "client_broke"
    assert of(caplog, "detached") == []


async def test_a_client_that_has_not_confirmed_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served() as server:
        opened = await opening(server.address, asks(where))
        assert isinstance(await opened.first(), Hello)
        abort(opened.stream)
        await over(server)
    assert [record["event"] for record in records(caplog)] == ["opened", "ended"]


async def test_a_client_whose_last_ack_was_lost_learns_that_all_has_arrived() -> None:
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        await peer.send(b"one")
        await peer.finish()
        await peer.until(b"one")
        await peer.until_end()
        await over(server)
        # As if its last words were lost with the connection.
        peer.cut()
        opened = await peer.attempt()
        hello = await opened.first()
        assert isinstance(hello, Hello)
        peer.machine.resume(peer.pending, hello)
        assert peer.machine.finished


# --- what ends a session while its client is away -------------------------------------------------


async def test_a_token_that_is_taken_away_ends_a_session_whose_client_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(tokens=[ALICE, BOB]) as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        server.reload(tokens=[BOB])
        await over(server)
    assert of(caplog, "ended")[0]["reason"] == "revoked"


async def test_idle_and_longest_time_go_on_while_the_client_is_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for limits, reason in ((Limits(idle_timeout=1.0), "idle"), (Limits(max_session=1.0), "max_session")):
        caplog.clear()
        async with target(echo) as where, served(limits=limits) as server:
            peer = await begin(server.address, where)
            peer.cut()
            await over(server)
        assert of(caplog, "ended")[0]["reason"] == reason


async def test_a_server_that_stops_does_not_wait_for_who_is_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(grace=0.2) as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        server.drain.set()
        with trio.fail_after(8):
            await server.ended.wait()
    assert of(caplog, "ended")[0]["reason"] == "stopped"


async def test_a_target_that_resets_meanwhile_is_told_after_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    go = trio.Event()

    async def say_and_reset(stream: trio.SocketStream) -> None:
        await go.wait()
        await stream.send_all(b"last words")
        await trio.sleep(0.1)
        reset(stream)

    async with target(say_and_reset) as where, served() as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        go.set()
        await trio.sleep(0.5)
        await peer.resume()
        end = await peer.until_end()
        assert peer.received == b"last words"
        assert end.reset is not None
        assert end.reset.code == ResetCode.TARGET
        await over(server)
    assert of(caplog, "ended")[0]["reason"] == "target_broke"


async def test_a_target_that_ends_meanwhile_is_an_end() -> None:
    go = trio.Event()

    async def say_and_end(stream: trio.SocketStream) -> None:
        await go.wait()
        await stream.send_all(b"goodbye")
        await stream.send_eof()
        await stream.receive_some(1)

    async with target(say_and_end) as where, served() as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        go.set()
        await peer.resume()
        assert (await peer.until_end()).reset is None
        assert peer.received == b"goodbye"
        await peer.finish()
        await over(server)


# --- limits ---------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is away counts at once."""
    monkeypatch.setattr(resumption, "PATIENCE", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("limit", [{"max_detached": 3}, {"max_detached_per_token": 3}])
async def test_a_flood_of_sessions_that_are_left_is_bounded(
    limit: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(**limit) as server:
        for _ in range(6):
            peer = await begin(server.address, where)
            peer.cut()
            await until(lambda: not server.server.state.unauthenticated or True)
            await trio.sleep(0.05)
        await until(lambda: server.server.state.resumption.away <= 3)
        await until(lambda: len(of(caplog, "ended")) == 3)
        assert [record["reason"] for record in of(caplog, "ended")] == ["evicted"] * 3
        # Those that have been away longest.
        assert [each["session"] for each in of(caplog, "ended")] == [
            each["session"] for each in of(caplog, "opened")[:3]
        ]


@pytest.mark.usefixtures("impatient")
async def test_without_tokens_a_flood_of_sessions_that_are_left_drives_nobody_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(tokens=(), destination=parse_destination(where), max_detached=2) as server:
        peer = await begin(server.address, where, token=None)
        peer.cut()
        await away(server)
        for _ in range(4):
            (await begin(server.address, where, token=None)).cut()
            await trio.sleep(0.05)
        await until(lambda: len(of(caplog, "ended")) == 3)
        await peer.resume()
        await peer.send(b"here")
        await peer.until(b"here")


async def test_strangers_who_ask_for_sessions_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served(tokens=(), destination=parse_destination("127.0.0.1:9")) as server:
        for _ in range(30):
            assert await refusal(await opening(server.address, asks("", "0123456789ab", token=None))) == ResetCode.GONE
            resuming.close_all()
        await over(server)
    assert len(of(caplog, "not_resumed")) == 20


async def test_those_who_just_left_do_not_count() -> None:
    async with target(echo) as where, served(max_detached=1, max_detached_per_token=1) as server:
        peers = [await begin(server.address, where) for _ in range(4)]
        for peer in peers:
            peer.cut()
        await away(server, 4)
        for peer in peers:
            await peer.resume()
            await peer.send(b"here")
            await peer.until(b"here")


@pytest.mark.usefixtures("impatient")
async def test_a_new_tunnel_takes_the_place_of_one_whose_client_is_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(limits=Limits(max_tunnels_per_token=1)) as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        again = await begin(server.address, where)
        await again.send(b"here")
        await again.until(b"here")
        with trio.fail_after(2):
            await until(lambda: of(caplog, "ended"))
        assert of(caplog, "ended")[0]["reason"] == "evicted"
        assert await refusal(await peer.attempt()) == ResetCode.AWAY_TOO_LONG


async def test_what_is_kept_is_bounded_where_nobody_acknowledges() -> None:
    async def pour(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(bytes(65536))

    window = 256 * 1024
    async with target(pour) as where, served(resume_window=window, resume_memory=2 * window) as server:
        peers = [await begin(server.address, where) for _ in range(6)]

        async def swallow(peer: Peer) -> None:
            with trio.move_on_after(1.0):
                while await peer.read(acknowledges=False):
                    pass

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(swallow, peer)
        memory = server.server.state.resumption.memory
        # Beyond the memory of all, each has 64 KiB of its own; and a read that was under way.
        assert 0 < memory.used <= 2 * window + 6 * (64 * 1024 + 256 * 1024)
        for peer in peers:
            peer.cut()
        await away(server, 6)
        assert memory.used <= 2 * window + 6 * (64 * 1024 + 256 * 1024)


async def test_bytes_that_were_not_kept_while_both_ways_were_stuck_are_a_gap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def pour(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(bytes(65536))

    async with target(pour) as where, served(resume_window=256 * 1024) as server:
        peer = await begin(server.address, where)
        entry = next(iter(server.server.state.resumption._entries.values()))
        async with trio.open_nursery() as nursery:

            async def fill_for_good() -> None:
                # `fill` takes a slow moment for the end, and then the target's kernel may still take something.
                while True:
                    await peer.send(bytes(256 * 1024))

            nursery.start_soon(fill_for_good)

            async def swallow() -> None:
                while not entry.stream.machine.lapses:
                    peer.take(bytes(await peer.stream.receive_some(65536)), acknowledges=False)

            with trio.fail_after(20):
                await swallow()
            nursery.cancel_scope.cancel()
        await until(lambda: entry.stream.machine.out.base > peer.machine.received)
        peer.cut()
        entry.stream.detach("it was lost")
        assert await refusal(await peer.attempt()) == ResetCode.GAP
        await over(server)
    assert of(caplog, "ended")[0]["reason"] == "gap"


# --- attacks --------------------------------------------------------------------------------------


@pytest.fixture
async def alice() -> AsyncIterator[tuple[Served, Peer]]:
    """A server, and somebody's healthy session there."""
    async with target(echo) as where, served(tokens=[ALICE, BOB]) as server:
        peer = await begin(server.address, where)
        await peer.send(b"one")
        await peer.until(b"one")
        yield server, peer
        # Whatever was tried: the session is what it was, on the connection that it had.
        await peer.send(b"two")
        await peer.until(b"onetwo")


def stranger(peer: Peer, token: str = TOKEN) -> Peer:
    """Somebody who knows the session's id, and nothing else of it."""
    hello = Hello(
        keepalive=25_000, window=1024 * 1024, grace=60, session=peer.session, secret=secrets.token_bytes(KEY_SIZE)
    )
    machine = Resumable.agree(hello, TERMS)
    machine.data_to_send()
    return Peer(peer.address, machine, peer.stream, token)


async def refusal(opened: resuming.Opening) -> int:
    said = await opened.first()
    assert isinstance(said, Reset), said
    return said.code


async def test_the_token_alone_takes_nothing_over(alice: tuple[Served, Peer]) -> None:
    _, peer = alice
    assert await refusal(await stranger(peer).attempt()) == ResetCode.NOT_YOURS


async def test_the_secret_with_another_token_takes_nothing_over(alice: tuple[Served, Peer]) -> None:
    _, peer = alice
    opened = await opening(peer.address, asks("", peer.session, token=OTHER))
    assert await refusal(opened) == ResetCode.GONE


@pytest.mark.parametrize("session", ["0123456789ab", "a-0123456789ab", "", "x" * 500, "\xff"])
async def test_a_guessed_id_is_gone(alice: tuple[Served, Peer], session: str) -> None:
    _, peer = alice
    request = asks("", "SESSION").replace(b"SESSION", session.encode("latin-1"))
    assert await refusal(await opening(peer.address, request)) == ResetCode.GONE


async def test_a_wrong_token_learns_nothing(alice: tuple[Served, Peer]) -> None:
    server, peer = alice
    for session in (peer.session, "0123456789ab"):
        answer = await exchange(server.address, asks("", session, token="wrong-token-0123"))
        assert answer.status == 401


async def test_a_replayed_attempt_takes_nothing_over() -> None:
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        peer.cut()
        await peer.resume()
        opened = await opening(server.address, asks("", peer.session))
        assert isinstance(await opened.first(), Challenge)
        # What was recorded when it resumed: its nonce was another one.
        await opened.stream.send_all(peer.pending.capsule)
        assert await refusal(opened) == ResetCode.NOT_YOURS
        await peer.send(b"still here")
        await peer.until(b"still here")


async def test_a_delayed_attempt_takes_nothing_over() -> None:
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        opened = await opening(server.address, asks("", peer.session))
        challenged = await opened.first()
        assert isinstance(challenged, Challenge)
        peer.cut()
        old = peer.machine.answer(challenged.nonce, secrets.token_bytes(KEY_SIZE))
        await peer.resume()
        await opened.stream.send_all(old.capsule)
        assert await refusal(opened) == ResetCode.BUSY
        await peer.send(b"still here")
        await peer.until(b"still here")


async def test_a_flood_of_attempts_locks_nobody_out(caplog: pytest.LogCaptureFixture) -> None:
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        for _ in range(40):
            assert await refusal(await stranger(peer).attempt()) in (ResetCode.NOT_YOURS, ResetCode.BUSY)
        await peer.resume()
        await peer.send(b"here")
        await peer.until(b"here")


async def test_attempts_that_hang_are_bounded_and_do_not_keep_the_owner_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt, "_HELLO_TIMEOUT", 1.0)
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        peer.cut()
        await away(server)
        hanging = [await opening(server.address, asks("", peer.session)) for _ in range(resumption.ATTEMPTS)]
        for each in hanging:
            assert isinstance(await each.first(), Challenge)
        # They stand with those that have brought no token.
        assert len(server.server.state.unauthenticated) == resumption.ATTEMPTS
        await peer.resume()
        await peer.send(b"here")
        await peer.until(b"here")
        assert await refusal(hanging.pop(0)) == ResetCode.BUSY
        with trio.fail_after(5):
            for each in hanging:
                with pytest.raises(trio.BrokenResourceError):
                    await each.first()


@pytest.mark.parametrize("lie", ["more than was sent", "fewer than were acknowledged"])
async def test_a_client_that_lies_about_its_counts_ends_its_own_session(
    lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        await peer.send(b"one")
        await peer.until(b"one")
        await until(lambda: next(iter(server.server.state.resumption._entries.values())).stream.machine.out.acked == 3)
        peer.cut()
        await away(server)
        peer.machine.received = peer.machine.handed_on = 1000 if lie.startswith("more") else 1
        assert await refusal(await peer.attempt()) in (ResetCode.PROTOCOL, ResetCode.GAP)
        await over(server)
    assert len(of(caplog, "ended")) == 1


async def test_an_ack_of_what_was_never_sent_ends_the_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served() as server:
        peer = await begin(server.address, where)
        peer.machine.handed_on = 5000
        peer.machine._ack_due = True
        await peer.flush()
        end = await peer.until_end()
        assert end.reset is not None
        assert end.reset.code == ResetCode.PROTOCOL
        await over(server)
    assert of(caplog, "ended")[0]["reason"] == "client_broke"


async def test_raw_bytes_cannot_be_resumed(alice: tuple[Served, Peer]) -> None:
    server, peer = alice
    fields = ("Http2tcp-Resume: ?1", f"Http2tcp-Session: {peer.session}")
    assert (await exchange(server.address, upgrade("/", *fields, transport="tcp"))).status == 400


async def test_a_web_page_may_not_resume(alice: tuple[Served, Peer]) -> None:
    server, peer = alice
    request = asks("", peer.session, "Origin: https://evil.example")
    assert (await exchange(server.address, request)).status == 403


async def test_a_client_that_does_not_take_the_offer_goes_on_as_ever() -> None:
    async with target(echo) as where, served() as server:
        opened = await opening(server.address, asks(where))
        assert isinstance(await opened.first(), Hello)
        from http2tcp.protocol.capsule import FINAL, data_header

        await opened.stream.send_all(data_header(3) + b"one" + FINAL)
        received = opened.rest
        with trio.fail_after(5):
            while FINAL not in received:
                received += bytes(await opened.stream.receive_some(65536))
        assert data_header(3) + b"one" in received
        await opened.stream.aclose()
        await over(server)


async def test_a_server_with_resume_off_does_not_offer_it() -> None:
    async with target(echo) as where, served(resume=0) as server:
        opened = await opening(server.address, asks(where))
        with trio.move_on_after(0.3):
            await opened.first()
            pytest.fail("it spoke first")
        abort(opened.stream)
        await over(server)
