"""A client whose connections are cut: what it does, in which order, and when it gives up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from http2tcp.client import connector, reconnect
from http2tcp.client.connector import open_tunnel
from http2tcp.net.streams import Stream
from http2tcp.protocol.transport import Transport
from http2tcp.server.policy import Token, digest
from tests.support.loopback import TOKEN, Served, client_settings, echo, forwarding, read_all, served, target
from tests.support.resuming import Wire, wire

BOTH = pytest.mark.parametrize("transport", [Transport.CONNECT_TCP, Transport.WEBSOCKET], ids=lambda each: each.value)


@pytest.fixture
async def way() -> AsyncIterator[tuple[Served, Wire, str]]:
    """A server, a wire to it, and an echo behind it."""
    async with target(echo) as where, served() as server, wire(server.address) as cut:
        yield server, cut, where


async def tunnel(cut: Wire, where: str, transport: Transport = Transport.CONNECT_TCP) -> Stream:
    """A program's tunnel, which comes back."""
    return await open_tunnel(cut.url, where, token=TOKEN, transport=transport, proxy=False, resume=True)


async def exactly(stream: Stream, expected: bytes) -> None:
    """The next bytes are these."""
    found = b""
    with trio.fail_after(10):
        while len(found) < len(expected):
            data = await stream.receive_some(len(expected) - len(found))
            assert data, f"it ended after {found!r}"
            found += data
    assert found == expected


@BOTH
async def test_a_program_s_tunnel_goes_on(way: tuple[Served, Wire, str], transport: Transport) -> None:
    server, cut, where = way
    stream = await tunnel(cut, where, transport)
    for number in range(3):
        word = b"word %d" % number
        await stream.send_all(word)
        await exactly(stream, word)
        cut.cut()
    await stream.send_all(b"last")
    await stream.send_eof()
    with trio.fail_after(10):
        assert await read_all(stream) == b"last"
    await stream.aclose()
    assert server.server.state.metrics.resumes.samples()
    assert cut.connections >= 4


async def test_a_program_that_only_sends_comes_back_too(way: tuple[Served, Wire, str]) -> None:
    _, cut, where = way
    stream = await tunnel(cut, where)
    await stream.send_all(b"one")
    await trio.sleep(0.1)
    cut.cut()
    with trio.fail_after(10):
        # The first may still find room in the kernel.
        for _ in range(3):
            await stream.send_all(b"two")
            await trio.sleep(0.05)
    await exactly(stream, b"onetwotwotwo")
    stream.abort()


async def test_it_comes_back_once_there_is_a_way_again(way: tuple[Served, Wire, str]) -> None:
    _, cut, where = way
    stream = await tunnel(cut, where)
    await stream.send_all(b"one")
    await exactly(stream, b"one")
    cut.up = False
    cut.cut()
    async with trio.open_nursery() as nursery:

        async def mend() -> None:
            await trio.sleep(1)
            cut.up = True

        nursery.start_soon(mend)
        await stream.send_all(b"two")
        await exactly(stream, b"two")
    stream.abort()


async def test_a_session_that_is_gone_is_given_up_at_once(
    way: tuple[Served, Wire, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, cut, where = way
    stream = await tunnel(cut, where)
    await stream.send_all(b"one")
    await exactly(stream, b"one")
    # As if it was restarted.
    monkeypatch.setattr(server.server.state.resumption, "find", lambda session, token: None)
    cut.cut()
    with trio.fail_after(5), pytest.raises(trio.BrokenResourceError, match="no longer knows the session"):
        await stream.receive_some()


async def test_a_token_is_read_anew_and_its_file_may_be_away_for_a_moment(
    way: tuple[Served, Wire, str], tmp_path: Path
) -> None:
    server, cut, where = way
    secret = "another-secret-0123"
    server.reload(tokens=[Token("alice", digest(TOKEN))])
    reads = 0

    def read() -> str:
        nonlocal reads
        reads += 1
        if reads == 1:
            from http2tcp.errors import SettingsError

            raise SettingsError("cannot read the token's file")
        return secret

    settings = client_settings(
        cut.url, where, transport=Transport.CONNECT_TCP, resume=60.0, read_token=read, keepalive=None
    )
    stream = (await connector.connect(settings)).stream
    await stream.send_all(b"one")
    await exactly(stream, b"one")
    # The token has another secret, and is still alice's.
    server.reload(tokens=[Token("alice", digest(secret))], keep_sessions=True)
    cut.cut()
    await stream.send_all(b"two")
    await exactly(stream, b"two")
    assert reads == 2
    stream.abort()


async def test_a_token_that_stays_refused_is_given_up(
    way: tuple[Served, Wire, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, cut, where = way
    monkeypatch.setattr(reconnect, "_TOKEN_PATIENCE", 0.1)
    stream = await tunnel(cut, where)
    await stream.send_all(b"one")
    await exactly(stream, b"one")
    server.reload(tokens=[Token("bob", digest("of-somebody-else"))], keep_sessions=True)
    cut.cut()
    with trio.fail_after(10), pytest.raises(trio.BrokenResourceError, match="token"):
        await stream.receive_some()


async def test_a_forwarded_connection_goes_on_and_ends_well(way: tuple[Served, Wire, str]) -> None:
    _, cut, where = way
    async with forwarding(cut.url, where, transport=Transport.CONNECT_TCP, resume=60.0) as listening:
        async with await trio.open_tcp_stream(listening.host, listening.port) as program:
            for number in range(3):
                word = b"word %d" % number
                await program.send_all(word)
                found = b""
                with trio.fail_after(10):
                    while len(found) < len(word):
                        found += bytes(await program.receive_some(100))
                assert found == word
                cut.cut()
            await program.send_all(b"last")
            await program.send_eof()
            with trio.fail_after(10):
                assert await read_all(program) == b"last"
