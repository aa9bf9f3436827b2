"""`--check` as a user runs it: what it prints, its exit status, and that it does nothing else."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
from typing import Any

import pytest
import trio

from http2tcp.address import TCPAddress
from tests.support.client_process import client, ended
from tests.support.loopback import TOKEN, echo, full_backlog, greet_and_close, read_all, served, target
from tests.support.processes import environment, http2tcp

from .conftest import Run, complaint

ENDPOINT = ("-c", "-e", "https://example.com/")
ESCAPE = re.compile(r"\x1b\[[0-9;]*[mK]")


async def ran(*arguments: str, **descriptors: Any) -> tuple[int | None, str, str]:
    """The exit status, stdout and stderr of a client that is left to itself."""
    async with client(*arguments, stdin=subprocess.DEVNULL, **descriptors) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with trio.fail_after(30):
            out = await read_all(process.stdout)
            err = await read_all(process.stderr)
            return await process.wait(), out.decode(), err.decode()


# --- the options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((*ENDPOINT, "--json"), "--check"),
        (("-s", "-t", "s3cret", "--json"), "--check"),
        (("-s", "-t", "s3cret", "--check", "--json"), "-c"),
        (("--demo", "--check"), "-c"),
        (("--check",), "-c"),
        (("-c", "--check"), "-e"),
        ((*ENDPOINT, "--check", "s3cret"), "quotes"),
    ],
)
def test_a_mistake_is_one_sentence(http2tcp: Run, arguments: tuple[str, ...], expected: str) -> None:
    sentence = complaint(http2tcp(*arguments))
    assert expected in sentence
    assert "s3cret" not in sentence


async def test_a_check_of_a_socks_proxy_by_a_template_asks_for_a_destination_to_try() -> None:
    arguments = ("-e", "http://localhost/{target_host}/{target_port}/", "-D", "1080", "--check")
    status, out, err = await ran(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("http2tcp: a check of -D needs a destination (-d)")
    async with target(greet_and_close) as where, served() as server:
        template = server.url + ".well-known/masque/tcp/{target_host}/{target_port}/"
        status, out, err = await ran("-e", template, "-D", "1080", "-d", where, "--check")
    assert (status, err) == (0, ""), out


def test_neither_option_comes_from_the_environment(http2tcp: Run) -> None:
    assert http2tcp(*ENDPOINT, HTTP2TCP_CHECK="1", HTTP2TCP_JSON="1").client is not None


# --- what it says, and how it ends ----------------------------------------------------------------


async def test_a_way_that_works_is_status_0_and_a_report_on_stdout() -> None:
    async with target(greet_and_close) as where, served() as server:
        status, out, err = await ran("-e", server.url, "-d", where, "--check")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"The way to {where} by {server.url}"
    assert lines[-1] == f"It works: connect-tcp carries the tunnel to {where}."
    assert "says hello" in out
    assert TOKEN not in out


async def test_a_fallback_is_told_by_the_report_alone() -> None:
    async with target(greet_and_close) as where, served() as server:
        status, out, err = await ran("-e", server.url, "-d", where, "--transport", "websocket", "--check")
    assert (status, err) == (0, "")
    assert "It works: websocket" in out


async def test_a_failure_has_its_own_status_and_no_line_on_stderr() -> None:
    async with served() as server:
        status, out, err = await ran("-e", server.url, "-d", "169.254.169.254:80", "--check")
    assert (status, err) == (69, "")
    assert "It fails at the http2tcp server: " in out.splitlines()[-1]


async def test_json_is_one_document_whatever_happens() -> None:
    async with target(greet_and_close) as where, served() as server:
        for arguments, status in ((("-d", where), 0), (("-d", where, "-t", "wr0ng"), 68), (("-d", "127.0.0.1:1"), 70)):
            result, out, err = await ran("-e", server.url, *arguments, "--check", "--json")
            assert (result, err) == (status, "")
            document = json.loads(out)
            assert (document["exit_status"], document["works"]) == (status, status == 0)
            assert "wr0ng" not in out


async def test_a_document_that_could_not_be_written_is_no_success() -> None:
    async with target(greet_and_close) as where, served() as server:
        arguments = ("-e", server.url, "-d", where, "--check", "--json")
        with open("/dev/full", "wb") as full:
            async with client(*arguments, stdin=subprocess.DEVNULL, stdout=full) as process:
                status, said = await ended(process)
    assert (status, said) == (72, "http2tcp: stdio: cannot write to stdout: no space left on device\n")


async def test_quiet_says_only_what_fails() -> None:
    async with target(greet_and_close) as where, served() as server:
        assert await ran("-e", server.url, "-d", where, "--check", "-q") == (0, "", "")
        status, out, err = await ran("-e", server.url, "-d", "127.0.0.1:1", "--check", "-q")
    assert (status, err) == (70, "")
    assert out.strip().startswith("It fails at the target: ")
    assert "TCP" not in out


async def test_what_is_risky_is_still_warned_of_on_stderr() -> None:
    async with served() as server:
        url = server.url.replace("http:", "https:")
        status, out, err = await ran("-e", url, "-d", "db:1", "--insecure", "--check", "--json")
    assert status == 66
    assert "--insecure" in err
    json.loads(out)


# --- what it does not do --------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-l", "-L", "-D"])
async def test_nothing_is_listened_on(option: str) -> None:
    # A port that is taken would be a failure, were it listened on.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with target(greet_and_close) as where, served() as server:
            value = f"{port}:{where}" if option == "-L" else port
            destination = ("-d", where) if option == "-l" else ()
            status, out, err = await ran("-e", server.url, *destination, option, value, "--check")
        assert (status, err) == (0, "")
        assert "It works" in out


async def test_no_connection_is_handed_to_ssh() -> None:
    async with target(greet_and_close) as where, served() as server:
        status, out, err = await ran("-e", server.url, "-d", where, "--fdpass", "--check")
    assert (status, err) == (0, "")
    assert "It works: tcp carries" in out


async def test_stdin_is_left_alone() -> None:
    async with target(echo) as where, served() as server:
        async with client("-e", server.url, "-d", where, "--check") as process:
            assert process.stdin is not None
            with trio.fail_after(30):
                await process.stdin.send_all(b"for the shell\n")
                assert await process.wait() == 0


async def test_it_reaches_the_target_and_leaves_no_connection_open() -> None:
    received, left = [], []

    async def until_the_end(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello\n")
        try:
            received.append(await read_all(stream))
        finally:
            left.append(stream)

    async with target(until_the_end) as where, served() as server:
        status, _, _ = await ran("-e", server.url, "-d", where, "--check")
        with trio.fail_after(10):
            while len(left) < 4:  # one a transport
                await trio.sleep(0.01)
    assert status == 0
    # A connection that ends before its greeting was read is reset.
    assert set(received) <= {b""}


# --- signals and terminals ------------------------------------------------------------------------


@pytest.mark.parametrize("form", [(), ("--json",)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_it_can_be_interrupted_without_a_traceback(
    form: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    arrived = trio.Event()

    async def say_nothing(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        arrived.set()
        await trio.sleep_forever()

    async with target(say_nothing) as where:
        async with client("-e", f"http://{where}/", "-d", "db:1", "--check", *form) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            with trio.fail_after(30):
                await arrived.wait()
                process.send_signal(number)
                out, err = await read_all(process.stdout), await read_all(process.stderr)
                assert await process.wait() == status
    assert err == b""
    # What was found before is there, and half a document is none.
    assert (b"TCP" in out) is (form == ())
    assert form == () or out == b""


async def test_a_reader_that_has_seen_enough_changes_nothing() -> None:
    async with served() as server:
        async with client("-e", server.url, "-d", "127.0.0.1:1", "--check") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            await process.stdout.aclose()
            with trio.fail_after(30):
                assert await read_all(process.stderr) == b""
                assert await process.wait() == 70


def on_a_terminal(address: TCPAddress, destination: str, **variables: str) -> str:
    """What a terminal of 80 columns is sent."""
    master, slave = pty.openpty()
    command = http2tcp("-c", "-e", f"http://{address}/", "-d", destination, "--check")
    env = environment(HTTP2TCP_TOKEN=TOKEN, COLUMNS="80", LINES="24", TERM="xterm", **variables)
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    screen = b""
    try:
        while data := os.read(master, 65536):
            screen += data
    except OSError:
        pass  # Linux's way to say that nobody has the terminal open any more
    finally:
        os.close(master)
        process.wait(10)
    return screen.decode()


async def test_on_a_terminal_it_is_coloured_and_no_wider_than_that() -> None:
    async with target(greet_and_close) as where, served() as server:
        screen = await trio.to_thread.run_sync(on_a_terminal, server.address, where)
    assert "\x1b[32m✓" in screen
    for line in re.split(r"[\r\n]+", screen):
        assert len(ESCAPE.sub("", line)) <= 80


async def test_with_no_color_it_is_not() -> None:
    async with target(greet_and_close) as where, served() as server:
        screen = await trio.to_thread.run_sync(lambda: on_a_terminal(server.address, where, NO_COLOR="1"))
    assert re.search(r"\x1b\[[0-9;]*m", screen) is None
    assert "✓" in screen


async def test_a_silent_port_is_shown_while_it_is_waited_for() -> None:
    with full_backlog() as where:
        screen, status = await trio.to_thread.run_sync(interrupted_on_a_terminal, where)
    assert f"TCP              {where} ..." in ESCAPE.sub("", screen)
    # The shell's prompt comes on a line of its own.
    assert screen.endswith("\n")
    assert status == 130


def interrupted_on_a_terminal(where: str) -> tuple[str, int]:
    """What a terminal shows of a check that waits for this address and is then interrupted; the exit status."""
    master, slave = pty.openpty()
    env = environment(HTTP2TCP_TOKEN=TOKEN, COLUMNS="80", LINES="24", TERM="xterm")
    command = http2tcp("-c", "-e", f"http://{where}/", "-d", "db:1", "--check")
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        screen = b""
        try:
            while b"TCP" not in screen or not screen.rstrip(b"\x1b[0m").endswith(b"..."):
                screen += os.read(master, 65536)
            process.send_signal(signal.SIGINT)
            while data := os.read(master, 65536):
                screen += data
        except OSError:
            pass  # as above
        finally:
            os.close(master)
            process.wait(10)
    return screen.decode(), process.returncode
