"""StdioStream on everything that can be stdin and stdout, by the kernel's readiness and by threads."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from http2tcp.client.proxy_command import run_stdio
from http2tcp.errors import InputSilent, TargetFailed, TunnelCut
from http2tcp.net.relay import End, Traffic, relay
from http2tcp.net.stdio import StdioStream
from http2tcp.protocol.transport import Transport
from tests.support.loopback import (
    client_settings,
    closed_port,
    echo,
    greet_and_close,
    read_all,
    reset,
    served,
    target,
)
from tests.support.memory_stream import memory_pair

MIB = 1024 * 1024


@pytest.fixture(params=[False, True], ids=["polled", "by threads"])
def portable(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


class Ends:
    """A pair of standard descriptors and what the application holds of them."""

    def __init__(self, stdin: int, stdout: int, writer: int, reader: int) -> None:
        self.stdin, self.stdout = stdin, stdout
        #: What the application writes to and reads from, until it closes them.
        self.writer, self.reader = writer, reader
        # The same open files, since the stream closes its own descriptors.
        self.shared = [os.dup(stdin), os.dup(stdout)]

    def stream(self, portable: bool) -> StdioStream:
        return StdioStream(self.stdin, self.stdout, portable=portable)

    def close_shared(self) -> None:
        """As where nobody else has the descriptors, so that closing them is seen."""
        while self.shared:
            os.close(self.shared.pop())

    def hang_up(self, *, reader: bool = True, writer: bool = True) -> None:
        """The application closes its ends."""
        if reader and self.reader >= 0:
            os.close(self.reader)
            if self.reader == self.writer:
                self.writer = -1
            self.reader = -1
        if writer and self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.hang_up()
        self.close_shared()
        for fd in {self.stdin, self.stdout}:
            os.close(fd)


def pipes() -> Ends:
    stdin, writer = os.pipe()
    reader, stdout = os.pipe()
    return Ends(stdin, stdout, writer, reader)


def socket_pairs() -> Ends:
    (stdin, writer), (stdout, reader) = socket.socketpair(), socket.socketpair()
    return Ends(*(sock.detach() for sock in (stdin, stdout, writer, reader)))


def one_socket() -> Ends:
    ours, theirs = socket.socketpair()
    fd = theirs.detach()
    return Ends(ours.fileno(), os.dup(ours.detach()), fd, fd)


def terminal() -> Ends:
    master, slave = os.openpty()
    tty.setraw(slave)
    return Ends(slave, os.dup(slave), master, master)


KINDS = [pipes, socket_pairs, one_socket, terminal]


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made: Ends = request.param()
    yield made
    made.close()


@pytest.fixture(params=[pipes, socket_pairs])
def one_way_ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made: Ends = request.param()
    yield made
    made.close()


async def read_some(fd: int, size: int) -> bytes:
    """Exactly so many bytes from the application's end."""
    data = b""
    while len(data) < size:
        part = await trio.to_thread.run_sync(os.read, fd, size - len(data), abandon_on_cancel=True)
        assert part, f"an EOF after {len(data)} bytes"
        data += part
    return data


async def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await trio.to_thread.run_sync(os.write, fd, view[:65536], abandon_on_cancel=True) :]


# --- the stream by itself ---------------------------------------------------------------------


async def test_data_passes_both_ways_and_no_descriptor_is_left_non_blocking(ends: Ends, portable: bool) -> None:
    stream = ends.stream(portable)
    up, down = os.urandom(300_000), os.urandom(300_000)
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_all, ends.writer, up)
        while len(received) < len(up):
            received += await stream.receive_some()
    assert received == up
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, down)
        assert await read_some(ends.reader, len(down)) == down
    assert [os.get_blocking(fd) for fd in ends.shared] == [True, True]
    await stream.aclose()
    assert [os.get_blocking(fd) for fd in ends.shared] == [True, True]
    assert os.get_blocking(ends.writer)


