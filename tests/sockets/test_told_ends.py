"""A server that ends a tunnel says why, and its client's user reads it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.client import connector as client
from http2tcp.errors import TunnelCut
from http2tcp.net.relay import Traffic, relay
from http2tcp.net.streams import SocketStream, Stream
from http2tcp.protocol.capsule import ResetCode
from http2tcp.protocol.capsule import reset as reset_capsule
from http2tcp.protocol.transport import Transport
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from tests.support.loopback import TOKEN, Handler, Served, client_settings, echo, read_all, reset, served, target

CAPSULES = [Transport.CONNECT_TCP, Transport.WEBSOCKET]


async def say_and_reset(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    reset(stream)


def revoke(server: Served) -> None:
    server.reload(tokens=[Token("other", digest("0ther-5ecret"))])


def stop(server: Served) -> None:
    server.drain.set()


def wait(_: Served) -> None:
    """Until a limit ends it."""


ENDS: dict[str, tuple[Handler, dict[str, Any], Callable[[Served], None], str]] = {
    "target_broke": (say_and_reset, {}, wait, "the target broke the connection"),
    "revoked": (echo, {}, revoke, "the server ended the tunnel: the token was taken away"),
    "expired": (echo, {}, wait, "the server ended the tunnel: the token has expired"),
    "idle": (echo, {"limits": Limits(idle_timeout=0.3)}, wait, "the server ended the tunnel: no byte went either way"),
    "max_session": (echo, {"limits": Limits(max_session=0.3)}, wait, "the server ended the tunnel: a session lasts"),
    "stopped": (echo, {"grace": 0.2}, stop, "the server ended the tunnel: the server was stopped"),
}


@pytest.mark.parametrize("transport", CAPSULES, ids=[transport.value for transport in CAPSULES])
@pytest.mark.parametrize("reason", ENDS)
@pytest.mark.parametrize("user", ["relay", "program"])
async def test_whoever_uses_a_tunnel_that_the_server_ends_is_told_why(
    user: str, reason: str, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    habit, settings, act, sentence = ENDS[reason]
    if reason == "expired":
        # Good for a moment, in which the tunnel opens.
        settings = {"tokens": [Token("alice", digest(TOKEN), expires=time.time() + 1.0)]}
    async with target(habit) as where, served(**settings) as server:
        tunnel = await client.connect(client_settings(server.url, where, transport=transport))
        act(server)
        with trio.fail_after(20):
            said = await (by_relay if user == "relay" else by_program)(tunnel)
            while server.server.state.sessions:
                await trio.sleep(0.01)
    assert said.startswith(sentence), said
    if user == "relay":
        assert said.endswith(f"; the server's log has session {tunnel.session}")
    assert re.search(f"ended session={tunnel.session} .*reason={reason}", caplog.text)


async def by_relay(tunnel: client.Tunnel) -> str:
    ours, theirs = socket.socketpair()
    traffic = Traffic()
    with theirs:
        theirs.send(b"x")
        outcome = await relay(SocketStream(ours), tunnel.stream, traffic)
    failure = client.why_it_ended(tunnel, outcome, traffic)
    assert isinstance(failure, TunnelCut)
    assert failure.exit_code == 71
    return str(failure)


async def by_program(tunnel: client.Tunnel) -> str:
    stream: Stream = tunnel.stream
    try:
        await stream.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError) as broke:
            await read_all(stream)
    finally:
        stream.abort()
    return str(broke.value)


@pytest.mark.parametrize("transport", CAPSULES, ids=[transport.value for transport in CAPSULES])
async def test_a_client_that_resets_is_a_client_that_broke(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    async with target(echo) as where, served() as server:
        tunnel = await client.connect(client_settings(server.url, where, transport=transport))
        await tunnel.stream.send_all(b"x")
        assert await tunnel.stream.receive_some() == b"x"
        send_whole = tunnel.stream.send_whole  # type: ignore[attr-defined]
        await send_whole(reset_capsule(ResetCode.STOPPED, "forged"))
        with pytest.raises(trio.BrokenResourceError):
            await tunnel.stream.receive_some()
        tunnel.stream.abort()
        while server.server.state.sessions:
            await trio.sleep(0.01)
    assert "reason=client_broke" in caplog.text
    assert "forged" not in caplog.text
