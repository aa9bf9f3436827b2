"""`http2tcp -s` as a process: its log, its signals, what it says when it cannot start."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from http2tcp.address import TCPAddress
from tests.support.loopback import TOKEN, asking, closed_port, echo, exchange, open_raw, read_all, target, upgrade
from tests.support.processes import environment, http2tcp

LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")


class ServerProcess:
    """A server process whose stderr is read line by line."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.address = TCPAddress("127.0.0.1", 0)
        #: What it said before it listened.
        self.before = ""
        #: That it listens, and what it is open to.
        self.greeting = ""
        self._unread = ""

    async def line(self) -> str:
        """The next line of its log."""
        assert self.process.stderr is not None
        with trio.fail_after(20):
            while "\n" not in self._unread:
                data = await self.process.stderr.receive_some()
                assert data, f"it ended after {self._unread!r}"
                self._unread += data.decode()
        line, _, self._unread = self._unread.partition("\n")
        return line

    async def ended(self, within: float = 20) -> tuple[int, str]:
        """The exit status, and the rest of the log."""
        assert self.process.stderr is not None
        with trio.fail_after(within):
            while data := await self.process.stderr.receive_some():
                self._unread += data.decode()
            return await self.process.wait(), self._unread


@asynccontextmanager
async def serving(*arguments: str, journal: bool = False, **variables: str) -> AsyncIterator[ServerProcess]:
    """A server with TOKEN on a free port; its address is known unless it is told to be quiet.

    `journal` makes its stderr what systemd would have connected to the journal.
    """
    listen = () if "-l" in arguments else ("-l", "127.0.0.1:0")
    command = http2tcp("-s", *listen, *arguments)
    reader, writer = os.pipe()
    if journal:
        status = os.fstat(writer)
        variables["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    env = environment(HTTP2TCP_TOKEN=TOKEN, **variables)
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=writer, env=env
    )
    os.close(writer)
    process.stderr = trio.lowlevel.FdStream(reader)
    server = ServerProcess(process)
    try:
        if "-q" not in arguments:
            while (found := LISTENING.search(line := await server.line())) is None:
                server.before += f"{line}\n"
            server.greeting = line
            server.address = TCPAddress("127.0.0.1", int(found[1]))
        yield server
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()


async def refuses(address: TCPAddress) -> None:
    """Wait until the port takes no connection."""
    with trio.fail_after(20):
        while True:
            try:
                stream = await trio.open_tcp_stream(address.host, address.port)
            except OSError:
                return
            await stream.aclose()
            await trio.sleep(0.01)


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_an_idle_server_ends_at_once_with_status_0(number: signal.Signals) -> None:
    async with serving() as server:
        server.process.send_signal(number)
        status, said = await server.ended(5)
    assert status == 0
    assert said.count("\n") == 1
    assert number.name in said


async def test_an_open_tunnel_goes_on_while_new_connections_are_refused_and_the_server_ends_with_it() -> None:
    async with target(echo) as where, serving() as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            server.process.terminate()
            assert "SIGTERM" in await server.line() or "SIGTERM" in await server.line()
            await refuses(server.address)
            await stream.send_all(b"still there?")
            assert await stream.receive_some() == b"still there?"
            await stream.send_eof()
            assert await read_all(stream) == b""
        status, _ = await server.ended(5)
    assert status == 0


async def test_a_tunnel_that_outlives_the_grace_is_cut_and_the_record_says_so() -> None:
    async with target(echo) as where, serving("--grace", "0.2") as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            server.process.terminate()
            with pytest.raises(trio.BrokenResourceError):
                with trio.fail_after(10):
                    await stream.receive_some()
        status, said = await server.ended(5)
    assert status == 0
    assert "reason=stopped" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_second_signal_ends_it_at_once(second: signal.Signals) -> None:
    async with target(echo) as where, serving() as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            server.process.terminate()
            await refuses(server.address)
            server.process.send_signal(second)
            status, said = await server.ended(5)
    assert status == 0
    assert "reason=stopped" in said
    assert "Traceback" not in said


async def test_signals_in_a_flurry_bring_no_traceback() -> None:
    async with target(echo) as where, serving() as server:
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                server.process.send_signal(number)
            status, said = await server.ended(5)
    assert status == 0
    assert "Traceback" not in said