async def test_the_end_of_input_is_an_eof(one_way_ends: Ends, portable: bool) -> None:
    stream = one_way_ends.stream(portable)
    os.write(one_way_ends.writer, b"all")
    one_way_ends.hang_up(reader=False)
    assert await read_all(stream) == b"all"
    await stream.aclose()


async def test_an_input_that_ended_before_we_looked_still_gives_its_data(one_way_ends: Ends, portable: bool) -> None:
    os.write(one_way_ends.writer, b"early")
    one_way_ends.hang_up(reader=False)
    stream = one_way_ends.stream(portable)
    assert await read_all(stream) == b"early"
    await stream.aclose()


async def test_our_eof_is_seen_by_the_reader_and_the_input_goes_on(one_way_ends: Ends, portable: bool) -> None:
    stream = one_way_ends.stream(portable)
    one_way_ends.close_shared()
    await stream.send_all(b"last")
    await stream.send_eof()
    assert await read_some(one_way_ends.reader, 4) == b"last"
    assert await trio.to_thread.run_sync(os.read, one_way_ends.reader, 1) == b""
    os.write(one_way_ends.writer, b"still talking")
    assert await stream.receive_some() == b"still talking"
    await stream.aclose()


async def test_our_eof_is_seen_on_a_socket_that_is_stdin_too(portable: bool) -> None:
    ends = one_socket()
    stream = ends.stream(portable)
    await stream.send_eof()
    assert await trio.to_thread.run_sync(os.read, ends.reader, 1) == b""
    os.write(ends.writer, b"still talking")
    assert await stream.receive_some() == b"still talking"
    await stream.aclose()
    ends.close()


async def test_a_reader_that_is_gone_breaks_sending(one_way_ends: Ends, portable: bool) -> None:
    stream = one_way_ends.stream(portable)
    one_way_ends.hang_up(writer=False)
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    assert stream.fault == ""
    await stream.aclose()


async def test_a_reader_that_goes_while_we_wait_breaks_sending(one_way_ends: Ends, portable: bool) -> None:
    stream = one_way_ends.stream(portable)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x" * 10 * MIB)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        one_way_ends.hang_up(writer=False)
    await stream.aclose()


async def test_a_reader_that_goes_is_noticed_without_a_byte(ends: Ends, portable: bool) -> None:
    stream = ends.stream(portable)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.reader_gone)
        await trio.testing.wait_all_tasks_blocked(0.02)
        with trio.fail_after(2):
            ends.hang_up()
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked(0.005)
    await stream.aclose()


async def test_a_reader_that_was_gone_from_the_start_is_noticed(one_way_ends: Ends, portable: bool) -> None:
    one_way_ends.hang_up(writer=False)
    stream = one_way_ends.stream(portable)
    with trio.fail_after(2):
        await stream.reader_gone()
    await stream.aclose()


async def test_a_reader_that_stays_is_not_taken_for_gone(ends: Ends, portable: bool) -> None:
    stream = ends.stream(portable)
    await stream.send_all(b"unread")
    os.write(ends.writer, b"unread")
    with trio.move_on_after(0.2) as waited:
        await stream.reader_gone()
    assert waited.cancelled_caught
    await stream.aclose()


async def test_a_reader_that_goes_after_our_eof_is_no_news(one_way_ends: Ends, portable: bool) -> None:
    stream = one_way_ends.stream(portable)
    one_way_ends.close_shared()
    await stream.send_eof()
    one_way_ends.hang_up(writer=False)
    with trio.move_on_after(0.1) as waited:
        await stream.reader_gone()
    assert waited.cancelled_caught
    await stream.aclose()


