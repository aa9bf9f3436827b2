"""A last answer arrives whole and is followed by EOF, and no peer can hold the connection open with what it sends."""

from __future__ import annotations

import trio
import trio.testing

from http2tcp.net.last_answer import send_last_answer
from tests.support.memory_stream import memory_pair


async def test_the_peer_gets_the_answer_and_eof_and_then_closes_first() -> None:
    ours, peer = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_last_answer, ours, b"no")
        assert await peer.read_all() == b"no"
        await peer.send_all(b"the rest of a large request")
        await trio.testing.wait_all_tasks_blocked()
        assert not ours.closed, "closed with the peer still sending, which resets"
        await peer.send_eof()
    assert ours.closed
    assert not ours.aborted


async def test_a_peer_that_does_not_stop_sending_is_not_listened_to_for_ever() -> None:
    ours, peer = memory_pair()
    piece = b"x" * 64 * 1024
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_last_answer, ours, b"no")
            try:
                for _ in range(100):
                    await peer.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
            except trio.BrokenResourceError:
                pass
    assert ours.closed
    assert ours.received <= 5 * len(piece)


async def test_a_peer_that_is_gone_is_no_error() -> None:
    ours, peer = memory_pair()
    peer.abort()
    await send_last_answer(ours, b"no")


async def test_a_stream_that_is_aborted_meanwhile_is_no_error() -> None:
    ours, _peer = memory_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_last_answer, ours, b"no")
        await trio.testing.wait_all_tasks_blocked()
        ours.abort()
    assert not ours.closed
