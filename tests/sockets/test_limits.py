"""The server's limits as clients meet them: silence gives way, and who has a good token gets in."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import trio

from http2tcp.address import TCPAddress
from http2tcp.server.limits import Limits
from http2tcp.server.policy import Token, digest
from tests.support.descriptors import open_descriptors
from tests.support.loopback import TOKEN, asking, echo, exchange, open_raw, read_all, served, target


async def connect(address: TCPAddress) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def test_silent_connections_give_way_to_a_login_however_many_they_are() -> None:
    async with target(echo) as where, served(limits=Limits(max_unauthenticated=10)) as server:
        silent = [await connect(server.address) for _ in range(40)]
        with trio.fail_after(5):
            stream, _ = await open_raw(server.address, asking(where))
            await stream.send_all(b"in")
            assert await stream.receive_some() == b"in"
        assert len(server.server.state.unauthenticated) <= 10
        assert server.server.state.unauthenticated.reached >= 30
        # The oldest were closed, the newest still wait.
        with trio.fail_after(5):
            with pytest.raises(trio.BrokenResourceError):
                await silent[0].receive_some()
        with trio.move_on_after(0.05) as waits:
            await silent[-1].receive_some()
        assert waits.cancelled_caught
        for each in (stream, *silent):
            await each.aclose()


@pytest.mark.parametrize(
    "request_head",
    [b"no http\r\n\r\n", asking("127.0.0.1:1", token="wrong"), asking("127.0.0.1:1")],
    ids=["no request", "wrong token", "no target"],
)
async def test_refused_clients_that_stay_hold_no_more_descriptors_than_the_limit_has(request_head: bytes) -> None:
    async with target(echo) as where, served(limits=Limits(max_unauthenticated=10)) as server:
        before = len(open_descriptors())
        staying = []
        for _ in range(40):
            staying.append(await connect(server.address))
            await staying[-1].send_all(request_head)
            assert (await staying[-1].receive_some()).startswith(b"HTTP/1.1 ")
        assert len(open_descriptors()) - before - len(staying) <= 10
        stream, _ = await open_raw(server.address, asking(where))
        for each in (stream, *staying):
            await each.aclose()


async def test_more_tunnels_than_the_limit_are_a_503_and_one_that_ends_makes_room() -> None:
    async with target(echo) as where, served(limits=Limits(max_tunnels=1)) as server:
        first, _ = await open_raw(server.address, asking(where))
        refused = await exchange(server.address, asking(where))
        assert (refused.status, refused.error) == (503, "connection_limit_reached")
        assert int(refused.headers["retry-after"]) > 0
        await first.send_eof()
        await read_all(first)
        await first.aclose()
        with trio.fail_after(5):
            while len(server.server.state.tunnels):
                await trio.sleep(0.01)
        second, _ = await open_raw(server.address, asking(where))
        await second.aclose()


async def test_a_token_with_all_its_tunnels_open_is_a_429_and_others_get_in() -> None:
    tokens = [Token("alice", digest(TOKEN), max_tunnels=1), Token("bob", digest("bobs"))]
    async with target(echo) as where, served(tokens=tokens) as server:
        first, _ = await open_raw(server.address, asking(where))
        refused = await exchange(server.address, asking(where))
        assert (refused.status, refused.error) == (429, "connection_limit_reached")
        assert refused.body == b"this token has its 1 tunnel open already\n"
        second, _ = await open_raw(server.address, asking(where, token="bobs"))
        for stream in (first, second):
            await stream.aclose()


async def test_tunnels_that_never_opened_are_not_counted_as_open() -> None:
    async with served(limits=Limits(max_tunnels=2)) as server:
        for _ in range(5):
            assert (await exchange(server.address, asking("127.0.0.1:1"))).status == 502
        assert len(server.server.state.tunnels) == 0


async def test_wrong_tokens_from_loopback_where_everybody_is_are_never_told_to_wait() -> None:
    async with target(echo) as where, served(limits=Limits(max_failures_per_minute=1)) as server:
        for _ in range(5):
            assert (await exchange(server.address, asking(where, token="wrong"))).status == 401


ALICE, BOB = Token("alice", digest(TOKEN)), Token("bob", digest("bobs"))


async def test_one_of_several_tokens_leaves_an_eighth_of_the_tunnels_to_others_also_after_a_reload() -> None:
    async with target(echo) as where, served(tokens=[ALICE], limits=Limits(max_tunnels=4)) as server:
        opened = [await open_raw(server.address, asking(where)) for _ in range(3)]
        server.reload(tokens=[ALICE, BOB])
        refused = await exchange(server.address, asking(where))
        assert (refused.status, refused.error) == (429, "connection_limit_reached")
        assert b"kept for other tokens" in refused.body
        opened.append(await open_raw(server.address, asking(where, token="bobs")))
        for stream, _ in opened:
            await stream.aclose()


@pytest.mark.parametrize("given_up", [False, True], ids=["waiting", "given up"])
async def test_names_for_which_no_name_server_answers_do_not_hold_up_another_token_s(
    given_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while they are waited for, nor when they have been given up: their threads go on."""
    answer, asked = threading.Event(), []
    known = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if more.get("flags") or not isinstance(host, bytes) or not host.endswith(b".example"):
            return known(host, port, *rest, **more)
        if host.startswith(b"slow"):
            asked.append(host)
            answer.wait(30)
        return known(b"127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    limiter = trio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 8
    try:
        async with target(echo) as where, trio.open_nursery() as nursery:
            port = where.rpartition(":")[2]
            async with served(tokens=[ALICE, BOB], connect_timeout=0.5 if given_up else 20) as server:
                for number in range(16):
                    nursery.start_soon(exchange, server.address, asking(f"slow{number}.example:{port}"))
                with trio.fail_after(10):
                    while len(asked) < 7:
                        await trio.sleep(0.01)
                if given_up:
                    await trio.sleep(1)
                with trio.fail_after(10):
                    stream, _ = await open_raw(server.address, asking(f"quick.example:{port}", token="bobs"))
                    await stream.aclose()
                assert len(asked) == 7
                answer.set()
                nursery.cancel_scope.cancel()
    finally:
        answer.set()
        limiter.total_tokens = before
        with trio.move_on_after(10, shield=True):
            while limiter.borrowed_tokens:
                await trio.sleep(0.01)
