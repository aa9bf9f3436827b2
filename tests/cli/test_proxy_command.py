"""The client on stdin and stdout, as a process: what it carries, when it ends, and what it leaves behind."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import signal
import socket
import subprocess
import tty
from pathlib import Path

import pytest
import trio

from tests.support.client_process import client, close_stdin, ended, one_line
from tests.support.loopback import TOKEN, echo, greet_and_close, read_all, served, target
from tests.support.processes import environment, free_port, http2tcp, listens, running

VIA = pytest.mark.parametrize("transport", ["tcp", "connect-tcp"])
# What has to happen within a second may take a little more here, beside other work.
A_SECOND = 3.0
# A client that does not wait for a lost server.


async def hold(stream: trio.SocketStream) -> None:
    """Greet, then neither read nor write nor close."""
    await stream.send_all(b"hello\n")
    await trio.sleep_forever()


async def reply_at_eof(stream: trio.SocketStream) -> None:
    """Read until EOF and only then say something."""
    size = len(await read_all(stream))
    await stream.send_all(b"got %d bytes\n" % size)
    await stream.aclose()


async def read_line(stream: trio.abc.ReceiveStream | int) -> bytes:
    line = b""
    with trio.fail_after(20):
        while not line.endswith(b"\n"):
            if isinstance(stream, int):
                data = await trio.to_thread.run_sync(os.read, stream, 100, abandon_on_cancel=True)
            else:
                data = bytes(await stream.receive_some())
            assert data, f"ended after {line!r}"
            line += data
    return line


# --- carrying -----------------------------------------------------------------------------------


@VIA
async def test_a_megabyte_through_pipes_comes_back_whole(transport: str) -> None:
    data = random.Random(1).randbytes(1024 * 1024 + 1)
    async with target(echo) as where, served() as server:
        with trio.fail_after(30):
            done = await trio.run_process(
                http2tcp("-c", "-e", server.url, "-d", where, "--transport", transport),
                stdin=data,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(HTTP2TCP_TOKEN=TOKEN),
            )
    assert done.stderr == b""
    assert done.returncode == 0
    assert done.stdout == data


@VIA
async def test_an_immediate_end_of_input_still_gets_the_reply(transport: str) -> None:
    async with target(reply_at_eof) as where, served() as server:
        async with client("-e", server.url, "-d", where, "--transport", transport, stdin=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert await read_all(process.stdout) == b"got 0 bytes\n"
            assert await ended(process) == (0, "")


@VIA
async def test_a_target_that_says_nothing_and_closes_is_a_clean_end(transport: str) -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async with target(close) as where, served() as server:
        async with client("-e", server.url, "-d", where, "--transport", transport) as process:
            assert process.stdout is not None
            assert await read_all(process.stdout) == b""
            await close_stdin(process)
            assert await ended(process) == (0, "")


# --- what stdin and stdout are ------------------------------------------------------------------


class Ends:
    """The child's descriptor of some kind, and the test's end of it."""

    def __init__(self, kind: str, direction: str, directory: Path) -> None:
        self.kind = kind
        if kind == "pipe":
            reading, writing = os.pipe()
            self.child, self.ours = (reading, writing) if direction == "in" else (writing, reading)
        elif kind == "socket":
            ours, child = socket.socketpair()
            self.ours, self.child = ours.detach(), child.detach()
        elif kind == "terminal":
            self.ours, self.child = pty.openpty()
            tty.setraw(self.child)
        else:
            path = directory / f"file-{direction}"
            path.write_bytes(b"hello\n" if direction == "in" else b"")
            self.child = os.open(path, os.O_RDWR)
            self.ours = os.open(path, os.O_RDONLY)

    def nonblocking(self) -> bool:
        """Whether the open file that the child shares with us was made non-blocking."""
        return bool(fcntl.fcntl(self.child, fcntl.F_GETFL) & os.O_NONBLOCK)

    def close(self) -> None:
        for fd in (self.child, self.ours):
            try:
                os.close(fd)
            except OSError:
                pass


KINDS = ["pipe", "socket", "file", "terminal"]


@pytest.mark.parametrize("output", KINDS)
@pytest.mark.parametrize("source", KINDS)
async def test_every_kind_of_stdin_and_stdout_works_and_is_left_blocking(
    tmp_path: Path, source: str, output: str
) -> None:
    stdin, stdout = Ends(source, "in", tmp_path), Ends(output, "out", tmp_path)
    try:
        async with target(echo) as where, served() as server:
            async with client("-e", server.url, "-d", where, stdin=stdin.child, stdout=stdout.child) as process:
                if source != "file":
                    os.write(stdin.ours, b"hello\n")
                if output == "file":
                    with trio.fail_after(20):
                        while os.fstat(stdout.ours).st_size < 6:
                            await trio.sleep(0.01)
                assert await read_line(stdout.ours) == b"hello\n"
                # The test shares these open files with the child, as a shell does with ssh's.
                assert not stdin.nonblocking()
                assert not stdout.nonblocking()
                if source != "file":
                    process.kill()  # nothing can be put back at such an end
                status, said = await ended(process)
                assert said == ""
                assert status == (0 if source == "file" else -signal.SIGKILL)
            assert not stdin.nonblocking()
            assert not stdout.nonblocking()
    finally:
        stdin.close()
        stdout.close()


async def test_one_socket_as_stdin_and_stdout_carries_both_directions_and_both_ends() -> None:
    ours, child = socket.socketpair()
    async with target(reply_at_eof) as where, served() as server:
        async with client("-e", server.url, "-d", where, stdin=child, stdout=child) as process:
            child.close()
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            async with stream:
                await stream.send_all(b"12345")
                await stream.send_eof()
                with trio.fail_after(20):
                    assert await read_all(stream) == b"got 5 bytes\n"
            assert await ended(process) == (0, "")


async def test_control_d_at_a_terminal_is_the_end_of_input() -> None:
    ours, child = pty.openpty()
    async with target(reply_at_eof) as where, served() as server:
        async with client("-e", server.url, "-d", where, stdin=child) as process:
            os.close(child)
            os.write(ours, b"hi\n\x04")
            assert process.stdout is not None
            assert await read_line(process.stdout) == b"got 3 bytes\n"
            assert await ended(process) == (0, "")
    os.close(ours)


# --- ending -------------------------------------------------------------------------------------


@VIA
async def test_it_ends_within_a_second_when_the_target_and_then_stdin_ends(transport: str) -> None:
    async with target(greet_and_close) as where, served() as server:
        async with client("-e", server.url, "-d", where, "--transport", transport) as process:
            assert process.stdout is not None
            assert await read_line(process.stdout) == b"hello\n"
            with trio.fail_after(A_SECOND):
                assert await read_all(process.stdout) == b""
                await close_stdin(process)
                assert await ended(process) == (0, "")


@pytest.mark.parametrize("quiet", [False, True])
async def test_an_open_and_silent_input_after_the_targets_end_is_a_cut_and_not_an_end(quiet: bool) -> None:
    """Its sentence is no error's: all that the target sent has arrived."""
    async with target(greet_and_close) as where, served() as server:
        async with client("-e", server.url, "-d", where, *(["-q"] if quiet else [])) as process:
            assert process.stdout is not None
            assert await read_all(process.stdout) == b"hello\n"
            started = trio.current_time()
            status, said = await ended(process)
    assert 2 < trio.current_time() - started < 3 + A_SECOND
    assert status == 71
    if quiet:
        assert said == ""
    else:
        assert "stayed open and silent for 3 s" in one_line(said)


