"""What ends an open session: its token's time, its being taken away, silence, its own length, the drain."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.address import parse_destination
from http2tcp.net import dial as dial_module
from http2tcp.net.dial import Candidate
from http2tcp.net.streams import SocketStream
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from http2tcp.server.rules import parse_rule
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
    upgrade,
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


@pytest.mark.parametrize("transport", ["tcp", "connect-tcp"])
async def test_a_slow_reader_of_what_the_kernel_keeps_is_not_idle(transport: str) -> None:
    size, piece, pause = 1_000_000, 16 * 1024, 0.1
    fields = [] if transport == "tcp" else ["Capsule-Protocol: ?1"]

    async def pour(stream: trio.SocketStream) -> None:
        await stream.send_all(b"x" * size)
        await trio.sleep_forever()

    async with target(pour) as where, served(limits=Limits(idle_timeout=1)) as server:
        stream, received = await open_raw(server.address, upgrade(f"/?addr={where}", *fields, transport=transport))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, piece)
        async with stream:
            with trio.fail_after(60):
                count = len(received)
                while count < size:
                    await trio.sleep(pause)
                    data = await stream.receive_some(piece)
                    assert data, f"it was ended after {count} B"
                    count += len(data)


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


# --- what changes while a target is dialled --------------------------------------------------------


@dataclass
class Held:
    """Dials wait here, until told to go on."""

    begun: trio.Event = field(default_factory=trio.Event)
    go_on: trio.Event = field(default_factory=trio.Event)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """The first dial's connection is made, and is not handed over before the test says so."""
    held, connect = Held(), dial_module._connect

    async def slowly(candidate: Candidate) -> SocketStream:
        stream = await connect(candidate)
        if not held.begun.is_set():
            held.begun.set()
            await held.go_on.wait()
        return stream

    monkeypatch.setattr(dial_module, "_connect", slowly)
    return held


async def asked_across_a_reload(server: Served, held: Held, request: bytes, **changes: Any) -> bytes:
    """What a client reads first whose target is dialled when the settings change."""
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
            await stream.send_all(request)
            await held.begun.wait()
            server.reload(**changes)
            held.go_on.set()
            return bytes(await stream.receive_some())


def port_of(where: str) -> str:
    return where.rpartition(":")[2]


# What `served` has at first, how the client asks (PORT is the target's), what changes, and the answer.
ACROSS: dict[str, tuple[dict[str, Any], str, dict[str, Any], bytes]] = {
    "a deny of the name": ({}, "127.0.0.1:PORT", {"deny": ["127.0.0.1:*"]}, b"403"),
    "a deny of its address": ({}, "localhost:PORT", {"deny": ["127.0.0.0/8:*", "[::1]:*"]}, b"403"),
    "an allow of another": ({}, "127.0.0.1:PORT", {"allow": ["elsewhere:22"]}, b"403"),
    "an allow of another address": ({}, "localhost:PORT", {"allow": ["10.0.0.0/8:*"]}, b"403"),
    "the token's own allow": ({}, "127.0.0.1:PORT", {"tokens": [token(allow=["elsewhere:22"])]}, b"403"),
    "the token's time": ({}, "127.0.0.1:PORT", {"tokens": [token(expires=1.0)]}, b"401"),
    "a first token": (
        {"tokens": (), "destination": "127.0.0.1:PORT"},
        "127.0.0.1:PORT",
        {"tokens": [token("bob", BOB)]},
        b"401",
    ),
    "the pinned destination": (
        {"tokens": (), "destination": "127.0.0.1:PORT"},
        "127.0.0.1:PORT",
        {"destination": "127.0.0.1:1"},
        b"403",
    ),
    "the path": ({}, "127.0.0.1:PORT", {"path": "/elsewhere/"}, b"404"),
    "the number of tunnels": ({}, "127.0.0.1:PORT", {"tokens": [replace(token(), max_tunnels=1)]}, b"101"),
    "an allow of the same": ({}, "localhost:PORT", {"allow": ["127.0.0.0/8:*"]}, b"101"),
    "nothing": ({}, "127.0.0.1:PORT", {}, b"101"),
    "keep_sessions": (
        {},
        "127.0.0.1:PORT",
        {"deny": ["*:*"], "tokens": [token("bob", BOB)], "keep_sessions": True},
        b"101",
    ),
}


def parsed(settings: dict[str, Any], port: str) -> dict[str, Any]:
    """The values of a case as `ServerSettings` has them."""
    read = dict(settings)
    if "destination" in read:
        read["destination"] = parse_destination(read["destination"].replace("PORT", port))
    for name in ("allow", "deny"):
        if name in read:
            read[name] = [parse_rule(text) for text in read[name]]
    return read


@pytest.mark.parametrize("case", ACROSS)
async def test_what_is_dialled_at_a_reload_is_judged_by_the_rules_at_its_101(case: str, held: Held) -> None:
    first, asked, changes, expected = ACROSS[case]
    async with target(echo) as where:
        port = port_of(where)
        secret = TOKEN if first.get("tokens", True) else None
        async with served(**parsed(first, port)) as server:
            request = asking(asked.replace("PORT", port), token=secret)
            answer = await asked_across_a_reload(server, held, request, **parsed(changes, port))
            assert answer.startswith(b"HTTP/1.1 " + expected), answer
            with trio.fail_after(10):
                while len(server.server.state.tunnels) != len(server.server.state.sessions):
                    await trio.sleep(0.01)


