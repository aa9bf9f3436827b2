"""`open_tunnel`: what a program gets that has no relay of ours around its stream."""

from __future__ import annotations

import hashlib

import pytest
import trio

from http2tcp import (
    ClientSettings,
    DestinationForbidden,
    Limits,
    ServerSettings,
    SettingsError,
    Token,
    open_tunnel,
    parse_endpoint,
    parse_listen,
    parse_rule,
    serve,
)
from tests.support.loopback import TOKEN, target


async def test_a_program_may_be_silent_for_long_without_being_given_up() -> None:
    heads: list[bytes] = []

    async def accept(stream: trio.SocketStream) -> None:
        heads.append(await stream.receive_some(4096))
        fields = b"Connection: Upgrade\r\nUpgrade: connect-tcp\r\nProxy-Status: http2tcp\r\n\r\n"
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\n" + fields)
        await stream.receive_some()

    async with target(accept) as address:
        async with await open_tunnel(f"http://{address}/", "db:5432", token=TOKEN):
            (head,) = heads
    assert b"\r\nUpgrade: connect-tcp\r\n" in head
    # Nobody sends keepalives for the program. A server gives up who has announced some and is silent.
    assert b"keepalive" not in head.lower()


async def test_settings_say_all_that_a_url_and_options_say_and_the_deadlines_too() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    alice = Token(
        name="alice",
        digest=hashlib.sha256(TOKEN.encode()).digest(),
        allow=[parse_rule("127.0.0.0/30:*")],
        max_tunnels=1,
    )
    server = ServerSettings(
        listen=parse_listen("127.0.0.1:0"),
        tokens=[alice],
        deny=[parse_rule("127.0.0.2:*")],
        limits=Limits(max_rate=1e6),
    )
    async with target(echo) as where, trio.open_nursery() as nursery:
        (address,) = await nursery.start(serve, server)
        client = ClientSettings(endpoint=parse_endpoint(f"http://{address}/"), token=TOKEN, answer_timeout=5.0)
        async with await open_tunnel(client, where) as tunnel:
            await tunnel.send_all(b"hello")
            assert await tunnel.receive_some() == b"hello"
        for elsewhere in ("127.0.0.2:22", "127.0.0.9:22"):
            with pytest.raises(DestinationForbidden):
                await open_tunnel(client, elsewhere)
        nursery.cancel_scope.cancel()


async def test_an_option_beside_settings_is_a_mistake_that_is_named() -> None:
    client = ClientSettings(endpoint=parse_endpoint("http://127.0.0.1:1/"))
    with pytest.raises(SettingsError, match="ClientSettings"):
        await open_tunnel(client, token=TOKEN)  # type: ignore[call-overload]