@pytest.mark.parametrize(
    ("transport", "whose"),
    [
        ("connect-tcp", "the target has ended, but"),
        ("websocket", "the target has ended, but"),
        ("tcp", "the target, or something on the way, has ended the tunnel, but"),
    ],
)
async def test_only_who_can_know_says_that_it_was_the_target_that_ended(transport: str, whose: str) -> None:
    """On raw bytes, a server that ends a tunnel behind nginx, and nginx itself, look as the target does."""
    async with target(greet_and_close) as where, served() as server:
        async with client("-e", server.url, "-d", where, "--transport", transport) as process:
            status, said = await ended(process)
    assert status == 71
    assert f"{whose} the input stayed open and silent for 3 s" in one_line(said)
    assert "the server's log has session " in said


@VIA
async def test_it_ends_within_a_second_when_a_terminal_stays_open(transport: str) -> None:
    ours, child = pty.openpty()
    async with target(greet_and_close) as where, served() as server:
        async with client("-e", server.url, "-d", where, "--transport", transport, stdin=child) as process:
            assert process.stdout is not None
            assert await read_line(process.stdout) == b"hello\n"
            assert await ended(process, A_SECOND) == (0, "")
    os.close(child)
    os.close(ours)


@VIA
@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
async def test_it_ends_when_the_reader_of_stdout_is_gone_although_no_byte_flows(
    kind: str, transport: str, tmp_path: Path
) -> None:
    stdout = Ends(kind, "out", tmp_path)
    async with target(hold) as where, served() as server:
        async with client(*("-e", server.url, "-d", where, "--transport", transport), stdout=stdout.child) as process:
            os.close(stdout.child)
            assert await read_line(stdout.ours) == b"hello\n"
            os.close(stdout.ours)
            assert await ended(process, A_SECOND) == (0, "")