async def test_signals_that_do_not_stop_until_it_has_ended_change_nothing_about_its_status() -> None:
    for _ in range(4):
        async with serving() as server:
            with trio.fail_after(20):
                while server.process.poll() is None:
                    server.process.terminate()
                    await trio.lowlevel.checkpoint()
            status, said = await server.ended()
            assert status == 0
            assert "Traceback" not in said


# The command line, with a server in it that does nothing: `begin` and `serve` are its.
_STUB = """
import os, signal, sys
import trio
from http2tcp import __main__
from http2tcp.command import exit_status
from http2tcp.server.service import Service

NUMBERS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
came = []

def send(kill=os.kill, pid=os.getpid(), numbers=NUMBERS):
    for number in numbers:
        kill(pid, number)

def on_signal(self, number, everything):
    came.append(number)
    everything.cancel()

Service.on_signal = on_signal
sys.argv = ["http2tcp", "-s", "-d", "localhost:22"]
"""
_LATE = """
async def serve(self):
    send()  # too late for trio to hand it on

class AtTheVeryEnd:
    def __del__(self, send=send):
        send()

def run(run=exit_status.run):
    status = run()
    send()
    return status

Service.run, exit_status.run = serve, run
sys.kept = AtTheVeryEnd()
__main__.main()
"""
_EARLY = """
async def serve(self):
    await trio.sleep_forever()

def begin(*arguments, run=trio.run, **named):
    send()
    run(*arguments, **named)

Service.run, trio.run = serve, begin
try:
    __main__.main()
finally:
    assert came == NUMBERS, came
"""


def run_script(script: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, env=environment())
    return done.returncode, done.stderr


def test_a_signal_that_comes_too_late_does_not_take_the_place_of_the_status() -> None:
    """As it leaves trio, then before its last lines are written, then while the interpreter ends."""
    assert run_script(_STUB + _LATE) == (0, "")


def test_a_signal_that_comes_before_trio_takes_signals_is_not_lost() -> None:
    assert run_script(_STUB + _EARLY) == (0, "")


# --- the log ------------------------------------------------------------------------------------


async def test_a_tunnel_is_one_line_when_it_opens_and_one_when_it_ends() -> None:
    async with target(echo) as where, serving() as server:
        stream, _ = await open_raw(server.address, asking(where.replace("127.0.0.1", "localhost")))
        opened = await server.line()
        async with stream:
            await stream.send_all(b"12345")
            await stream.send_eof()
            assert await read_all(stream) == b"12345"
        ended = await server.line()
        server.process.terminate()
        await server.ended()
    for line in (opened, ended):
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ", line), line
        assert f"target=localhost:{where.rpartition(':')[2]} " in line
        assert f"dialled={where} " in line
        assert "client=127.0.0.1 port=" in line
        assert TOKEN not in line
    assert " opened session=" in opened
    assert " ended session=" in ended
    assert re.search(r"session=(\w+)", opened)[1] == re.search(r"session=(\w+)", ended)[1]  # type: ignore[index]
    assert " bytes_up=5 bytes_down=5 " in ended
    assert re.search(r" seconds=\d+\.\d+ reason=closed$", ended)


async def test_a_refusal_is_one_line_without_the_request_or_its_secret() -> None:
    async with serving() as server:
        lines = []
        for request in (
            asking("localhost:22", token="s3cret-wrong"),
            asking("localhost:22", "Origin: https://evil.example"),
            asking(f"127.0.0.1:{closed_port()}"),
            b"GET /?addr=s3cret HTTP/1.1\r\nAuthorization: Bearer s3cret\r\n\r\n",
            upgrade("/?addr=%0d%0aforged%20session=1:22"),
        ):
            answer = await exchange(server.address, request)
            assert answer.status >= 400
            lines.append(await server.line())
        server.process.terminate()
        _, rest = await server.ended()
    assert rest.count("\n") == 1, rest
    for line, status in zip(lines, (401, 403, 502, 400, 400), strict=True):
        assert f" status={status} error=" in line
        for secret in ("s3cret", TOKEN, "addr=", "forged", "evil"):
            assert secret not in line


async def test_verbose_tells_no_secret_either() -> None:
    async with target(echo) as where, serving("-v") as server:
        await exchange(server.address, asking(where, token="s3cret-wrong"))
        await exchange(server.address, b"\x16\x03\x01s3cret\r\n\r\n")
        stream, _ = await open_raw(server.address, asking(where))
        async with stream:
            await stream.send_all(b"s3cret payload")
            await stream.send_eof()
            await read_all(stream)
        async with await trio.open_tcp_stream(server.address.host, server.address.port) as early:
            await early.send_all(b"GET /s3cret")
        server.process.terminate()
        status, said = await server.ended()
    assert status == 0
    assert "opened" in said
    assert "s3cret" not in said
    assert TOKEN not in said


