"""A tunnel in capsules: half-close, truncation, keepalive."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.relay import End, Traffic, relay
from http2tcp.net.streams import CHUNK
from http2tcp.protocol.capsule import FINAL, KEEPALIVE, data_header
from tests.support.loopback import read_until_broken
from tests.support.memory_stream import MemoryStream, memory_pair


def framed(keepalive: float = 25.0, peer_keepalive: float | None = None) -> tuple[CapsuleStream, MemoryStream]:
    """A capsule stream, and the raw end of its peer."""
    ours, theirs = memory_pair()
    return CapsuleStream(ours, keepalive=keepalive, peer_keepalive=peer_keepalive), theirs


def both(keepalive: float = 25.0) -> tuple[CapsuleStream, CapsuleStream]:
    """Two connected capsule streams, each of which has announced its keepalive."""
    ours, theirs = memory_pair()
    return (
        CapsuleStream(ours, keepalive=keepalive, peer_keepalive=keepalive),
        CapsuleStream(theirs, keepalive=keepalive, peer_keepalive=keepalive),
    )


async def read_all(stream: CapsuleStream) -> bytes:
    parts = []
    while data := await stream.receive_some():
        parts.append(data)
    return b"".join(parts)


async def test_either_side_may_end_first_and_still_receive() -> None:
    left, right = both()
    await left.send_all(b"question")
    await left.send_eof()
    assert await read_all(right) == b"question"
    await right.send_all(b"answer")
    await right.send_eof()
    assert await read_all(left) == b"answer"
    assert await left.receive_some() == b""


async def test_more_than_a_chunk_arrives_whole() -> None:
    left, right = both()
    data = bytes(range(256)) * (3 * CHUNK // 256 + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, data)
        received = b""
        while len(received) < len(data):
            received += await right.receive_some(1000)
    assert received == data


@pytest.mark.parametrize("sent", [b"", data_header(9) + b"part", data_header(4) + b"part", KEEPALIVE[:3]])
async def test_a_stream_that_ends_without_final_data_was_cut(sent: bytes) -> None:
    stream, peer = framed()
    await peer.send_all(sent)
    await peer.send_eof()
    with pytest.raises(trio.BrokenResourceError, match="FINAL_DATA"):
        await read_all(stream)


async def test_nonsense_breaks_the_stream() -> None:
    stream, peer = framed()
    await peer.send_all(FINAL + FINAL)
    with pytest.raises(trio.BrokenResourceError, match="after FINAL_DATA"):
        await read_all(stream)


async def test_closing_says_that_nothing_more_comes(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = framed()
    await stream.aclose()
    assert await peer.read_all() == FINAL


async def test_closing_does_not_wait_for_ever_for_a_peer_that_goes_on(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = framed()
    await peer.send_all(FINAL + KEEPALIVE)
    assert await stream.receive_some() == b""
    started = trio.current_time()
    await stream.aclose()
    assert trio.current_time() - started == pytest.approx(1)


async def test_closing_a_stream_whose_peer_is_gone_is_no_error() -> None:
    stream, peer = framed()
    peer.abort()
    await stream.aclose()


async def test_aborting_never_says_that_it_was_all() -> None:
    stream, peer = framed()
    await stream.send_all(b"part")
    stream.abort()
    assert await read_until_broken(peer) == data_header(4) + b"part"


async def test_a_silent_tunnel_sends_something_before_a_front_end_gets_tired(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, peer = framed(keepalive=25)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.attend)
        started = trio.current_time()
        for beat in (1, 2, 3):
            assert await peer.receive_some() == KEEPALIVE
            assert trio.current_time() - started == pytest.approx(25 * beat)
        await trio.sleep(10)
        await stream.send_all(b"x")
        await peer.receive_some()
        # Every send counts: the next keepalive comes 25 s after this one.
        assert await peer.receive_some() == KEEPALIVE
        assert trio.current_time() - started == pytest.approx(75 + 10 + 25)
        nursery.cancel_scope.cancel()


async def test_no_keepalive_gets_between_the_bytes_of_a_capsule(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = framed(keepalive=1)
    peer.stall()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.attend)
        nursery.start_soon(stream.send_all, b"stalled")
        await trio.sleep(10)
        peer.resume()
        assert await peer.receive_some() == data_header(7) + b"stalled"
        nursery.cancel_scope.cancel()


async def test_a_keepalive_to_a_peer_that_is_gone_is_no_error(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = framed(keepalive=1)
    peer.abort()
    with trio.fail_after(5):
        await stream.attend()


async def test_a_peer_that_has_announced_its_keepalive_and_falls_silent_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    stream, _ = framed(peer_keepalive=10)
    started = trio.current_time()
    with pytest.raises(trio.BrokenResourceError, match="silent for 30 s"):
        await stream.receive_some()
    assert trio.current_time() - started == pytest.approx(30)


async def test_a_peer_that_has_announced_nothing_may_be_silent_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = framed()
    async with trio.open_nursery() as nursery:

        async def late() -> None:
            await trio.sleep(86_400)
            await peer.send_all(data_header(2) + b"hi")

        nursery.start_soon(late)
        assert await stream.receive_some() == b"hi"


async def test_keepalives_keep_both_ends_of_a_silent_tunnel(autojump_clock: trio.testing.MockClock) -> None:
    ours, client = memory_pair()
    left, right = both(keepalive=5)
    target, application = memory_pair()
    async with trio.open_nursery() as nursery:
        outcomes = []

        async def run(a: object, b: object) -> None:
            outcomes.append(await relay(a, b, Traffic()))  # type: ignore[arg-type]

        nursery.start_soon(run, ours, left)
        nursery.start_soon(run, right, target)
        await trio.sleep(3600)
        assert outcomes == []
        await client.send_all(b"still here")
        await client.send_eof()
        assert await application.read_all() == b"still here"
        await application.send_eof()
        assert await client.read_all() == b""
    assert [outcome.end for outcome in outcomes] == [End.CLOSED, End.CLOSED]


async def test_a_tunnel_that_was_cut_resets_the_other_side(autojump_clock: trio.testing.MockClock) -> None:
    stream, peer = framed()
    right, application = memory_pair()
    await peer.send_all(data_header(100) + b"part")
    await peer.send_eof()
    outcome = await relay(stream, right, Traffic())
    assert outcome.end is End.CLIENT_BROKE
    assert "FINAL_DATA" in outcome.words
    assert await application.receive_some() == b"part"
    with pytest.raises(trio.BrokenResourceError):
        await application.receive_some()


async def test_thousands_of_small_capsules_leave_the_other_tunnels_their_turn() -> None:
    stream, peer = framed()
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        # The smallest capsules there are, of a type without a meaning.
        nursery.start_soon(peer.send_all, b"\x29\x00" * (CHUNK // 4) + (data_header(1) + b"x") * 1000)
        nursery.start_soon(another)
        received = b""
        while len(received) < 1000:
            received += await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert received == b"x" * 1000
    assert turns > CHUNK // 4 // 1000