async def test_where_the_kernel_cannot_wake_us_the_reader_is_looked_for(
    one_way_ends: Ends, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """As on systems without epoll."""
    stream = one_way_ends.stream(True)
    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(sys, "platform", "darwin")
            nursery.start_soon(stream.reader_gone)
            await trio.sleep(10)
            assert nursery.child_tasks
            one_way_ends.hang_up(writer=False)
            await trio.sleep(0.5)
            assert not nursery.child_tasks
    await stream.aclose()


async def test_files_work_as_stdin_and_stdout(portable: bool, tmp_path: Path) -> None:
    data = os.urandom(700_000)
    (tmp_path / "in").write_bytes(data)
    stdin = os.open(tmp_path / "in", os.O_RDONLY)
    stdout = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stream = StdioStream(stdin, stdout, portable=portable)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.reader_gone)
        while part := await stream.receive_some():
            await stream.send_all(part)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert nursery.child_tasks, "a file has no reader that could go"
        nursery.cancel_scope.cancel()
    await stream.aclose()
    os.close(stdin)
    os.close(stdout)
    assert (tmp_path / "out").read_bytes() == data


async def test_a_descriptor_that_somebody_else_made_non_blocking_works(one_way_ends: Ends, portable: bool) -> None:
    for fd in one_way_ends.shared:
        os.set_blocking(fd, False)
    stream = one_way_ends.stream(portable)
    data = os.urandom(500_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        assert await read_some(one_way_ends.reader, len(data)) == data
    async with trio.open_nursery() as nursery:

        async def write_later() -> None:
            await trio.testing.wait_all_tasks_blocked(0.02)
            os.write(one_way_ends.writer, b"late")

        nursery.start_soon(write_later)
        assert await stream.receive_some() == b"late"
    assert [os.get_blocking(fd) for fd in one_way_ends.shared] == [False, False]
    await stream.aclose()


async def test_a_hang_up_of_the_terminal_is_no_fault_of_ours(portable: bool) -> None:
    ends = terminal()
    stream = ends.stream(portable)
    ends.hang_up()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    assert stream.fault == ""
    await stream.aclose()
    ends.close()


async def test_a_cancelled_receive_returns_at_once(ends: Ends, portable: bool) -> None:
    stream = ends.stream(portable)
    with trio.fail_after(2), trio.move_on_after(0.02) as waited:
        await stream.receive_some()
    assert waited.cancelled_caught
    await stream.aclose()


async def test_the_number_of_stdout_stays_taken_after_its_end(ends: Ends, portable: bool) -> None:
    """A log file that is opened later must not become stdout."""
    stream = ends.stream(portable)
    await stream.send_eof()
    assert os.readlink(f"/proc/self/fd/{ends.stdout}") == os.devnull
    await stream.aclose()
    await stream.aclose()
    ends.hang_up()


async def test_the_settings_of_a_terminal_are_left_alone(portable: bool) -> None:
    ends = terminal()
    before = termios.tcgetattr(ends.shared[0]), fcntl.fcntl(ends.shared[0], fcntl.F_GETFL)
    stream = ends.stream(portable)
    await stream.send_all(b"x")
    os.write(ends.writer, b"y")
    await stream.receive_some()
    await stream.aclose()
    assert (termios.tcgetattr(ends.shared[0]), fcntl.fcntl(ends.shared[0], fcntl.F_GETFL)) == before
    ends.close()


# --- in a relay, with a clock that jumps ------------------------------------------------------


async def test_after_the_targets_end_a_silent_input_breaks_the_tunnel_after_three_seconds(
    portable: bool, patient_clock: trio.testing.MockClock
) -> None:
    ends = pipes()
    stream = ends.stream(portable)
    right, peer = memory_pair()
    await peer.send_all(b"bye")
    await peer.send_eof()
    with trio.fail_after(5):
        started = trio.current_time()
        outcome = await relay(stream, right, Traffic())
        assert trio.current_time() - started == pytest.approx(3, abs=0.2)
    assert outcome.end is End.CLIENT_SILENT
    assert os.read(ends.reader, 10) == b"bye"
    with pytest.raises(trio.BrokenResourceError):
        await peer.receive_some()
    ends.close()


async def test_after_the_targets_end_an_input_that_brings_data_is_sent_to_its_end(
    portable: bool, patient_clock: trio.testing.MockClock
) -> None:
    ends = pipes()
    stream = ends.stream(portable)
    right, peer = memory_pair()
    await peer.send_eof()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay, stream, right, Traffic())
        for number in range(4):
            await trio.sleep(0.3)
            os.write(ends.writer, b"%d" % number)
        ends.hang_up(reader=False)
        assert await read_all(peer) == b"0123"
    ends.close()


