"""Signals to the client, in every phase and at every step of its start: the status, and never a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.client_process import client, ended
from tests.support.loopback import TOKEN, full_backlog, served, target
from tests.support.processes import environment, http2tcp

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 0}
EACH = pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)


async def hold(stream: trio.SocketStream) -> None:
    await stream.send_all(b"hello\n")
    await trio.sleep_forever()


# --- phases -------------------------------------------------------------------------------------


@asynccontextmanager
async def phase(name: str) -> AsyncIterator[tuple[tuple[str, ...], trio.Event]]:
    """A client's arguments that keep it in the phase, and the event that it is there."""
    arrived = trio.Event()

    async def take_and_say_nothing(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        arrived.set()
        await trio.sleep_forever()

    async def greet(stream: trio.SocketStream) -> None:
        arrived.set()
        await hold(stream)

    match name:
        case "tcp":
            with full_backlog() as where:
                arrived.set()
                yield ("-e", f"http://{where}/"), arrived
        case "tls":
            async with target(take_and_say_nothing) as where:
                yield ("-e", f"https://{where}/"), arrived
        case "answer":
            async with target(take_and_say_nothing) as where:
                yield ("-e", f"http://{where}/"), arrived
        case "tunnel":
            async with target(greet) as where, served() as server:
                yield ("-e", server.url, "-d", where), arrived


@EACH
@pytest.mark.parametrize("name", ["tls", "answer", "tunnel"])
async def test_a_signal_ends_the_client_in_every_phase_without_a_word(name: str, number: signal.Signals) -> None:
    async with phase(name) as (arguments, arrived), client(*arguments) as process:
        with trio.fail_after(20):
            await arrived.wait()
        process.send_signal(number)
        assert await ended(process, 5) == (STATUS[number], "")


@EACH
async def test_a_signal_ends_the_client_while_it_connects(number: signal.Signals) -> None:
    async with phase("tcp") as (arguments, _), client(*arguments, "-v") as process:
        # Nothing can be seen of a SYN that is dropped, but the client says that it has the address.
        assert process.stderr is not None
        said = b""
        with trio.fail_after(20):
            while b"addresses of" not in said:
                said += await process.stderr.receive_some()
        process.send_signal(number)
        assert await ended(process, 5) == (STATUS[number], "")


@EACH
async def test_a_signal_ends_a_client_whose_stdin_and_stdout_are_at_work(number: signal.Signals) -> None:
    async def flood(stream: trio.SocketStream) -> None:
        async def swallow() -> None:
            async for _ in stream:
                pass

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(swallow)
                while True:
                    await stream.send_all(bytes(65536))
        except* trio.BrokenResourceError:
            pass  # the client is gone

    with open("/dev/zero", "rb") as zeros:
        async with target(flood) as where, served() as server:
            async with client("-e", server.url, "-d", where, stdin=zeros) as process:
                stdout = process.stdout
                assert stdout is not None
                assert await stdout.receive_some()

                async def drain() -> None:
                    async for _ in stdout:
                        pass

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(drain)
                    process.send_signal(number)
                    assert await ended(process, 10) == (STATUS[number], "")


async def test_under_nohup_a_hang_up_changes_nothing() -> None:
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *http2tcp()]
    async with target(hold) as where, served() as server:
        async with client("-e", server.url, "-d", where, command=ignoring) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert await process.stdout.receive_some()
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            assert await ended(process, 5) == (143, "")


@EACH
async def test_a_forwarder_ends_by_a_signal(number: signal.Signals) -> None:
    async with served() as server:
        async with client("-e", server.url, "-d", "x:1", "-l", "127.0.0.1:0") as process:
            assert process.stderr is not None
            with trio.fail_after(20):
                assert b"listening on 127.0.0.1:" in await process.stderr.receive_some()
            process.send_signal(number)
            assert await ended(process, 5) == (STATUS[number], "")


# --- the start ----------------------------------------------------------------------------------

# It runs http2tcp and sends itself a signal when a module is about to be loaded, or when it exits.
SELF_SIGNAL = """
import os, sys, atexit
wanted, number = sys.argv[1], int(sys.argv[2])
def hook(event, arguments):
    global wanted
    if event == "import" and arguments[0] == wanted:
        wanted = ""
        os.kill(os.getpid(), number)
del sys.argv[:2]
from http2tcp.__main__ import main
sys.addaudithook(hook)
if wanted == "exit":
    atexit.register(lambda: os.kill(os.getpid(), number))
try:
    main()
finally:
    if wanted not in ("", "exit"):
        os.write(2, b"the moment never came")
"""
# In the order in which they are loaded.
MOMENTS = [
    "http2tcp.command.cli",
    "click",
    "http2tcp.command.process",
    "trio",
    "http2tcp.client.connector",
    "h11",
    "http2tcp.net.stdio",
    "exit",
]


@EACH
@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_signal_while_it_starts_or_ends_is_a_quick_end_without_a_traceback(
    moment: str, number: signal.Signals
) -> None:
    async with target(hold) as where, served() as server:
        command = [sys.executable, "-c", SELF_SIGNAL, moment, str(int(number))]
        # The reader of stdout leaves at once where the exit is the moment.
        async with client("-e", server.url, "-d", where, command=command) as process:
            if moment == "exit":
                assert process.stdout is not None
                assert await process.stdout.receive_some()
                await process.stdout.aclose()
            status, said = await ended(process)
    assert said == ""
    # Until it has handlers of its own the kernel ends it, which a shell shows as the same status.
    assert status in (-number, STATUS[number])


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
async def test_no_moment_after_its_start_brings_a_traceback(delay: float) -> None:
    async with target(hold) as where, served() as server:
        for number in (signal.SIGTERM, signal.SIGHUP):
            async with client("-e", server.url, "-d", where) as process:
                await trio.sleep(delay)  # a moment of real time is what is tested
                process.send_signal(number)
                status, said = await ended(process, 5)
                assert said == ""
                assert status in (-number, STATUS[number])


# --- the interrupted program, as a shell sees it -------------------------------------------------


async def test_a_shell_sees_130_wherever_control_c_came() -> None:
    async with target(hold) as where, served() as server:
        for moment in ("click", "http2tcp.net.stdio"):
            script = '"$0" "$@"; echo "status $?"'
            arguments = [
                *(sys.executable, "-c", SELF_SIGNAL, moment, str(int(signal.SIGINT))),
                *("-c", "-e", server.url, "-d", where),
            ]
            done = await trio.run_process(
                ["bash", "-c", f"trap : INT; {script}", *arguments],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(HTTP2TCP_TOKEN=TOKEN),
            )
            assert b"Traceback" not in done.stderr
            assert done.stdout.endswith(b"status 130\n")
