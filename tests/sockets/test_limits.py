"""The server's limits as clients meet them: silence gives way, and who has a good token gets in."""

from __future__ import annotations

import pytest
import trio

from http2tcp.address import TCPAddress
from http2tcp.limits import Limits
from http2tcp.policy import Token, digest
from tests.support.descriptors import open_descriptors
from tests.support.loopback import TOKEN, asking, echo, exchange, open_raw, read_all, served, target


async def connect(address: TCPAddress) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def test_silent_connections_give_way_to_a_login_however_many_they_are() -> None:
    async with target(echo) as where, served(limits=Limits(unauthenticated=10)) as server:
        silent = [await connect(server.address) for _ in range(40)]
        with trio.fail_after(5):
            stream, _ = await open_raw(server.address, asking(where))
            await stream.send_all(b"in")
            assert await stream.receive_some() == b"in"
        assert len(server.server.waiting) <= 10
        assert server.server.waiting.reached >= 30
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
    async with target(echo) as where, served(limits=Limits(unauthenticated=10)) as server:
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
    async with target(echo) as where, served(limits=Limits(tunnels=1)) as server:
        first, _ = await open_raw(server.address, asking(where))
        refused = await exchange(server.address, asking(where))
        assert (refused.status, refused.error) == (503, "connection_limit_reached")
        assert int(refused.headers["retry-after"]) > 0
        await first.send_eof()
        await read_all(first)
        await first.aclose()
        with trio.fail_after(5):
            while len(server.server.tunnels):
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
    async with served(limits=Limits(tunnels=2)) as server:
        for _ in range(5):
            assert (await exchange(server.address, asking("127.0.0.1:1"))).status == 502
        assert len(server.server.tunnels) == 0


async def test_wrong_tokens_from_loopback_where_everybody_is_are_never_told_to_wait() -> None:
    async with target(echo) as where, served(limits=Limits(failures_per_minute=1)) as server:
        for _ in range(5):
            assert (await exchange(server.address, asking(where, token="wrong"))).status == 401
