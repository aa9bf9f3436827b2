"""Every connection leaves one record of its end, on every path out; its id is in the answer and at the client."""

from __future__ import annotations

import logging
import socket

import pytest
import trio
import trio.testing

from http2tcp.client import connector as client
from http2tcp.errors import TargetFailed, TunnelCut
from http2tcp.net.relay import Traffic, relay
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.transport import Transport
from http2tcp.server import connection
from http2tcp.server.audit import Record
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from http2tcp.server.rules import parse_rule
from tests.support.loopback import (
    TOKEN,
    Served,
    asking,
    client_settings,
    closed_port,
    echo,
    exchange,
    open_raw,
    parse_answer,
    read_all,
    read_until_broken,
    reset,
    served,
    target,
    upgrade,
)

ALICE = Token("alice", digest(TOKEN))
EXPIRED = Token("bob", digest("bobs"), expires=1.0)


def connect(destination: str, token: str) -> bytes:
    """A head of CONNECT."""
    return f"CONNECT {destination} HTTP/1.1\r\nProxy-Authorization: Bearer {token}\r\n\r\n".encode()


def records(caplog: pytest.LogCaptureFixture, at_least: int = logging.DEBUG) -> list[Record]:
    """The records so far."""
    return [entry.msg for entry in caplog.records if isinstance(entry.msg, Record) and entry.levelno >= at_least]


def the_end(caplog: pytest.LogCaptureFixture) -> Record:
    """The one record of the one connection's end."""
    ends = [record for record in records(caplog) if record["event"] != "opened"]
    assert len(ends) == 1, ends
    return ends[0]


async def ended(server: Served) -> None:
    """Wait until it has no connection."""
    with trio.fail_after(10):
        while server.server.state.sessions or len(server.server.state.unauthenticated):
            await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked(0.01)


# --- paths out ------------------------------------------------------------------------------------


async def test_a_tunnel_is_two_records_with_the_name_of_its_token(caplog: pytest.LogCaptureFixture) -> None:
    async with target(echo) as where, served(tokens=[ALICE, EXPIRED]) as server:
        stream, _ = await open_raw(server.address, asking(where))
        port = stream.socket.getsockname()[1]
        async with stream:
            await stream.send_all(b"12345")
            await stream.send_eof()
            assert await read_all(stream) == b"12345"
        await ended(server)
    opened, end = records(caplog)
    assert [opened["event"], end["event"]] == ["opened", "ended"]
    assert opened["session"] == end["session"]
    for record in (opened, end):
        assert record["token"] == "alice"
        assert record["client"] == "127.0.0.1"
        assert record["port"] == port
        assert (record["target"], record["dialled"], record["transport"]) == (where, where, "tcp")
    assert (end["bytes_up"], end["bytes_down"], end["reason"]) == (5, 5, "closed")


@pytest.mark.parametrize(
    ("request_head", "event", "status"),
    [
        (b"\x16\x03\x01\r\n\r\n", "refused", 400),
        (upgrade("/elsewhere"), "refused", 404),
        (upgrade("/p?addr=db:1", token=None), "refused", 401),
        (upgrade("/p?addr=db:1", token="wrong"), "authentication_failed", 401),
        (upgrade("/p?addr=db:1", token="bobs"), "authentication_failed", 401),
        (connect("db:1", token="wrong"), "authentication_failed", 407),
        (upgrade("/p?addr=db:1", transport="h2c"), "refused", 426),
        (upgrade("/p?addr=169.254.169.254:80"), "refused", 403),
        (upgrade(f"/p?addr=127.0.0.1:{closed_port()}"), "refused", 502),
    ],
)
async def test_a_refusal_is_one_record_whose_id_is_in_the_answer(
    request_head: bytes, event: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tokens=[ALICE, EXPIRED], path="/p", connect=True) as server:
        answer = await exchange(server.address, request_head)
        await ended(server)
    end = the_end(caplog)
    assert answer.status == status
    assert (end["event"], end["status"], end["error"]) == (event, status, answer.error)
    assert answer.headers["http2tcp-session"] == end["session"]
    assert ("cause" in end) == (event == "authentication_failed")


