"""kill -9 of clients, of nginx's workers and of the target, at random moments under load.

What survives tells no lie: no byte is wrong, nobody takes a part for the whole, every session of the server
has its two records, and nothing that it held is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

import http2tcp
from http2tcp.errors import TunnelError
from http2tcp.net.streams import Stream
from tests.support.loopback import TOKEN
from tests.support.nginx import nginx, passing_upgrades
from tests.support.processes import end, environment, free_port, listens, running, wait_until
from tests.support.processes import http2tcp as command

_SECONDS = 6.0
_TALKERS = 12
# The kernel ends a killed process's connections with FIN, as if all had been said; this target's with RST.
_ECHO = """
import socket, struct, sys, threading
def linger(sock, on):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", on, 0))
def echo(sock):
    try:
        while data := sock.recv(65536):
            sock.sendall(data)
        linger(sock, 0)
    except OSError:
        pass
    finally:
        sock.close()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
# Before it listens: what it accepts has it from its first moment.
linger(listener, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(500)
while True:
    threading.Thread(target=echo, args=[listener.accept()[0]], daemon=True).start()
"""


class Target:
    """An echo that is always there again."""

    def __init__(self) -> None:
        self.port = free_port()
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _ECHO, str(self.port)])
        wait_until(lambda: listens(self.port), "the target listens")

    def kill(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


async def talk(url: str, target: str, chance: random.Random, outcomes: Counter[str]) -> None:
    """Tunnel after tunnel: what comes back is what was sent, from its beginning; all of it where it ends well."""
    while True:
        sent, received = bytearray(), bytearray()
        try:
            await _converse(url, target, chance, sent, received)
            assert received == sent, f"a clean end after {len(received)} of {len(sent)} bytes"
            outcomes["whole"] += 1
        except* (TunnelError, trio.BrokenResourceError, trio.ClosedResourceError):
            assert sent.startswith(received)
            outcomes["told"] += 1
        await trio.sleep(0.01)


async def _converse(url: str, target: str, chance: random.Random, sent: bytearray, received: bytearray) -> None:
    # Chosen, since a worker that dies instead of answering looks as if it did not pass this one on, and the next that
    # would be tried is tcp, whose half-close nginx does not keep.
    opening = http2tcp.open_tunnel(url, target, token=TOKEN, transport=http2tcp.Transport.CONNECT_TCP)
    async with await opening as tunnel, trio.open_nursery() as nursery:

        async def send() -> None:
            for _ in range(chance.randrange(1, 8)):
                piece = chance.randbytes(chance.randrange(1, 300_000))
                sent.extend(piece)
                await tunnel.send_all(piece)
                await trio.sleep(chance.random() / 20)
            await tunnel.send_eof()

        nursery.start_soon(send)
        while data := await tunnel.receive_some():
            received.extend(data)


async def run_clients(url: str, target: str, chance: random.Random) -> None:
    """Clients as processes, one after the other, each killed while it talks."""
    while True:
        async with await trio.open_file(os.devnull, "wb") as nowhere:
            process: trio.Process = await trio.lowlevel.open_process(
                command("-c", "-q", "-e", url, "-d", target),
                stdin=subprocess.PIPE,
                stdout=nowhere.fileno(),
                stderr=nowhere.fileno(),
                env=environment(HTTP2TCP_TOKEN=TOKEN),
            )
            assert process.stdin is not None
            try:
                with trio.move_on_after(0.5 + chance.random()):
                    while True:
                        await process.stdin.send_all(b"x" * 65536)
            except trio.BrokenResourceError:
                pass
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                    await process.stdin.aclose()


def records(log: Path) -> dict[str, list[str]]:
    """The events of each session that opened."""
    events: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if "session" in record:
            events.setdefault(record["session"], []).append(record["event"])
    return {session: told for session, told in events.items() if "opened" in told}


def figures(admin: int) -> dict[str, dict[str, float]]:
    """The server's own counts: by their names, and by the value of their label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=20) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    told: dict[str, dict[str, float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        told.setdefault(sample.name.removeprefix("http2tcp_"), {})[" ".join(sample.labels.values())] = sample.value
    return told


def held(pid: int) -> Counter[str]:
    """What kinds of descriptors a process holds."""
    kinds: Counter[str] = Counter()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            kinds[os.readlink(each).partition(":")[0]] += 1
        except FileNotFoundError:
            continue
    return kinds


@pytest.mark.timeout(120)
def test_nothing_is_left_and_nobody_is_lied_to_when_things_are_killed_under_load(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)  # to see it where the test fails
    chance = random.Random(seed)
    port, front, admin = free_port(), free_port(), free_port()
    log, token = tmp_path / "log", tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    arguments = ["-s", "--token-file", str(token), "-l", f"127.0.0.1:{port}", "--log-format", "json"]
    # A client that was killed says nothing, so the server waits for it: not for an hour here.
    arguments += ["--admin", f"127.0.0.1:{admin}", "--resume", "5"]
    configuration = passing_upgrades(front, port, main="worker_processes 2;")
    outcomes: Counter[str] = Counter()
    target = Target()
    url = f"http://127.0.0.1:{front}/"

    async def rage(front_end: int) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(_TALKERS):
                own = random.Random(seed + number)
                nursery.start_soon(talk, url, f"127.0.0.1:{target.port}", own, outcomes)
            for number in range(2):
                own = random.Random(seed - number)
                nursery.start_soon(run_clients, url, f"127.0.0.1:{target.port}", own)
            calm = trio.current_time() + _SECONDS
            # On a loaded machine it takes longer until enough has happened.
            with trio.move_on_after(10 * _SECONDS):
                while trio.current_time() < calm or min(outcomes["whole"], outcomes["told"]) <= 5:
                    await trio.sleep(chance.random())
                    if chance.random() < 0.5:
                        await trio.to_thread.run_sync(target.kill)
                    else:
                        children = Path(f"/proc/{front_end}/task/{front_end}/children").read_text().split()
                        if children:
                            os.kill(int(chance.choice(children)), signal.SIGKILL)
            nursery.cancel_scope.cancel()

    try:
        with (
            running(command(*arguments), log, lambda: listens(port) and listens(admin)) as server,
            nginx(tmp_path / "nginx", configuration, front) as shield,
        ):
            before = held(server.pid)
            trio.run(rage, shield.process.pid)

            wait_until(lambda: held(server.pid)["socket"] <= before["socket"], "every socket is given back")
            # A few empty pipes are kept for the next flow.
            assert held(server.pid)["pipe"] <= before["pipe"] + 16
            wait_until(lambda: all("ended" in told for told in records(log).values()), "every session has ended")
            told = figures(admin)
        sessions = records(log)
        assert sessions
        assert {(told[0], told[-1]) for told in sessions.values()} == {("opened", "ended")}
        assert {event for told in sessions.values() for event in told[1:-1]} <= {"detached", "resumed"}
        assert "Traceback" not in log.read_text()
        # The figures say the same, and add up.
        assert sum(told["sessions_open"].values()) == told["connections_unauthenticated"][""] == 0
        assert told["log_lines_dropped_total"][""] == 0
        assert sum(told["sessions_opened_total"].values()) == len(sessions)
        ended = Counter(json.loads(line)["reason"] for line in log.read_text().splitlines() if '"ended"' in line)
        assert {reason: count for reason, count in told["sessions_ended_total"].items() if count} == ended
        became = ("sessions_opened_total", "refused_total", "abandoned_total", "resumes_total")
        assert told["connections_accepted_total"][""] == sum(sum(told[name].values()) for name in became)
        assert outcomes["whole"] > 5
        assert outcomes["told"] > 5
    finally:
        target.end()


@pytest.mark.timeout(60)
def test_who_talks_through_a_server_that_is_killed_is_told(tmp_path: Path) -> None:
    port = free_port()
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    target = Target()

    async def talk_on(server: int) -> None:
        url, destination = f"http://127.0.0.1:{port}/", f"127.0.0.1:{target.port}"
        for transport in (http2tcp.Transport.TCP, http2tcp.Transport.CONNECT_TCP, http2tcp.Transport.WEBSOCKET):
            tunnels.append(await http2tcp.open_tunnel(url, destination, token=TOKEN, transport=transport))
        for tunnel in tunnels:
            await tunnel.send_all(b"hello")
            assert await tunnel.receive_some() == b"hello"
        os.kill(server, signal.SIGKILL)
        for tunnel in tunnels:
            with trio.fail_after(10), pytest.raises((TunnelError, trio.BrokenResourceError)):
                assert await tunnel.receive_some() != b"", "a clean end"
            await tunnel.aclose()

    tunnels: list[Stream] = []
    server = subprocess.Popen(
        command("-s", "-q", "--token-file", str(token), "-l", f"127.0.0.1:{port}"), env=environment()
    )
    try:
        wait_until(lambda: listens(port), "the server listens")
        trio.run(talk_on, server.pid)
    finally:
        end(server)
        target.end()