async def test_quiet_says_nothing_while_all_is_well(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with target(echo) as where, serving("-q", "-l", f"unix:{path}") as server:
        with trio.fail_after(20):
            while not path.exists():
                await trio.sleep(0.01)
        async with await trio.open_unix_socket(str(path)) as stream:
            await stream.send_all(asking(where))
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        server.process.terminate()
        assert await server.ended() == (0, "")


async def test_in_the_journal_the_time_is_the_journals_and_every_line_has_its_priority() -> None:
    async with serving(journal=True) as server:
        server.process.terminate()
        _, said = await server.ended()
    assert re.fullmatch("<6>SIGTERM: draining; [^\n]*\n", said)


async def test_the_journals_variable_alone_is_no_journal() -> None:
    """It is inherited by whatever a service starts, whose stderr may be a file."""
    async with serving(JOURNAL_STREAM="8:12345") as server:
        server.process.terminate()
        _, said = await server.ended()
    assert re.match(r"\d{4}-\d\d-\d\dT\S+Z SIGTERM", said)


async def test_in_the_journal_what_keeps_it_from_starting_is_an_error() -> None:
    async with serving("-q", "-l", "unix:/nowhere/at/all.sock", journal=True) as server:
        status, said = await server.ended()
    assert status == 73
    assert said.startswith("<3>http2tcp: cannot listen on ")
    assert said.count("\n") == 1


async def test_a_log_that_nobody_takes_stops_no_tunnel() -> None:
    async with target(echo) as where, serving() as server:
        assert server.process.stderr is not None
        await server.process.stderr.aclose()
        for _ in range(2):
            stream, _rest = await open_raw(server.address, asking(where))
            async with stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
        server.process.terminate()
        with trio.fail_after(20):
            assert await server.process.wait() == 0


async def test_without_a_token_it_says_that_everybody_may_come() -> None:
    command = http2tcp("-s", "-l", "127.0.0.1:0", "-d", "localhost:22")
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE, env=environment())
    assert process.stderr is not None
    async with process.stderr:
        server = ServerProcess(process)
        line = await server.line()
        process.terminate()
        assert (await server.ended())[0] == 0
    assert "localhost:22 alone" in line
    assert "everybody" in line


@pytest.mark.parametrize(
    ("rules", "reach"),
    [
        ((), "open to any destination but link-local and metadata addresses, with the token"),
        (("--allow", "bastion:22"), "open to what the rules allow, with the token"),
    ],
    ids=["no policy", "a policy"],
)
async def test_it_says_when_it_starts_how_far_a_token_goes(rules: tuple[str, ...], reach: str) -> None:
    async with serving(*rules) as server:
        assert server.greeting.endswith(reach)


@pytest.mark.parametrize(("asked", "warned"), [("1000000", True), ("5", False)])
async def test_it_says_when_there_are_fewer_tunnels_than_were_asked_for(asked: str, warned: bool) -> None:
    async with serving("--max-tunnels", asked) as server:
        assert ("--max-tunnels is lowered to" in server.before) == warned


# --- it cannot start ----------------------------------------------------------------------------


async def cannot(*arguments: str) -> tuple[int, str]:
    done = await trio.run_process(
        http2tcp("-s", *arguments),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(HTTP2TCP_TOKEN=TOKEN),
    )
    assert done.stdout == b""
    said = done.stderr.decode()
    assert said.count("\n") == 1, said
    return done.returncode, said


async def test_a_port_in_use_is_one_line_and_status_73() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host, port = taken.getsockname()
        status, said = await cannot("-l", f"{host}:{port}")
    assert status == 73
    assert f"{host}:{port}" in said
    assert "in use" in said


@pytest.mark.parametrize("listen", ["unix:/nowhere/at/all.sock", f"{'x' * 64}.invalid:80", "192.0.2.1:80"])
async def test_an_address_that_is_not_ours_is_one_line_and_status_73(listen: str) -> None:
    status, said = await cannot("-l", listen)
    assert status == 73
    assert listen in said


async def test_a_unix_socket_that_another_server_answers_on_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        status, _ = await cannot("-l", f"unix:{path}")
        assert status == 73
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