async def test_a_token_that_has_expired_is_told_by_name_to_the_operator_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served(tokens=[ALICE, EXPIRED]) as server:
        answer = await exchange(server.address, upgrade(token="bobs"))
        stranger = await exchange(server.address, upgrade(token="wrong"))
        await ended(server)
    first, second = records(caplog)
    assert (first["token"], first["cause"]) == ("bob", "expired")
    assert (second.get("token"), second["cause"]) == (None, "unknown")
    assert answer.body == stranger.body


async def test_a_rule_that_refuses_is_told_to_the_operator_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with served(deny=[parse_rule("*.internal:*")]) as server:
        answer = await exchange(server.address, asking("db.internal:22"))
        await ended(server)
    assert the_end(caplog)["rule"] == "deny *.internal:*"
    assert b"internal" not in answer.body


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n"])
@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_who_leaves_before_it_has_asked_is_one_record_for_the_verbose(
    sent: bytes, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served() as server:
        stream = await trio.open_tcp_stream(server.address.host, server.address.port)
        if sent:
            await stream.send_all(sent)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if how == "closes":
            await stream.aclose()
        else:
            reset(stream)
        await ended(server)
    assert the_end(caplog)["event"] == "abandoned"
    assert the_end(caplog)["reason"] == "client_left"
    assert records(caplog, logging.INFO) == []


async def test_who_is_pushed_out_by_others_is_one_record_for_the_verbose(caplog: pytest.LogCaptureFixture) -> None:
    async with served(limits=Limits(max_unauthenticated=1)) as server:
        first = await trio.open_tcp_stream(server.address.host, server.address.port)
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with first, await trio.open_tcp_stream(server.address.host, server.address.port):
            with trio.fail_after(10):
                with pytest.raises(trio.BrokenResourceError):
                    await first.receive_some()
        await ended(server)
    assert sorted(str(record["reason"]) for record in records(caplog)) == ["client_left", "pushed_out"]
    assert records(caplog, logging.INFO) == []


async def test_who_is_silent_to_the_deadline_is_one_record_for_the_verbose(
    caplog: pytest.LogCaptureFixture, patient_clock: trio.testing.MockClock
) -> None:
    async with served() as server:
        answer = await exchange(server.address, b"GET / HTTP/1.1\r\n")
        await ended(server)
    assert answer.status == 408
    assert answer.headers["http2tcp-session"] == the_end(caplog)["session"]
    assert records(caplog, logging.INFO) == []


async def test_a_stop_before_a_session_has_opened_is_one_record(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialling = trio.Event()

    async def dial(*_: object) -> None:
        dialling.set()
        await trio.sleep_forever()

    monkeypatch.setattr(connection, "dial", dial)
    async with served() as running:
        async with await trio.open_tcp_stream(running.address.host, running.address.port) as stream:
            await stream.send_all(asking("db:5432"))
            await dialling.wait()
            running.scope.cancel()
    end = the_end(caplog)
    assert (end["event"], end["reason"], end["target"]) == ("abandoned", "stopped", "db:5432")
    assert records(caplog, logging.INFO) == [end]


@pytest.mark.parametrize("at", ["the dial", "the relay"])
async def test_a_bug_is_one_record_too(
    at: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(connection, "dial" if at == "the dial" else "relay", fail)
    async with target(echo) as where, served() as running:
        if at == "the dial":
            answer = await exchange(running.address, asking(where))
            assert answer.status == 500
        else:
            stream, rest = await open_raw(running.address, asking(where))
            async with stream:
                # What comes after a 101 is the target's, and no answer of ours.
                assert rest + await read_until_broken(stream) == b""
        await ended(running)
    end = the_end(caplog)
    if at == "the dial":
        assert (end["event"], end["status"]) == ("refused", 500)
    else:
        assert (end["event"], end["reason"]) == ("ended", "failed")
    # The traceback has been seen; the fixture that looks for others need not see it.
    tracebacks = [entry for entry in caplog.records if entry.exc_info]
    assert len(tracebacks) == 1
    assert str(end["session"]) in tracebacks[0].getMessage()
    tracebacks[0].exc_info = None


# --- the id at both ends --------------------------------------------------------------------------


async def test_the_id_is_in_every_tunnels_answer_and_with_verbose_at_the_client(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(echo) as where, served() as running:
        tunnel = await client.connect(client_settings(running.url, where, transport=transport))
        await tunnel.stream.aclose()
        await ended(running)
    (session,) = {record["session"] for record in records(caplog)}
    assert tunnel.session == session
    assert f"tunnel open, transport {transport.value}, session {session}" in caplog.messages


async def test_the_id_is_in_the_answer_to_connect(caplog: pytest.LogCaptureFixture) -> None:
    async with target(echo) as where, served(connect=True) as running:
        async with await trio.open_tcp_stream(running.address.host, running.address.port) as stream:
            await stream.send_all(connect(where, token=TOKEN))
            answer = parse_answer(await stream.receive_some())
        await ended(running)
    assert answer.status == 200
    assert answer.headers["http2tcp-session"] == records(caplog)[0]["session"]


async def test_a_refused_client_has_the_id_with_verbose(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as running:
        with pytest.raises(TargetFailed):
            await client.connect(client_settings(running.url, f"127.0.0.1:{closed_port()}"))
        await ended(running)
    assert f"refused with 502, session {the_end(caplog)['session']}" in caplog.messages


async def test_a_client_whose_tunnel_was_cut_says_which_record_of_the_server_tells_why(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async def habit(stream: trio.SocketStream) -> None:
        await stream.send_all(b"x")
        reset(stream)

    ours, theirs = socket.socketpair()
    async with target(habit) as where, served() as running:
        tunnel = await client.connect(client_settings(running.url, where, transport=transport))
        traffic = Traffic()
        with theirs:
            outcome = await relay(SocketStream(ours), tunnel.stream, traffic)
        failure = client.why_it_ended(tunnel, outcome, traffic)
        await ended(running)
    assert isinstance(failure, TunnelCut)
    assert str(failure).endswith(f"; the server's log has session {the_end(caplog)['session']}")
    if transport.raw:
        # Nothing can say why.
        assert str(failure).startswith("connection lost: the tunnel was cut (a restart, timeout or reset on the way); ")


async def test_a_loop_of_strangers_is_a_few_lines_a_minute_and_every_one_in_the_figures(
    caplog: pytest.LogCaptureFixture, patient_clock: trio.testing.MockClock
) -> None:
    caplog.set_level(logging.INFO)
    async with served(path="/here/") as server:
        for _ in range(30):
            assert (await exchange(server.address, upgrade("/elsewhere/"))).status == 404
        for _ in range(15):
            assert (await exchange(server.address, upgrade("/here/", token="wrong"))).status == 401
        lines = [entry.getMessage() for entry in caplog.records]
        assert sum(line.startswith("refused ") for line in lines) == 20
        assert sum(line.startswith("authentication failed ") for line in lines) == 10
        await trio.sleep(61)
        assert "15 more refused: not_found 10, authentication_failed 5" in caplog.text
        metrics = server.server.state.metrics
        assert metrics.refusals.of("404", "http_request_error") == 30
        assert metrics.authentication_failures.of() == 15
        assert (await exchange(server.address, upgrade("/here/", token="wrong"))).status == 401
        assert caplog.records[-1].getMessage().startswith("authentication failed ")
        for _ in range(21):
            await exchange(server.address, upgrade("/elsewhere/"))
    assert caplog.text.count("more refused") == 2, "what is left is told at the end"
