"""The hostile heads against a real server, directly and through nginx, each with a good request behind it.

The good request carries the token, and nginx closes its path to everybody: whoever gets a tunnel by it has
smuggled it past the front end.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.heads import HOSTILE, SECRET, good
from tests.support.nginx import nginx, passing_upgrades
from tests.support.processes import free_port, http2tcp, listens, running

_WRONG = "w" * len(SECRET)


@contextmanager
def server(directory: Path, port: int) -> Iterator[Path]:
    """A server with the heads' token; its log."""
    token, log = directory / "token", directory / "log"
    token.write_text(SECRET)
    token.chmod(0o600)
    command = http2tcp("-s", "-v", "--token-file", str(token), "-l", f"127.0.0.1:{port}")
    with running(command, log, lambda: listens(port)):
        yield log


def answers(port: int, data: bytes) -> bytes:
    """All that comes back until the end, or until nothing more comes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                received += piece
        except (TimeoutError, ConnectionError):
            pass
    return received


@pytest.mark.timeout(180)
def test_nothing_behind_a_hostile_head_is_ever_a_request_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    with server(tmp_path, port) as log:
        for name, (data, status) in HOSTILE.items():
            received = answers(port, data + good(line="GET /?addr=127.0.0.1%3A1 HTTP/1.1"))
            assert received.startswith(f"HTTP/1.1 {status} ".encode()), (name, received[:100])
            assert received.count(b"HTTP/1.1 ") == 1, (name, received)
    assert "opened" not in log.read_text()
    assert "status=502" not in log.read_text()
    assert SECRET not in log.read_text()


@pytest.mark.timeout(180)
def test_no_head_smuggles_a_request_past_nginx(tmp_path: Path) -> None:
    port, front = free_port(), free_port()
    smuggled = good(line="GET /closed/?addr=127.0.0.1%3A1 HTTP/1.1")
    configuration = passing_upgrades(front, port, also="location /closed/ { deny all; }")
    with server(tmp_path, port) as log, nginx(tmp_path / "nginx", configuration, front):
        assert b" 403 " in answers(front, smuggled)
        # Were it to pass, it would be dialled.
        assert b" 502 " in answers(front, good(line="GET /?addr=127.0.0.1%3A1 HTTP/1.1"))
        before = log.read_text().count("connection_refused")
        heads = [data.replace(SECRET.encode(), _WRONG.encode()) + smuggled for data, _ in HOSTILE.values()]
        # nginx waits for the rest of some of them.
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda head: answers(front, head), heads))
    text = log.read_text()
    assert text.count("connection_refused") == before == 1
    assert "opened" not in text
    assert "Traceback" not in text