async def test_a_web_page_that_is_let_in_no_more_opens_nothing_that_was_on_its_way(held: Held) -> None:
    page = "https://example.com"
    async with target(echo) as where, served(allow_origins=[page]) as server:
        request = asking(where, f"Origin: {page}")
        answer = await asked_across_a_reload(server, held, request, allow_origins=())
    assert answer.startswith(b"HTTP/1.1 403"), answer


async def test_connect_that_is_taken_no_more_opens_nothing_that_was_on_its_way(held: Held) -> None:
    async with target(echo) as where, served(connect=True) as server:
        request = f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\nProxy-Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        answer = await asked_across_a_reload(server, held, request, connect=False)
    assert answer.startswith(b"HTTP/1.1 400"), answer


async def test_a_token_that_expires_while_its_target_is_dialled_opens_nothing(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.time()
    async with target(echo) as where, served(tokens=[token(expires=began + 1000)]) as server:
        with trio.fail_after(10):
            async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
                await stream.send_all(asking(where))
                await held.begun.wait()
                monkeypatch.setattr(time, "time", lambda: began + 2000)
                held.go_on.set()
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 401")


async def test_who_asks_for_the_default_destination_gets_the_one_of_the_101(held: Held) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"the new one")

    async with target(echo) as old, target(greet) as new, served(destination=parse_destination(old)) as server:
        with trio.fail_after(10):
            async with await trio.open_tcp_stream(server.address.host, server.address.port) as stream:
                await stream.send_all(upgrade())
                await held.begun.wait()
                server.reload(destination=parse_destination(new))
                held.go_on.set()
                received = b""
                while not received.endswith(b"the new one"):
                    data = await stream.receive_some()
                    assert data, received
                    received += data


async def test_what_a_target_said_is_not_told_to_a_token_that_was_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()

    async def refused(candidate: Candidate) -> SocketStream:
        held.begun.set()
        await held.go_on.wait()
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(dial_module, "_connect", refused)
    async with served(tokens=[token(), token("bob", BOB)]) as server:
        answer = await asked_across_a_reload(server, held, asking("127.0.0.1:22"), tokens=[token("bob", BOB)])
    assert answer.startswith(b"HTTP/1.1 401"), answer


# --- sessions of everybody -------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True], ids=["ends", "keep_sessions"])
async def test_sessions_without_a_token_end_when_tokens_are_introduced(
    keep: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(tokens=(), destination=parse_destination(where)) as server:
        stream, _ = await open_raw(server.address, asking(where, token=None))
        async with stream:
            await lives(stream)
            server.reload(tokens=[token("bob", BOB)], keep_sessions=keep)
            if keep:
                await lives(stream)
            else:
                await ended(stream)
    assert ("reason=revoked" in caplog.text) is not keep


# --- a wall clock that is put forward, or back -----------------------------------------------------


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch, patient_clock: trio.testing.MockClock) -> Callable[[float], None]:
    """The time of day goes with the test's clock, but for so many seconds that it is put forward."""
    began, off = time.time(), 0.0
    monkeypatch.setattr(time, "time", lambda: began + patient_clock.current_time() + off)

    def put(forward: float) -> None:
        nonlocal off
        off += forward

    return put


@pytest.mark.parametrize("keep", [False, True], ids=["ends", "keep_sessions"])
async def test_a_clock_that_is_put_forward_ends_sessions_of_expired_tokens_within_a_minute(
    keep: bool,
    wall_clock: Callable[[float], None],
    patient_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    tokens = [token(expires=time.time() + 1000), token("bob", BOB, expires=time.time() + 100_000)]
    async with target(echo) as where, served(tokens=tokens, keep_sessions=keep) as server:
        async with tunnel(server, where) as alices, tunnel(server, where, BOB) as bobs:
            wall_clock(2000)
            if keep:
                await trio.sleep(120)
                await lives(alices)
            else:
                with trio.fail_after(60):
                    await read_until_broken(alices)
            await lives(bobs)
    assert caplog.text.count("reason=expired") == (not keep)


async def test_a_clock_that_is_put_back_lengthens_no_session(
    wall_clock: Callable[[float], None],
    patient_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with target(echo) as where, served(tokens=[token(expires=time.time() + 300)]) as server:
        async with tunnel(server, where) as stream:
            wall_clock(-5000)
            with trio.fail_after(301):
                await read_until_broken(stream)
            assert trio.current_time() > 299
    assert "reason=expired" in caplog.text


async def test_a_clock_that_is_put_forward_counts_while_the_server_drains(
    wall_clock: Callable[[float], None],
    patient_clock: trio.testing.MockClock,
) -> None:
    tokens = [token(expires=time.time() + 1000)]
    async with target(echo) as where, served(tokens=tokens, grace=100_000) as server:
        async with tunnel(server, where) as stream:
            server.drain.set()
            await trio.sleep(1)
            wall_clock(2000)
            with trio.fail_after(60):
                await read_until_broken(stream)
