"""Versions that do not resume tunnels, at either end: everything goes on as it did."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.processes import environment, free_port, http2tcp, listens, running

# The last version without resume.
BEFORE = "ab98cf8"
ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-both-versions"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the version before, from this repository's history."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE, "http2tcp"], capture_output=True)
    if archive.returncode != 0:
        pytest.skip("this is no clone with the history of that version")
    directory = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    assert not (directory / "http2tcp" / "net" / "resumable.py").exists()
    begin = f"import sys; sys.path[0] = {str(directory)!r}; import http2tcp"
    found = subprocess.run([sys.executable, "-c", f"{begin}; print(http2tcp.__file__)"], capture_output=True, text=True)
    assert found.stdout.strip() == str(directory / "http2tcp" / "__init__.py"), found
    return [sys.executable, "-c", f"{begin}.__main__; http2tcp.__main__.main()"]


# Prints each request of a client, and a server's answer to it.
HEADS = """
try:
    from http2tcp.protocol.client_handshake import request
    from http2tcp.protocol.server_handshake import RequestReader, accept
except ImportError:
    from http2tcp.protocol.client import request
    from http2tcp.protocol.server import RequestReader, accept
from http2tcp.address import parse_destination, parse_endpoint
from http2tcp.protocol.transport import Transport

for endpoint in ("https://example.com/~http2tcp/", "http://user:pass@example.com:8080/x?y=z"):
    for destination in (None, "db:5432", "unix:/run/x.sock"):
        for transport in Transport:
            for keepalive in (None, 25.0):
                head = request(
                    parse_endpoint(endpoint),
                    None if destination is None else parse_destination(destination),
                    transport,
                    token="a-token",
                    user_agent="test",
                    keepalive=keepalive,
                    headers=[("X-More", "1")],
                    websocket_key="dGhlIHNhbXBsZSBub25jZQ==",
                )
                print(head)
                reader = RequestReader()
                reader.receive(head)
                asked = reader.next_event()
                print(accept(asked, "5f0c9a3be172", keepalive=25.0, dial_time=0.012))
"""


def test_without_resume_each_byte_of_the_heads_is_as_before(old: list[str]) -> None:
    begin = old[2].partition("; import http2tcp")[0]
    before = subprocess.run([sys.executable, "-c", begin + HEADS], capture_output=True, text=True)
    now = subprocess.run([sys.executable, "-c", HEADS], capture_output=True, text=True)
    assert (before.returncode, now.returncode) == (0, 0), before.stderr + now.stderr
    assert before.stdout.count("HTTP/1.1 101") >= 20
    assert now.stdout == before.stdout


@pytest.fixture
def echo() -> Iterator[int]:
    """A service that sends everything back, its end included."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):
            while data := connection.recv(65536):
                connection.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as service:

        def serve() -> None:
            while True:
                try:
                    connection, _ = service.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield service.getsockname()[1]
        service.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("transport", ["auto", "connect-tcp", "websocket", "tcp", "http2tcp/1.0"])
@pytest.mark.parametrize("older", ["client", "server"])
def test_the_version_before_works_with_this_one(
    older: str, transport: str, old: list[str], echo: int, tmp_path: Path
) -> None:
    port = free_port()
    new = http2tcp()
    server, client = (new, old) if older == "client" else (old, new)
    env = environment(HTTP2TCP_TOKEN=TOKEN)
    serving = [*server, "-s", "-l", f"127.0.0.1:{port}"]
    data = os.urandom(3_000_000)
    with running(serving, tmp_path / "log", lambda: listens(port), env=env):
        command = [
            *client,
            "-c",
            "-e",
            f"http://127.0.0.1:{port}/",
            "-d",
            f"127.0.0.1:{echo}",
            "--transport",
            transport,
        ]
        done = subprocess.run(command, input=data, capture_output=True, timeout=30, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


@pytest.mark.parametrize("older", ["client", "server"])
def test_a_lost_connection_ends_the_tunnel_as_it_did(older: str, old: list[str], echo: int, tmp_path: Path) -> None:
    port = free_port()
    new = http2tcp()
    server, client = (new, old) if older == "client" else (old, new)
    env = environment(HTTP2TCP_TOKEN=TOKEN)
    pipe = subprocess.PIPE
    with running(
        [*server, "-s", "-l", f"127.0.0.1:{port}"], tmp_path / "log", lambda: listens(port), env=env
    ) as serving:
        command = [
            *client,
            "-c",
            "-e",
            f"http://127.0.0.1:{port}/",
            "-d",
            f"127.0.0.1:{echo}",
            "--transport",
            "connect-tcp",
        ]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env) as running_client:
            assert running_client.stdin is not None
            assert running_client.stdout is not None
            running_client.stdin.write(b"one\n")
            running_client.stdin.flush()
            assert running_client.stdout.readline() == b"one\n"
            serving.kill()
            _, said = running_client.communicate(timeout=5)
    assert running_client.returncode == 71
    assert said.startswith(b"http2tcp: tunnel: ")
    assert said.count(b"\n") == 1
