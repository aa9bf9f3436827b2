"""slowhttptest against the listener: slow clients get ten seconds, and a client with a token logs in meanwhile."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

import http2tcp as library
from tests.support.loopback import TOKEN, echo, target
from tests.support.processes import end, environment, free_port, http2tcp, listens, program, running, wait_until

_HEAD_TIMEOUT = 10
_CONNECTIONS = 400
_ATTACKS = {"heads": ("-H", "-i", "1"), "bodies": ("-B", "-i", "1"), "reads": ("-X", "-z", "1")}

pytestmark = [pytest.mark.timeout(90), pytest.mark.alone("measures the time of a login")]


def metric(admin: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(f"no {name}")


@dataclass
class Attacked:
    """A server under one of the attacks, and what a client saw of it meanwhile."""

    port: int
    admin: int
    #: When the attack stood.
    since: float = 0.0
    #: The seconds that each login took while the attack stood.
    logins: list[float] = field(default_factory=list)

    @property
    def slow(self) -> float:
        """How many connections the server waits for."""
        return metric(self.admin, "http2tcp_connections_unauthenticated")

    def has_begun(self) -> bool:
        return metric(self.admin, "http2tcp_connections_accepted_total") > _CONNECTIONS / 2

    def log_in(self) -> None:
        async def log_in() -> float:
            async with target(echo) as where:
                began = time.monotonic()
                async with await library.open_tunnel(f"http://127.0.0.1:{self.port}/", where, token=TOKEN) as tunnel:
                    await tunnel.send_all(b"in")
                    assert await tunnel.receive_some() == b"in"
                    return time.monotonic() - began

        self.logins.append(trio.run(log_in))


@contextmanager
def server(directory: Path) -> Iterator[Attacked]:
    directory.mkdir()
    port, admin = free_port(), free_port()
    token = directory / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    listen = ("-l", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}")
    command = http2tcp("-s", "-q", "--token-file", str(token), *listen)
    with running(command, directory / "log", lambda: listens(port) and listens(admin)):
        yield Attacked(port, admin)


@contextmanager
def attacker(attack: tuple[str, ...], port: int, directory: Path) -> Iterator[None]:
    slow = [program("slowhttptest"), "-c", str(_CONNECTIONS), "-r", "400", "-l", "60", "-p", "3", *attack]
    process = subprocess.Popen(
        [*slow, "-u", f"http://127.0.0.1:{port}/"],
        cwd=directory,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        end(process)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Attacked]]:
    """A server for each attack. The attacks stand side by side, since each one mostly waits."""
    directory = tmp_path_factory.mktemp("attacks")
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(directory / name)) for name in _ATTACKS}
        for name, attack in _ATTACKS.items():
            stack.enter_context(attacker(attack, servers[name].port, directory / name))
        for name, each in servers.items():
            wait_until(each.has_begun, f"the attack on {name} has begun")
            each.since = time.monotonic()
        for each in servers.values():
            for _ in range(5):
                each.log_in()
        yield servers


@pytest.mark.parametrize("attack", _ATTACKS)
def test_slow_clients_hold_nothing_for_long_and_keep_nobody_out(attack: str, attacked: dict[str, Attacked]) -> None:
    server = attacked[attack]
    assert max(server.logins) < 2
    # They go by their deadline, not because the attacker leaves.
    left = server.since + _HEAD_TIMEOUT + 10 - time.monotonic()
    wait_until(lambda: server.slow == 0, "the slow ones are gone", left)
