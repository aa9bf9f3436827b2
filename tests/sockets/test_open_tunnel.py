"""`open_tunnel`: what a program gets that has no relay of ours around its stream."""

from __future__ import annotations

import trio

from http2tcp import open_tunnel
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
