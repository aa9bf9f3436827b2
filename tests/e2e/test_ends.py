"""How tunnels over https end, and what a process that was stopped finds: real processes, real time."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.nginx import example, nginx
from tests.support.processes import PATIENCE, conversation, environment, free_port, http2tcp, wait_until
from tests.support.site import Server, https_site, issue_certificates, run_server
from tests.support.targets import echo, target

CAPSULES = ("connect-tcp", "websocket")
FRONTS = ("own", "nginx")
# Beyond the time that last bytes get where a tunnel broke.
NAP = 6.5


@dataclass(frozen=True)
class Https:
    """Two servers that are reached by https: one that has a certificate itself, and one behind nginx."""

    servers: dict[str, Server]
    urls: dict[str, str]
    ca: Path

    def client(self, front: str, transport: str, destination: str) -> list[str]:
        token = ("--token-file", str(self.servers[front].token_file), "--ca-file", str(self.ca))
        return http2tcp("-c", "-e", self.urls[front], "-d", destination, "--transport", transport, *token)

    def reasons(self, front: str, count: int) -> list[str]:
        """How so many sessions ended, by the server's records."""
        server = self.servers[front]
        wait_until(lambda: len(reasons(server)) >= count, f"{count} records: {server.log}")
        return reasons(server)


def reasons(server: Server) -> list[str]:
    return re.findall(r"ended session.* reason=(.*)", server.log)


@pytest.fixture
def https(tmp_path: Path) -> Iterator[Https]:
    certificates = issue_certificates(tmp_path)
    certificates.good.chmod(0o600)
    with ExitStack() as stack:
        own = stack.enter_context(run_server(tmp_path / "own", "--tls-cert", str(certificates.good)))
        behind = stack.enter_context(run_server(tmp_path / "behind"))
        port = free_port()
        text = example(tmp_path / "nginx", https_site(port, f"http://127.0.0.1:{behind.port}", certificates.good))
        stack.enter_context(nginx(tmp_path / "nginx", text, port))
        urls = {"own": f"https://localhost:{own.port}/", "nginx": f"https://localhost:{port}/~http2tcp/"}
        yield Https({"own": own, "nginx": behind}, urls, certificates.ca)


def all_at_once(work: Callable[[str, str], object]) -> None:
    """Each front end × each transport."""
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(work, front, transport) for front in FRONTS for transport in CAPSULES]:
            done.result(60)


def test_a_target_that_ends_first_and_reads_late_gets_all_that_the_client_left_with_0_for(https: Https) -> None:
    upload = os.urandom(1_000_000)
    got: list[bytes] = []

    def nap(connection: socket.socket) -> None:
        data = connection.recv(1)
        # Until all of it is in the hands of kernels.
        time.sleep(1)
        connection.sendall(b"ok")
        connection.shutdown(socket.SHUT_WR)
        time.sleep(NAP)
        # A reset raises here.
        while part := connection.recv(65536):
            data += part
        got.append(data)

    with target(nap) as where:

        def run(front: str, transport: str) -> None:
            command = https.client(front, transport, where)
            done = subprocess.run(command, input=upload, capture_output=True, timeout=40, env=environment())
            assert (done.returncode, done.stdout, done.stderr) == (0, b"ok", b""), (front, transport)

        all_at_once(run)
        wait_until(lambda: len(got) == 4, "every target has read to a clean end")
    assert got == [upload] * 4
    for front in FRONTS:
        assert https.reasons(front, 2) == ["closed"] * 2


@pytest.mark.parametrize("last", ["client", "target"])
def test_a_whole_conversation_ends_well_on_both_sides_whoever_ends_last(last: str, https: Https) -> None:
    times, heard = 6, []

    def talk(connection: socket.socket) -> None:
        if last == "client":
            connection.sendall(b"hello")
            connection.shutdown(socket.SHUT_WR)
        data = b""
        while part := connection.recv(65536):
            data += part
        if last == "target":
            time.sleep(0.05)
            connection.sendall(b"hello")
        heard.append(data)

    with target(talk) as where:

        def run(front: str, transport: str) -> None:
            for _ in range(times):
                with conversation(https.client(front, transport, where), stderr=subprocess.PIPE) as client:
                    assert client.stdin is not None
                    assert client.stdout is not None
                    client.stdin.write(b"up")
                    client.stdin.flush()
                    if last == "client":
                        # Its end, too: stdin ends after it.
                        assert client.stdout.read() == b"hello"
                    client.stdin.close()
                    client.stdin = None
                    out, said = client.communicate(timeout=PATIENCE)
                    assert (client.returncode, said) == (0, b""), (front, transport)
                    assert out == (b"" if last == "client" else b"hello")

        all_at_once(run)
    assert heard == [b"up"] * 4 * times
    for front in FRONTS:
        assert https.reasons(front, 2 * times) == ["closed"] * 2 * times


def test_who_was_stopped_does_not_give_up_a_peer_that_was_there_all_the_time(tmp_path: Path) -> None:
    """Stopped for longer than three of the other side's keepalives, which are in the socket when it wakes up."""
    ready = threading.Barrier(5)

    with run_server(tmp_path / "a", "--keepalive", "2") as lively, run_server(tmp_path / "b") as stopped:
        with target(echo) as where:

            def run(transport: str, server: Server) -> None:
                token = ("--token-file", str(server.token_file))
                beat = ("--keepalive", "2") if server is stopped else ()
                url = f"http://127.0.0.1:{server.port}/"
                command = http2tcp("-c", "-e", url, "-d", where, "--transport", transport, *token, *beat)
                with conversation(command, stderr=subprocess.PIPE) as client:
                    assert client.stdin is not None
                    assert client.stdout is not None
                    client.stdin.write(b"one\n")
                    client.stdin.flush()
                    assert client.stdout.readline() == b"one\n"
                    process = client if server is lively else server.process
                    ready.wait(PATIENCE)
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(8)
                    process.send_signal(signal.SIGCONT)
                    time.sleep(1)
                    client.stdin.write(b"two\n")
                    out, said = client.communicate(timeout=PATIENCE)
                    assert (client.returncode, out, said) == (0, b"two\n", b""), (transport, server is lively)

            with ThreadPoolExecutor() as pool:
                each = [pool.submit(run, t, server) for t in CAPSULES for server in (lively, stopped)]
                ready.wait(PATIENCE)
                for done in each:
                    done.result(60)
        for server in (lively, stopped):
            wait_until(lambda: len(reasons(server)) == 2, server.log)  # noqa: B023
            assert reasons(server) == ["closed"] * 2


def test_who_was_stopped_finds_nobody_idle_whose_bytes_are_unread(tmp_path: Path) -> None:
    with run_server(tmp_path / "server", "--idle-timeout", "3") as server, target(echo) as where:
        command = http2tcp(
            *("-c", "-e", f"http://127.0.0.1:{server.port}/", "-d", where),
            *("--transport", "connect-tcp", "--token-file", str(server.token_file)),
        )
        with conversation(command, stderr=subprocess.PIPE) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"one\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"one\n"
            server.process.send_signal(signal.SIGSTOP)
            client.stdin.write(b"two\n")
            client.stdin.flush()
            time.sleep(5)
            server.process.send_signal(signal.SIGCONT)
            assert client.stdout.readline() == b"two\n"
            out, said = client.communicate(timeout=PATIENCE)
            assert (client.returncode, out, said) == (0, b"", b"")
        wait_until(lambda: reasons(server), server.log)
        assert reasons(server) == ["closed"]