# --- the client's stdio mode in this process --------------------------------------------------


class Session:
    """`run_stdio` on pipes or the like."""

    def __init__(self, ends: Ends, url: str, where: str, portable: bool, transport: Transport) -> None:
        self.ends = ends
        ends.close_shared()
        self._stdio = ends.stream(portable)
        self._settings = client_settings(url, where, transport=transport)
        self.failure: Exception | None = None
        self.ended = trio.Event()

    async def run(self) -> None:
        try:
            await run_stdio(self._settings, self._stdio)
        except Exception as error:
            self.failure = error
        finally:
            self._stdio.abort()
            self.ended.set()


MakeEnds = Callable[[], Ends]


def every_way(*kinds: MakeEnds) -> pytest.MarkDecorator:
    """Each kind of descriptors both ways with raw bytes, and the other transports once each."""
    ways = [(make, portable, Transport.TCP) for make in kinds for portable in (False, True)]
    ways += [(kinds[0], False, transport) for transport in Transport if transport is not Transport.TCP]
    names = [
        f"{make.__name__}-{'by threads' if portable else 'polled'}-{transport.value}"
        for make, portable, transport in ways
    ]
    return pytest.mark.parametrize(("make", "portable", "transport"), ways, ids=names)


@every_way(pipes, socket_pairs)
async def test_the_whole_echo_arrives_after_stdin_has_ended(
    make: MakeEnds, portable: bool, transport: Transport
) -> None:
    ends, data = make(), os.urandom(MIB)
    async with target(echo) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)

        async def write() -> None:
            await write_all(ends.writer, data)
            ends.hang_up(reader=False)

        nursery.start_soon(write)
        assert await read_some(ends.reader, MIB) == data
        assert await trio.to_thread.run_sync(os.read, ends.reader, 1) == b""
        await session.ended.wait()
    assert session.failure is None
    ends.close()


@every_way(pipes, socket_pairs)
async def test_an_immediate_eof_on_stdin_still_gets_the_reply(
    make: MakeEnds, portable: bool, transport: Transport
) -> None:
    async def reply(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b""
        await stream.send_all(b"reply")
        await stream.aclose()

    ends = make()
    async with target(reply) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        ends.hang_up(reader=False)
        nursery.start_soon(session.run)
        assert await read_some(ends.reader, 5) == b"reply"
        await session.ended.wait()
    assert session.failure is None
    ends.close()


@every_way(pipes, socket_pairs, one_socket, terminal)
async def test_a_target_that_closes_first_ends_the_client_within_a_second_of_the_end_of_stdin(
    make: MakeEnds, portable: bool, transport: Transport
) -> None:
    ends = make()
    async with target(greet_and_close) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)
        assert await read_some(ends.reader, 6) == b"hello\n"
        if make is not terminal:
            # What ssh does. A terminal stays open, and ends the client all the same.
            ends.hang_up()
        with trio.fail_after(1):
            await session.ended.wait()
    assert session.failure is None
    ends.close()


