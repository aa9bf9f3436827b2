"""What ends an open session: its token's time, its being taken away, silence, its own length, the drain."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from http2tcp.limits import Limits
from http2tcp.net import dial as dial_module
from http2tcp.net.dial import Candidate
from http2tcp.net.streams import SocketStream
from http2tcp.policy import Token, digest
from http2tcp.rules import parse_rule
from tests.support.loopback import (
    TOKEN,
    Served,
    asking,
    echo,
    exchange,
    open_raw,
    read_until_broken,
    served,
    target,
)

BOB = "bobs-5ecret"


def token(name: str = "alice", secret: str = TOKEN, *, expires: float = math.inf, allow: Sequence[str] = ()) -> Token:
    return Token(name, digest(secret), expires, [parse_rule(text) for text in allow] or None)


@asynccontextmanager
async def tunnel(server: Served, where: str, secret: str = TOKEN) -> AsyncIterator[trio.SocketStream]:
    """An open tunnel to an echo that has said something."""
    stream, _ = await open_raw(server.address, asking(where, token=secret))
    async with stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        yield stream


async def ended(stream: trio.SocketStream) -> bytes:
    with trio.fail_after(10):
        return await read_until_broken(stream)


async def lives(stream: trio.SocketStream) -> None:
    await stream.send_all(b"still")
    with trio.fail_after(10):
        assert await stream.receive_some() == b"still"


@pytest.mark.parametrize("limits", [Limits(), Limits(max_session=3600, idle_timeout=600)], ids=["no limit", "limits"])
async def test_a_token_that_is_taken_away_ends_its_sessions_and_no_others(
    limits: Limits, caplog: pytest.LogCaptureFixture
) -> None:
    """And the record says so, whatever else would have ended them later."""
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(tokens=[token(), token("bob", BOB)], limits=limits) as server:
        async with tunnel(server, where) as alices, tunnel(server, where, BOB) as bobs:
            server.reload(tokens=[token("bob", BOB)])
            await ended(alices)
            await lives(bobs)
            refused = await exchange(server.address, asking(where))
            assert refused.status == 401
    assert caplog.text.count("reason=revoked") == 1


async def test_a_token_that_is_taken_away_while_its_target_is_dialled_opens_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dialling, go_on = trio.Event(), trio.Event()

    async def slowly(candidate: Candidate) -> SocketStream:
        dialling.set()
        await go_on.wait()
        return await connect(candidate)

    connect = dial_module._connect
    monkeypatch.setattr(dial_module, "_connect", slowly)
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(tokens=[token(), token("bob", BOB)]) as server:
        answers = []

        async def ask() -> None:
            answers.append(await exchange(server.address, asking(where)))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await dialling.wait()
                server.reload(tokens=[token("bob", BOB)])
                go_on.set()
        assert [answer.status for answer in answers] == [401]
        async with tunnel(server, where, BOB) as bobs:
            await lives(bobs)
    assert caplog.text.count("token=alice") == caplog.text.count("status=401") == 1


async def test_the_last_token_taken_away_opens_nothing_to_everybody(caplog: pytest.LogCaptureFixture) -> None:
    async with target(echo) as where, served(tokens=[token()], destination=None) as server:
        async with tunnel(server, where) as alices:
            server.reload(tokens=[token("bob", BOB)])
            await ended(alices)
        assert (await exchange(server.address, asking(where, token=None))).status == 401


async def test_sessions_of_a_token_that_is_gone_run_on_where_that_is_asked_for() -> None:
    async with target(echo) as where, served(tokens=[token()]) as server, tunnel(server, where) as stream:
        server.reload(tokens=[token("bob", BOB)], keep_sessions=True)
        await lives(stream)


async def test_a_token_that_expires_ends_its_sessions_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    expires = time.time() + 1
    async with target(echo) as where, served(tokens=[token(expires=expires)]) as server:
        async with tunnel(server, where) as stream:
            await ended(stream)
            assert time.time() >= expires - 0.01
        assert (await exchange(server.address, asking(where))).status == 401
    assert "reason=expired" in caplog.text


async def test_a_token_that_is_prolonged_keeps_its_sessions() -> None:
    async with target(echo) as where, served(tokens=[token(expires=time.time() + 0.5)]) as server:
        async with tunnel(server, where) as stream:
            server.reload(tokens=[token(expires=time.time() + 1000)])
            await trio.sleep(0.7)
            await lives(stream)


async def test_a_token_whose_time_is_cut_short_loses_its_sessions() -> None:
    async with target(echo) as where, served(tokens=[token(expires=time.time() + 1000)]) as server:
        async with tunnel(server, where) as stream:
            server.reload(tokens=[token(expires=time.time() - 1)])
            await ended(stream)


async def test_how_long_a_session_may_last_can_change_while_it_does() -> None:
    async with target(echo) as where, served(limits=Limits(max_session=3)) as server:
        async with tunnel(server, where) as longer, tunnel(server, where) as shorter:
            server.reload(limits=Limits(max_session=1000))
            await lives(shorter)
            server.reload(limits=Limits(max_session=0.001))
            await ended(shorter)
            await ended(longer)


async def test_new_rules_count_for_new_sessions() -> None:
    async with target(echo) as where, served(tokens=[token()]) as server, tunnel(server, where) as stream:
        server.reload(tokens=[token(allow=["elsewhere:22"])])
        await lives(stream)
        assert (await exchange(server.address, asking(where))).status == 403


@pytest.mark.parametrize(
    ("limits", "reason"), [(Limits(idle_timeout=0.3), "idle"), (Limits(max_session=0.3), "max_session")]
)
async def test_an_idle_or_overlong_session_is_cut_and_the_record_says_why(
    limits: Limits, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(limits=limits) as server:
        async with tunnel(server, where) as stream:
            await ended(stream)
    assert f"reason={reason}" in caplog.text


async def test_bulk_that_never_pauses_is_not_idle() -> None:
    async def pour(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"x" * 65536)

    async with target(pour) as where, served(limits=Limits(idle_timeout=0.5)) as server:
        stream, received = await open_raw(server.address, asking(where))
        async with stream:
            with trio.move_on_after(2):
                while True:
                    received = await stream.receive_some(1 << 20)
                    assert received


async def test_the_grace_s_end_cuts_sessions_with_the_reason_in_the_record(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(grace=0.2) as server, tunnel(server, where) as stream:
        server.drain.set()
        await ended(stream)
        with trio.fail_after(5):
            await server.ended.wait()
    assert "reason=stopped" in caplog.text


async def test_a_tunnel_s_rate_is_held_in_both_directions_and_no_byte_is_lost() -> None:
    rate, size = 200_000, 100_000
    async with target(echo) as where, served(limits=Limits(max_rate=rate)) as server:
        stream, received = await open_raw(server.address, asking(where))
        async with stream:
            began = time.monotonic()
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    await stream.send_all(bytes(range(250)) * (size // 250))
                    await stream.send_eof()

                nursery.start_soon(send)
                data = received
                while piece := await stream.receive_some(65536):
                    data += piece
            took = time.monotonic() - began
    assert data == bytes(range(250)) * (size // 250)
    # A tenth of a second's worth may go at once at the beginning.
    assert took > size / rate - 0.15
