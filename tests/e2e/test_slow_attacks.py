"""slowhttptest against the listener: who is slow gets ten seconds, and whoever has a token gets in meanwhile."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import trio

import http2tcp as library
from tests.support.loopback import TOKEN, echo, target
from tests.support.processes import end, environment, free_port, http2tcp, listens, program, running, wait_until

_HEAD_TIMEOUT = 10
_CONNECTIONS = 400


def metric(admin: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=20) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(f"no {name}")


@pytest.mark.timeout(90)
@pytest.mark.alone("measures the time of a login")
@pytest.mark.parametrize(
    "attack", [["-H", "-i", "1"], ["-B", "-i", "1"], ["-X", "-z", "1"]], ids=["heads", "bodies", "reads"]
)
def test_slow_clients_hold_nothing_for_long_and_keep_nobody_out(attack: list[str], tmp_path: Path) -> None:
    port, admin = free_port(), free_port()
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    command = http2tcp(
        "-s", "-q", "--token-file", str(token), "-l", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{admin}"
    )
    slow = [program("slowhttptest"), "-c", str(_CONNECTIONS), "-r", "400", "-l", "60", "-p", "3", *attack]

    async def log_in() -> float:
        async with target(echo) as where:
            began = time.monotonic()
            async with await library.open_tunnel(f"http://127.0.0.1:{port}/", where, token=TOKEN) as tunnel:
                await tunnel.send_all(b"in")
                assert await tunnel.receive_some() == b"in"
                return time.monotonic() - began

    with running(command, tmp_path / "log", lambda: listens(port) and listens(admin)):
        attacker = subprocess.Popen(
            [*slow, "-u", f"http://127.0.0.1:{port}/"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: metric(admin, "http2tcp_connections_accepted_total") > _CONNECTIONS / 2, "the attack has begun"
            )
            for _ in range(5):
                assert trio.run(log_in) < 2
            # They go by their deadline, not because the attacker leaves.
            wait_until(
                lambda: metric(admin, "http2tcp_connections_unauthenticated") == 0,
                "the slow ones are gone",
                _HEAD_TIMEOUT + 10,
            )
        finally:
            end(attacker)