@every_way(pipes, socket_pairs)
async def test_an_input_that_stays_open_after_the_targets_end_is_told_as_complete_to_nobody(
    make: MakeEnds, portable: bool, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("http2tcp.net.stdio.SILENCE", 0.3)
    heard: bytes | None = None
    done = trio.Event()

    async def say_and_listen(stream: trio.SocketStream) -> None:
        nonlocal heard
        await stream.send_all(b"hello\n")
        await stream.send_eof()
        try:
            heard = await read_all(stream)
        except trio.BrokenResourceError:
            pass
        done.set()

    ends = make()
    async with target(say_and_listen) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)
        assert await read_some(ends.reader, 6) == b"hello\n"
        os.write(ends.writer, b"half a sentence, and th")
        with trio.fail_after(3):
            await session.ended.wait()
            await done.wait()
    assert isinstance(session.failure, InputSilent)
    assert "silent for 0.3 s" in str(session.failure)
    assert heard is None
    ends.close()


@every_way(pipes)
async def test_a_targets_reset_is_a_failure_of_the_client(make: MakeEnds, portable: bool, transport: Transport) -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.send_all(b"half a li")
        await stream.receive_some(1)
        reset(stream)

    ends = make()
    async with target(break_off) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)
        assert await read_some(ends.reader, 9) == b"half a li"
        os.write(ends.writer, b"x")
        await session.ended.wait()
    assert isinstance(session.failure, TunnelCut)
    ends.close()


@every_way(pipes)
async def test_a_refused_target_is_a_failure_with_its_reason(
    make: MakeEnds, portable: bool, transport: Transport
) -> None:
    ends, where = make(), f"127.0.0.1:{closed_port()}"
    async with served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)
        await session.ended.wait()
    assert isinstance(session.failure, TargetFailed)
    assert f"cannot reach {where} from the server: connection refused" in str(session.failure)
    ends.close()


@pytest.mark.parametrize("said", [b"", b"x"])
async def test_the_originals_server_answers_before_it_dials_so_an_end_without_a_byte_is_a_failure(
    said: bytes,
) -> None:
    async def original(stream: trio.SocketStream) -> None:
        while b"\r\n\r\n" not in await stream.receive_some():
            pass
        head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: http2tcp/1.0\r\n\r\n"
        await stream.send_all(head + said)
        await stream.aclose()

    ends = pipes()
    ends.hang_up(reader=False)
    async with target(original) as server, trio.open_nursery() as nursery:
        session = Session(ends, f"http://{server}/", "localhost:1", False, Transport.HTTP2TCP)
        nursery.start_soon(session.run)
        await session.ended.wait()
    if said:
        assert session.failure is None
    else:
        assert isinstance(session.failure, TargetFailed)
        assert "probably refused" in str(session.failure)
    ends.close()


@every_way(pipes, socket_pairs, terminal)
async def test_the_client_ends_when_nobody_reads_its_output_any_more(
    make: MakeEnds, portable: bool, transport: Transport
) -> None:
    async def wait(stream: trio.SocketStream) -> None:
        await stream.send_all(b"ready")
        await read_all(stream)

    ends = make()
    async with target(wait) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)
        assert await read_some(ends.reader, 5) == b"ready"
        ends.hang_up(writer=make is terminal)
        with trio.fail_after(2):
            await session.ended.wait()
    assert session.failure is None
    ends.close()


@every_way(pipes)
async def test_what_ssh_says_last_reaches_the_target_although_ssh_has_left(
    make: MakeEnds, portable: bool, transport: Transport
) -> None:
    heard = b""
    done = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        nonlocal heard
        await stream.send_all(b"ready")
        heard = await read_all(stream)
        done.set()

    ends = make()
    async with target(listen) as where, served() as server, trio.open_nursery() as nursery:
        session = Session(ends, server.url, where, portable, transport)
        nursery.start_soon(session.run)
        assert await read_some(ends.reader, 5) == b"ready"
        os.write(ends.writer, b"disconnected by user")
        ends.hang_up()
        with trio.fail_after(3):
            await session.ended.wait()
            await done.wait()
    assert heard == b"disconnected by user"
    ends.close()