async def test_it_ends_when_the_reader_of_stdout_is_gone_before_there_is_a_tunnel() -> None:
    async with target(hold) as silent:
        async with client("-e", f"http://{silent}/", "-d", "x:1") as process:
            assert process.stdout is not None
            await process.stdout.aclose()
            status, said = await ended(process)
            assert status == 0 or "HTTP" in said  # it may have read the greeting, which is no answer, first


async def test_a_reader_that_leaves_amid_a_flood_is_a_clean_end() -> None:
    async def flood(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(bytes(65536))

    async with target(flood) as where, served() as server:
        async with client("-e", server.url, "-d", where) as process:
            assert process.stdout is not None
            flowed = await process.stdout.receive_some()
            await process.stdout.aclose()
            assert await ended(process) == (0, "")
            assert flowed


async def test_a_full_disk_is_a_failure_since_bytes_were_lost() -> None:
    async with target(hold) as where, served() as server:
        with open("/dev/full", "wb") as full:
            async with client("-e", server.url, "-d", where, stdin=subprocess.DEVNULL, stdout=full) as process:
                status, said = await ended(process)
    assert status == 72
    assert "stdout" in one_line(said)
    assert "no space left" in said


async def test_a_stdout_that_cannot_be_written_is_a_failure() -> None:
    async with target(hold) as where, served() as server:
        with open("/dev/null", "rb") as read_only:
            async with client("-e", server.url, "-d", where, stdin=subprocess.DEVNULL, stdout=read_only) as process:
                status, said = await ended(process)
    assert status == 72
    assert "stdout" in one_line(said)


# --- closed descriptors -------------------------------------------------------------------------


def without(*descriptors: int) -> list[str]:
    """A command that closes these and becomes http2tcp, as `<&-` in a shell does."""
    closing = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in descriptors)
    return ["sh", "-c", f'exec "$@" {closing}', "sh", *http2tcp()]


async def test_a_closed_stdin_is_an_end_of_input() -> None:
    async with target(reply_at_eof) as where, served() as server:
        async with client("-e", server.url, "-d", where, command=without(0)) as process:
            assert process.stdout is not None
            assert await read_all(process.stdout) == b"got 0 bytes\n"
            assert await ended(process) == (0, "")


async def test_a_closed_stdout_loses_bytes_and_says_so() -> None:
    async with target(hold) as where, served() as server:
        async with client("-e", server.url, "-d", where, stdin=subprocess.DEVNULL, command=without(1)) as process:
            status, said = await ended(process)
    assert status == 72
    assert "stdout" in one_line(said)


async def test_a_closed_stderr_changes_nothing_and_no_word_reaches_stdout() -> None:
    async with target(echo) as where, served() as server:
        for token, answer, expected in ((TOKEN, b"hello\n", 0), ("wrong", b"", 68)):
            environ = environment(HTTP2TCP_TOKEN=token)
            async with client("-e", server.url, "-d", where, command=without(2), environ=environ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    await process.stdin.send_all(b"hello\n")
                except trio.BrokenResourceError:
                    assert expected != 0
                await process.stdin.aclose()
                assert await read_all(process.stdout) == answer
                assert (await ended(process))[0] == expected


async def test_nothing_at_all_open_is_no_crash() -> None:
    async with target(reply_at_eof) as where, served() as server:
        async with client("-e", server.url, "-d", where, command=without(0, 1, 2)) as process:
            assert await ended(process) == (72, "")


# --- failures amid the tunnel -------------------------------------------------------------------


async def swallow(stream: trio.SocketStream) -> None:
    await stream.send_all(b"hello\n")
    async for _ in stream:
        pass


# Raw bytes cannot tell an idle server's death from the target's end: both are a FIN.
@pytest.mark.parametrize(("transport", "busy"), [("tcp", True), ("connect-tcp", True), ("connect-tcp", False)])
async def test_a_server_that_is_killed_is_a_failure_in_one_line(transport: str, busy: bool, tmp_path: Path) -> None:
    port = free_port()
    serving = http2tcp("-s", "-l", f"127.0.0.1:{port}")
    environ = environment(HTTP2TCP_TOKEN=TOKEN)
    with running(serving, tmp_path / "log", lambda: listens(port), env=environ, stop=signal.SIGKILL) as server:
        arguments = ("-e", f"127.0.0.1:{port}", "--transport", transport, "--no-resume")
        async with target(swallow) as where, client(*arguments, "-d", where) as process:
            assert process.stdout is not None
            assert await read_line(process.stdout) == b"hello\n"

            async def pour() -> None:
                assert process.stdin is not None
                try:
                    while busy:
                        await process.stdin.send_all(bytes(65536))
                except trio.BrokenResourceError:
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour)
                server.kill()
                status, said = await ended(process)
                nursery.cancel_scope.cancel()
    assert status == 71
    assert one_line(said).startswith("http2tcp: tunnel: ")
