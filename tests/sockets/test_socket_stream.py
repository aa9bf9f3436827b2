"""`SocketStream` as trio's stream contract has it, and the two things that it adds: abort and flush."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from http2tcp.net.paced import PacedStream
from http2tcp.net.streams import SocketStream
from tests.support.loopback import read_all, read_until_broken

Pair = tuple[SocketStream, SocketStream]


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return SocketStream(one), SocketStream(other)


def unix_pair() -> Pair:
    one, other = socket.socketpair()
    return SocketStream(one), SocketStream(other)


@pytest.fixture(params=[tcp_pair, unix_pair])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = request.param()
    yield made
    for stream in made:
        stream.socket.close()


async def test_data_and_eof_arrive_in_order(pair: Pair) -> None:
    one, other = pair
    data = os.urandom(5_000_000)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await one.send_all(data)
            await one.send_eof()

        nursery.start_soon(send)
        assert await read_all(other) == data
    await other.send_all(b"back")
    await other.aclose()
    assert await read_all(one) == b"back"


async def test_closing_twice_is_no_error_and_a_closed_stream_says_so(pair: Pair) -> None:
    one, _ = pair
    await one.aclose()
    await one.aclose()
    one.abort()
    for operation in (one.receive_some(), one.send_all(b"x"), one.send_eof(), one.wait_send_all_might_not_block()):
        with pytest.raises(trio.ClosedResourceError):
            await operation
    await one.flush()


async def test_closing_wakes_who_waits_to_receive(pair: Pair) -> None:
    one, _ = pair
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await one.receive_some()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await one.aclose()


async def test_closing_wakes_who_waits_to_send(pair: Pair) -> None:
    one, _ = pair
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await one.send_all(b"x" * 50_000_000)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.05)
        one.abort()


async def test_a_cancelled_receive_loses_nothing(pair: Pair) -> None:
    one, other = pair
    received = b""
    for number in range(100):
        with trio.CancelScope() as scope:
            await one.send_all(bytes([number]))
            if number % 2:
                scope.cancel()
            received += await other.receive_some()
    while len(received) < 100:
        received += await other.receive_some()
    assert received == bytes(range(100))


async def test_what_was_given_back_comes_first_and_in_pieces(pair: Pair) -> None:
    one, other = pair
    await one.send_all(b"tail")
    other.unread(b"middle ")
    other.unread(b"head ")
    assert await other.receive_some(2) == b"he"
    assert await other.receive_some(3) == b"ad "
    assert await other.receive_some() == b"middle "
    assert await other.receive_some() == b"tail"


async def test_sending_nothing_sends_nothing(pair: Pair) -> None:
    one, other = pair
    await one.send_all(b"")
    await one.send_all(bytearray(b"a"))
    await one.send_all(memoryview(b"b"))
    await one.aclose()
    assert await read_all(other) == b"ab"


async def test_every_operation_gives_others_a_turn(pair: Pair) -> None:
    one, other = pair
    with trio.testing.assert_checkpoints():
        await one.send_all(b"x")
    with trio.testing.assert_checkpoints():
        await other.receive_some()
    other.unread(b"y")
    with trio.testing.assert_checkpoints():
        await other.receive_some()
    with trio.testing.assert_checkpoints():
        await one.send_eof()
    with trio.testing.assert_checkpoints():
        await other.receive_some()
    with trio.testing.assert_checkpoints():
        await one.aclose()
    with trio.testing.assert_checkpoints():
        await one.aclose()


async def test_an_abort_is_a_reset_for_a_tcp_peer() -> None:
    one, other = tcp_pair()
    one.abort()
    with pytest.raises(trio.BrokenResourceError, match="reset"):
        await other.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await other.send_all(b"x")
    await other.send_eof()
    await other.aclose()


async def test_flush_delivers_before_an_abort_takes_the_rest_back() -> None:
    one, other = tcp_pair()
    data = os.urandom(4_000_000)
    one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_000_000)
    received = b""
    async with trio.open_nursery() as nursery:

        async def receive() -> None:
            nonlocal received
            received = await read_until_broken(other)

        nursery.start_soon(receive)
        await one.send_all(data)
        await one.flush()
        one.abort()
    assert received == data
    await other.aclose()


async def test_flush_waits_for_as_long_as_the_peer_does_not_take_the_bytes() -> None:
    one, other = tcp_pair()
    with trio.move_on_after(0.1):
        await one.send_all(b"x" * 50_000_000)
    with trio.move_on_after(0.05) as waited:
        await one.flush()
    assert waited.cancelled_caught
    other.abort()
    await one.flush()
    one.abort()


async def test_an_eof_to_a_peer_that_is_gone_is_no_error() -> None:
    one, other = tcp_pair()
    other.abort()
    await one.send_eof()
    await one.aclose()


async def test_a_socket_that_is_reset_before_it_is_wrapped_is_told_by_reading() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = SocketStream(socket.create_connection(listener.getsockname()))
        client.abort()
        sock, _ = listener.accept()
    stream = SocketStream(sock)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    await stream.aclose()


async def test_a_child_process_does_not_inherit_the_sockets(pair: Pair) -> None:
    for stream in pair:
        code = f"import os\ntry: os.fstat({stream.socket.fileno()})\nexcept OSError: raise SystemExit(7)"
        done = await trio.run_process([sys.executable, "-c", code], check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 7


@pytest.mark.parametrize("rate", [100_000, 100_000_000])
async def test_a_rate_is_reached_although_no_clock_wakes_a_task_to_the_microsecond(
    rate: int, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def late(deadline: float) -> None:
        if deadline > trio.current_time():
            await sleep_until(deadline + 0.004)
        else:
            await trio.lowlevel.checkpoint()

    sleep_until = trio.sleep_until
    one, other = unix_pair()
    sender, receiver = PacedStream(one.socket, rate), PacedStream(other.socket, rate)
    monkeypatch.setattr(trio, "sleep_until", late)
    received = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send_all, bytes(2 * rate))
        while received < 2 * rate:
            received += len(await receiver.receive_some())
    assert trio.current_time() == pytest.approx(2, abs=0.2)
    # What nobody sent is not saved up.
    await sleep_until(trio.current_time() + 10)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.send_all, bytes(rate))
        while received < 3 * rate:
            received += len(await receiver.receive_some())
    assert trio.current_time() - began == pytest.approx(1, abs=0.2)
    for stream in (sender, receiver):
        await stream.aclose()
