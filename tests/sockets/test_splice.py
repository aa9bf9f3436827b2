"""The relay between real descriptors: one suite for the kernel's pump and for the portable one."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import socket
import sys

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from http2tcp.net import pipes
from http2tcp.net import splice_pump as splice
from http2tcp.net.capsules import CapsuleStream
from http2tcp.net.pump import Flow, SinkBroke, SourceBroke
from http2tcp.net.relay import End, Traffic, pump_for, relay
from http2tcp.net.stdio import StdioStream
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.capsule import FINAL, KEEPALIVE
from tests.support.descriptors import open_descriptors
from tests.support.loopback import read_all, read_until_broken, reset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="splice(2) is Linux's")

BULK = 8 * 1024 * 1024 + 12345


@pytest.fixture(params=["splice", "copy"])
def pump_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which pump moves the bytes."""
    monkeypatch.setattr(splice, "AVAILABLE", request.param == "splice")
    return str(request.param)


def tcp_pair() -> tuple[SocketStream, trio.SocketStream]:
    """A connection over loopback: the relay's end and the application's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return SocketStream(near), trio.SocketStream(trio.socket.from_stdlib_socket(far))


def unix_pair() -> tuple[SocketStream, trio.SocketStream]:
    near, far = socket.socketpair()
    return SocketStream(near), trio.SocketStream(trio.socket.from_stdlib_socket(far))


@pytest.fixture(params=["tcp", "unix"])
def right_pair(request: pytest.FixtureRequest) -> tuple[SocketStream, trio.SocketStream]:
    return tcp_pair() if request.param == "tcp" else unix_pair()


async def sent_whole(sender: trio.SocketStream, receiver: trio.SocketStream, data: bytes) -> bool:
    """Whether the receiver gets `data` and then an EOF."""
    received = b""

    async def receive() -> None:
        nonlocal received
        received = await read_all(receiver)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await sender.send_all(data)
        await sender.send_eof()
    return hashlib.sha256(received).digest() == hashlib.sha256(data).digest()


async def test_bulk_arrives_whole_both_ways(pump_kind: str, right_pair: tuple[SocketStream, trio.SocketStream]) -> None:
    left, client = tcp_pair()
    right, target = right_pair
    traffic = Traffic()
    data = random.randbytes(BULK)
    whole = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, traffic)

        async def one_way(sender: trio.SocketStream, receiver: trio.SocketStream) -> None:
            whole.append(await sent_whole(sender, receiver, data))

        nursery.start_soon(one_way, client, target)
        nursery.start_soon(one_way, target, client)
    assert whole == [True, True]
    assert (traffic.bytes_up, traffic.bytes_down) == (BULK, BULK)
    await client.aclose()
    await target.aclose()


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 300_000), st.integers(0, 3)), min_size=1, max_size=12), st.booleans())
def test_the_bytes_do_not_depend_on_how_they_come(pieces: list[tuple[int, int]], portable: bool) -> None:
    """Random sizes with pauses between them, to a reader that takes odd amounts."""

    async def main() -> None:
        left, client = tcp_pair()
        right, target = tcp_pair()
        data = random.randbytes(sum(size for size, _ in pieces))
        received = b""

        async def receive() -> None:
            nonlocal received
            while part := await target.receive_some(70_001):
                received += part
                await trio.lowlevel.checkpoint()
            await target.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, left, right, Traffic())
            nursery.start_soon(receive)
            position = 0
            for size, pauses in pieces:
                await client.send_all(data[position : position + size])
                position += size
                for _ in range(pauses):
                    await trio.testing.wait_all_tasks_blocked()
            await client.send_eof()
        assert received == data
        await client.aclose()
        await target.aclose()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splice, "AVAILABLE", not portable)
        trio.run(main)


async def test_a_reset_in_the_middle_of_bulk_is_a_reset_on_the_other_side(pump_kind: str) -> None:
    left, client = tcp_pair()
    right, target = tcp_pair()
    outcome = []

    async def run() -> None:
        outcome.append(await relay(left, right, Traffic()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await target.send_all(random.randbytes(1_000_000))
        while len(await client.receive_some(100_000)) == 0:
            raise AssertionError("an EOF")
        reset(target)
        await read_until_broken(client)
    assert outcome[0].end is End.TARGET_BROKE
    await client.aclose()


async def test_a_stalled_reader_holds_up_its_sender_and_takes_no_memory(pump_kind: str) -> None:
    left, client = tcp_pair()
    right, target = tcp_pair()
    traffic = Traffic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, traffic)
        pushed = 0
        chunk = bytes(256 * 1024)
        # The kernels' buffers take some megabytes, and then nothing more.
        with trio.move_on_after(0.5) as stalled:
            while pushed < 1 << 30:
                await client.send_all(chunk)
                pushed += len(chunk)
        assert stalled.cancelled_caught
        # The relay itself holds one pipe and one chunk at most.
        received = 0
        resumed = trio.current_time()
        while received < pushed:
            received += len(await target.receive_some(1 << 20))
        assert trio.current_time() - resumed < 30
        assert traffic.bytes_up <= received + len(chunk)
        nursery.cancel_scope.cancel()
    await client.aclose()
    await target.aclose()


async def test_an_idle_tunnel_holds_no_pipe() -> None:
    left, client = tcp_pair()
    right, target = tcp_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, Traffic())
        before = set(open_descriptors())
        async with trio.open_nursery() as both:
            both.start_soon(client.send_all, bytes(BULK))
            received = 0
            while received < BULK:
                received += len(await target.receive_some(1 << 20))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert set(open_descriptors()) == before
        nursery.cancel_scope.cancel()
    await client.aclose()
    await target.aclose()


@pytest.mark.parametrize("how", ["no pipes", "no descriptors", "small pipes", "not supported"])
async def test_bytes_are_copied_where_there_are_no_pipes(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pipes.PipePool()
    monkeypatch.setattr(splice, "pipes", pool)

    def fail(*_: object, **__: object) -> int:
        raise OSError(24 if how == "no descriptors" else 22, "refused")

    if how == "no pipes":
        monkeypatch.setattr(pipes, "_MAX_PIPES", 0)
    elif how == "no descriptors":
        monkeypatch.setattr(os, "pipe2", fail)
    elif how == "small pipes":
        monkeypatch.setattr(pipes, "_PIPE_USEFUL", 1 << 30)
    else:
        monkeypatch.setattr(os, "splice", fail)
    left, client = tcp_pair()
    right, target = tcp_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, right, Traffic())
        assert await sent_whole(client, target, random.randbytes(BULK))
        await target.send_eof()
        assert await read_all(client) == b""
    for pipe in pool._spare:
        pipe.close()
    await client.aclose()
    await target.aclose()


def test_pipes_leave_descriptors_to_those_who_need_them() -> None:
    """Pipes take at most one in eight descriptors: server/limits.py counts on it."""
    pool = pipes.PipePool()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (320, hard))
    taken = []
    try:
        while (pipe := pool.take()) is not None:
            taken.append(pipe)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for pipe in taken:
            pipe.close()
    assert len(taken) == 20


async def test_a_pipe_with_bytes_of_a_flow_that_broke_is_not_used_again() -> None:
    pool = pipes.PipePool()
    pipe = pool.take()
    assert pipe is not None
    pipe.held = 1
    pool.give_back(pipe)
    for fd in (pipe.entry, pipe.exit):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


@pytest.mark.parametrize("size", [10, 100_000, BULK])
async def test_stdin_and_stdout_that_are_pipes_carry_everything(pump_kind: str, size: int) -> None:
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    stdio = StdioStream(stdin_read, stdout_write)
    right, target = tcp_pair()
    data = random.randbytes(size)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, stdio, right, Traffic())

        async def echo() -> None:
            async for part in target:
                await target.send_all(part)
            await target.send_eof()

        nursery.start_soon(echo)
        nursery.start_soon(trio.to_thread.run_sync, feed, stdin_write, data)
        received = await trio.to_thread.run_sync(drain, stdout_read)
    assert received == data
    await target.aclose()
    os.close(stdin_read)
    os.close(stdout_write)


def feed(fd: int, data: bytes) -> None:
    with open(fd, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def drain(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


# --- capsules ---------------------------------------------------------------------------------


async def test_bulk_in_capsules_arrives_whole_both_ways(pump_kind: str) -> None:
    """A client's program, a relay, capsules over TCP, a relay, a target: as between our client and our server."""
    left, client = tcp_pair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near_framed = CapsuleStream(SocketStream(near), keepalive=0.001, peer_keepalive=25)
    far_framed = CapsuleStream(SocketStream(far), keepalive=0.001, peer_keepalive=25)
    right, target = tcp_pair()
    data = random.randbytes(BULK)
    whole = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, left, near_framed, Traffic())
        nursery.start_soon(relay, far_framed, right, Traffic())

        async def one_way(sender: trio.SocketStream, receiver: trio.SocketStream) -> None:
            whole.append(await sent_whole(sender, receiver, data))

        nursery.start_soon(one_way, client, target)
        nursery.start_soon(one_way, target, client)
    assert whole == [True, True]
    await client.aclose()
    await target.aclose()


