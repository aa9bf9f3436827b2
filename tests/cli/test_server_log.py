"""Where a server's log goes, as an operator sets it up: forms, files that are rotated, and no secret in any."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from http2tcp.address import TCPAddress
from tests.support.loopback import TOKEN, asking, closed_port, echo, exchange, open_raw, read_all, target, upgrade
from tests.support.processes import environment, free_port, http2tcp, listens, running, wait_until

SECRET = "s3cret-of-a-client"


@contextmanager
def logging_server(directory: Path, *arguments: str) -> Iterator[tuple[TCPAddress, subprocess.Popen[bytes], Path]]:
    """A server with TOKEN: its address, its process, and what it says on stderr."""
    port, stderr = free_port(), directory / "stderr"
    command = http2tcp("-s", "-l", f"127.0.0.1:{port}", *arguments)
    with running(command, stderr, lambda: listens(port), env=environment(HTTP2TCP_TOKEN=TOKEN)) as process:
        yield TCPAddress("127.0.0.1", port), process, stderr


async def use(address: TCPAddress) -> None:
    """A tunnel, and requests that are refused, all with something secret in them."""
    async with target(echo) as where:
        stream, _ = await open_raw(address, asking(where, f"Cookie: {SECRET}"))
        async with stream:
            await stream.send_all(SECRET.encode())
            await stream.send_eof()
            await read_all(stream)
    for request in (
        asking("localhost:22", token=SECRET),
        asking("localhost:22", f"Origin: https://{SECRET}.example"),
        asking(f"127.0.0.1:{closed_port()}", f"User-Agent: {SECRET}"),
        upgrade(f"/{SECRET}?addr=%0d%0aended%20session=0"),
        f"GET /?addr={SECRET} HTTP/1.1\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode(),
        f"{SECRET}\r\n\r\n".encode(),
    ):
        assert (await exchange(address, request)).status >= 400
    async with await trio.open_tcp_stream(address.host, address.port) as early:
        await early.send_all(f"GET /{SECRET}".encode())


def events(lines: Sequence[str]) -> list[str]:
    """Of JSON."""
    return [json.loads(line)["event"] for line in lines]


@pytest.mark.parametrize("to", ["stderr", "a file"])
@pytest.mark.parametrize("form", ["text", "json"])
async def test_no_secret_is_in_any_line_of_any_form(form: str, to: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    options = ("--log-file", str(path)) if to == "a file" else ()
    with logging_server(tmp_path, "-v", "--log-format", form, *options) as (address, process, stderr):
        await use(address)
        process.terminate()
        assert process.wait(20) == 0
    text = (path if to == "a file" else stderr).read_text()
    if to == "a file":
        assert stderr.read_text() == ""
    for secret in (TOKEN, SECRET, "Bearer", "Cookie"):
        assert secret not in text
    lines = text.splitlines()
    if form == "json":
        assert all(list(json.loads(line))[:3] == ["time", "level", "event"] for line in lines)
        found = set(events(lines))
        assert found == {"log", "opened", "ended", "refused", "authentication_failed", "abandoned"}
        (end,) = [parsed for line in lines if (parsed := json.loads(line))["event"] == "ended"]
        assert end["bytes_up"] == end["bytes_down"] == len(SECRET)
    else:
        for words in ("listening on", "opened session=", "ended session=", "refused session=", "abandoned session="):
            assert any(words in line for line in lines), words
        assert all(line.startswith("20") for line in lines)


async def test_what_a_server_warns_of_before_it_begins_is_json_too(tmp_path: Path) -> None:
    token_file, path = tmp_path / "token", tmp_path / "log"
    token_file.write_text(TOKEN)
    token_file.chmod(0o644)
    port = free_port()
    command = http2tcp("-s", "-l", f"127.0.0.1:{port}", "--token-file", str(token_file), "--log-format", "json")
    with running(command, path, lambda: listens(port)):
        pass
    first, second, *_ = map(json.loads, path.read_text().splitlines())
    assert (first["level"], first["event"]) == ("warning", "log")
    assert "can be read by everybody" in first["message"]
    assert "listening" in second["message"]


@pytest.mark.parametrize("form", ["text", "json"])
async def test_a_file_that_is_renamed_under_load_loses_no_session(form: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logging_server(tmp_path, "--log-format", form, "--log-file", str(path)) as (address, process, stderr):
        async with target(echo) as where:
            for number in range(30):
                async with (await open_raw(address, asking(where)))[0] as stream:
                    await stream.send_eof()
                    await read_all(stream)
                if number == 10:
                    path.rename(tmp_path / "log.1")
                if number == 20:
                    path.rename(tmp_path / "log.2")
                    # As logrotate's `create` does, should it be first.
                    path.touch(0o600)
        process.terminate()
        assert process.wait(20) == 0
    files = [tmp_path / "log.1", tmp_path / "log.2", path]
    lines = "".join(file.read_text() for file in files).splitlines()
    word = '"event":"ended"' if form == "json" else " ended session="
    assert sum(word in line for line in lines) == 30
    assert all(word in file.read_text() for file in files)
    assert stderr.read_text() == ""


async def test_a_file_that_is_truncated_in_place_has_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logging_server(tmp_path, "--log-file", str(path)) as (address, _process, _):
        await exchange(address, asking("localhost:22", token="wrong"))
        wait_until(lambda: b"authentication failed" in path.read_bytes(), "the line is there")
        os.truncate(path, 0)
        await exchange(address, asking("localhost:22", token="wrong"))
        wait_until(lambda: path.read_bytes().count(b"\n") == 1, "the next line is there")
        assert path.read_bytes().startswith(b"20")


async def test_a_directory_that_vanishes_stops_no_tunnel_and_is_told_once(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "log"
    with logging_server(tmp_path, "--log-file", str(path)) as (address, _, stderr):
        gone = directory.rename(tmp_path / "gone")
        for _number in range(3):
            assert (await exchange(address, asking("localhost:22", token="wrong"))).status == 401
        wait_until(stderr.read_text, "it is said")
        gone.rename(directory)
        assert (await exchange(address, asking("localhost:22", token="wrong"))).status == 401

        def accounted() -> int:
            # The log is written by a thread: one of the three may have found the directory back.
            text = path.read_text()
            told = re.findall(r"lines of this log that were lost: (\d+); ", text)
            return sum(map(int, told)) + text.count("authentication failed")

        wait_until(lambda: accounted() == 4, "the log goes on, and tells of what it lost")
        assert "lines of this log that were lost: " in path.read_text()
    (line,) = stderr.read_text().splitlines()
    assert line == (
        f"http2tcp: cannot write the log file {path}: no such file or directory; lines are lost until this is fixed"
    )


async def test_a_full_disk_stops_no_tunnel(tmp_path: Path) -> None:
    """A limit on the size of files in place of a disk."""

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))

    path, port = tmp_path / "log", free_port()
    command = http2tcp("-s", "-l", f"127.0.0.1:{port}", "--log-file", str(path))
    env = environment(HTTP2TCP_TOKEN=TOKEN)
    # What is measured beside it has no room on that disk either, and says so.
    env = {name: value for name, value in env.items() if not name.startswith("COVERAGE_")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=env, preexec_fn=small_files)
    assert process.stderr is not None
    try:
        wait_until(lambda: listens(port), "it listens")
        async with target(echo) as where:
            for _ in range(5):
                stream, _rest = await open_raw(TCPAddress("127.0.0.1", port), asking(where))
                async with stream:
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
        process.terminate()
        assert process.wait(20) == 0
        said = process.stderr.read().decode()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert path.stat().st_size == 200
    assert said.startswith(f"http2tcp: cannot write the log file {path}: {os.strerror(errno.EFBIG).lower()}; ")
    assert said.count("\n") == 1


@contextmanager
def stuck_reader(path: Path) -> Iterator[int]:
    """A pipe by name that its reader has open and takes nothing from; the end to write to."""
    os.mkfifo(path)
    reads = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writes = os.open(path, os.O_WRONLY)
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield writes
    finally:
        os.close(reads)
        os.close(writes)


@pytest.mark.parametrize("to", ["stderr", "a file"])
async def test_a_log_that_nobody_reads_any_more_holds_up_neither_tunnels_nor_the_end(to: str, tmp_path: Path) -> None:
    path, port = tmp_path / "pipe", free_port()
    with stuck_reader(path) as writes:
        options = ("--log-file", str(path)) if to == "a file" else ()
        process = subprocess.Popen(
            http2tcp("-s", "-l", f"127.0.0.1:{port}", *options),
            stderr=writes if to == "stderr" else subprocess.DEVNULL,
            env=environment(HTTP2TCP_TOKEN=TOKEN),
        )
        try:
            wait_until(lambda: listens(port), "it listens")
            async with target(echo) as where:
                for _ in range(40):
                    stream, _rest = await open_raw(TCPAddress("127.0.0.1", port), asking(where))
                    async with stream:
                        await stream.send_all(b"x")
                        assert await stream.receive_some() == b"x"
            process.terminate()
            assert await trio.to_thread.run_sync(process.wait, 20) == 0
        finally:
            process.kill()
            process.wait()


async def test_neither_does_a_file_that_cannot_be_written_where_nobody_hears_of_it(tmp_path: Path) -> None:
    directory, pipe = tmp_path / "logs", tmp_path / "pipe"
    directory.mkdir()
    with stuck_reader(pipe) as writes:
        os.write(writes, bytes(4096))
        port = free_port()
        process = subprocess.Popen(
            http2tcp("-s", "-l", f"127.0.0.1:{port}", "--log-file", str(directory / "log")),
            stderr=writes,
            env=environment(HTTP2TCP_TOKEN=TOKEN),
        )
        try:
            wait_until(lambda: listens(port), "it listens")
            directory.rename(tmp_path / "gone")
            refused = await exchange(TCPAddress("127.0.0.1", port), asking("localhost:22", token="wrong"))
            assert refused.status == 401
            process.terminate()
            assert await trio.to_thread.run_sync(process.wait, 20) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--log-file", "/nowhere/at/all"], "cannot write the log file /nowhere/at/all: no such file or directory"),
        (["--log-file", "/"], "cannot write the log file /: is a directory"),
        (["--log-format", "xml"], "'xml': expected text or json"),
    ],
)
def test_a_log_that_cannot_be_is_a_mistake_in_one_line(options: list[str], words: str) -> None:
    done = subprocess.run(
        http2tcp("-s", *options), capture_output=True, text=True, env=environment(HTTP2TCP_TOKEN=TOKEN), timeout=60
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_keeps_it_from_starting_is_said_to_the_person_and_not_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    done = subprocess.run(
        http2tcp("-s", "-l", "unix:/nowhere/x", "--log-file", str(path), "--log-format", "json"),
        capture_output=True,
        text=True,
        env=environment(HTTP2TCP_TOKEN=TOKEN),
        timeout=60,
    )
    assert done.returncode == 73
    assert done.stderr == "http2tcp: cannot listen on unix:/nowhere/x: no such file or directory\n"
    assert path.read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
async def test_who_rotates_by_a_signal_gets_the_new_file(number: signal.Signals, tmp_path: Path) -> None:
    """As nginx and others want one; and nobody's tunnels end for it."""
    path = tmp_path / "log"
    with logging_server(tmp_path, "--log-file", str(path)) as (_, process, _stderr):
        wait_until(lambda: "listening" in path.read_text(), "it has begun")
        old = path.rename(tmp_path / "log.1")
        process.send_signal(number)
        wait_until(path.exists, "there is a new file")
        wait_until(lambda: number.name in path.read_text(), "it says so")
        held = [os.path.realpath(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert str(old) not in held
        assert str(path) in held