async def test_a_capsule_that_breaks_off_is_a_broken_source(pump_kind: str) -> None:
    carrier, peer = tcp_pair()
    framed = CapsuleStream(carrier, keepalive=25, peer_keepalive=None)
    sink, application = tcp_pair()
    async with trio.open_nursery() as nursery:

        async def break_off() -> None:
            # The header announces 1 MiB, and less is sent.
            await peer.send_all(bytes.fromhex("a028d7f2 80100000") + bytes(300_000))
            await peer.aclose()

        nursery.start_soon(break_off)
        nursery.start_soon(read_all, application)
        flow = Flow()
        pump = pump_for(framed, sink)
        with pytest.raises(SourceBroke, match="FINAL_DATA"):
            await pump(framed, sink, flow)
        assert flow.bytes == 300_000
        await sink.aclose()
    carrier.abort()
    await application.aclose()


async def test_a_sink_that_is_gone_is_a_broken_sink(pump_kind: str) -> None:
    source, sender = tcp_pair()
    carrier, peer = tcp_pair()
    framed = CapsuleStream(carrier, keepalive=25, peer_keepalive=None)
    reset(peer)
    async with trio.open_nursery() as nursery:

        async def push() -> None:
            try:
                while True:
                    await sender.send_all(bytes(200_000))
            except trio.BrokenResourceError:
                return

        nursery.start_soon(push)
        pump = pump_for(source, framed)
        with pytest.raises(SinkBroke):
            await pump(source, framed, Flow())
        source.abort()
    carrier.abort()
    await sender.aclose()


async def test_the_last_bytes_survive_keepalives_that_nobody_has_read() -> None:
    """A client that has sent its EOF still sends keepalives; closing must not reset what it has not received yet."""
    ours, peer = tcp_pair()
    framed = CapsuleStream(ours, keepalive=25, peer_keepalive=25)
    await peer.send_all(FINAL)
    assert await framed.receive_some() == b""
    data = bytes(3_000_000)
    received = b""

    async def slow_peer() -> None:
        nonlocal received
        await peer.send_all(KEEPALIVE)
        while part := await peer.receive_some(10_000):
            received += part
            await trio.lowlevel.checkpoint()
        await peer.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_peer)
        await framed.send_all(data)
        await framed.send_eof()
        await framed.aclose()
    assert received.endswith(FINAL)
    assert len(received) > len(data)
