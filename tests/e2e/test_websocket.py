"""WebSocket through nginx and with websocat, a program that knows nothing of ours, at either end."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.nginx import example, nginx
from tests.support.openssh import Login
from tests.support.processes import environment, free_port, listens, program, running
from tests.support.site import Site, http_site, https_site, run_server

LoginTo = Callable[..., Login]

# The lines of the example's map that pass a transport of ours on.
MAP = ["tcp             tcp;", "http2tcp/1.0    http2tcp/1.0;", "connect-tcp     connect-tcp;"]


@contextmanager
def echo_service() -> Iterator[str]:
    """Reads everything until the end of input, and sends it back only then: `host:port`."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                parts = []
                while data := connection.recv(1 << 20):
                    parts.append(data)
                connection.sendall(b"".join(parts))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


# --- our own client ---------------------------------------------------------------------------


def test_half_close_works_through_nginx(site: Site, endpoint: str) -> None:
    data = os.urandom(5_000_000)
    with echo_service() as where:
        command = site.client(endpoint, "--transport", "websocket", destination=where)
        done = subprocess.run(command, input=data, capture_output=True, timeout=60, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_a_front_end_that_passes_only_websocket_is_got_through(site: Site, login: LoginTo, tmp_path: Path) -> None:
    port = free_port()
    replacements = https_site(port, f"http://127.0.0.1:{site.server.port}", site.certificates.good)
    replacements |= {f"        {line}\n": "" for line in MAP}
    with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
        done = login(site.client(f"https://localhost:{port}/~http2tcp/")).run("ssh", "target", "echo in")
    assert done.stdout == b"in\n"
    said = done.stderr.decode().strip()
    assert said.startswith("http2tcp: connect-tcp was answered 426 by the http2tcp server, which got no upgrade; ")
    assert "websocket gets through, and --transport websocket is faster" in said


def test_a_server_that_dies_is_told(site: Site, tmp_path: Path) -> None:
    with run_server(tmp_path / "server") as server:
        port = free_port()
        replacements = http_site(port, f"http://127.0.0.1:{server.port}", site.certificates.good)
        with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
            more = ["--transport", "websocket", "--no-resume", "--token-file", str(server.token_file)]
            command = site.client(f"http://localhost:{port}/~http2tcp/", *more, destination=site.sshd.address)
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
            ) as client:
                assert client.stdout is not None
                assert client.stdout.readline().startswith(b"SSH-2.0-")
                server.process.kill()
                client.wait(20)
                assert client.stderr is not None
                said = client.stderr.read().decode()
    assert client.returncode == 71
    assert "connection lost" in said


# --- websocat as the client -------------------------------------------------------------------


def websocat_client(site: Site, destination: str = "%h:%p", *, endpoint: str | None = None) -> list[str]:
    """websocat as a ProxyCommand, to the server through nginx."""
    url = (endpoint or site.http).replace("http", "ws", 1)
    return [program("websocat"), "-b", f"-H=Authorization: Bearer {site.server.token}", f"{url}?addr={destination}"]


@pytest.mark.parametrize("way", ["nginx", "the server itself"])
def test_websocat_logs_in(site: Site, login: LoginTo, way: str) -> None:
    endpoint = None if way == "nginx" else f"http://127.0.0.1:{site.server.port}/"
    done = login(websocat_client(site, endpoint=endpoint)).run("ssh", "target", "echo out; echo err >&2; exit 42")
    assert (done.returncode, done.stdout) == (42, b"out\n")
    assert b"err\n" in done.stderr


def test_websocat_logs_in_over_tls(site: Site, login: LoginTo) -> None:
    command = [*websocat_client(site, endpoint=site.https), "-k"]
    assert login(command).run("ssh", "target", "echo in").stdout == b"in\n"


def test_a_megabyte_through_websocat_arrives_unchanged_both_ways(site: Site, login: LoginTo) -> None:
    data = os.urandom(1_000_000)
    done = login(websocat_client(site)).run("ssh", "target", "cat", stdin=data)
    assert done.stdout == data


def test_websocat_gets_the_reply_to_an_input_that_has_ended(site: Site) -> None:
    data = os.urandom(300_000)
    with echo_service() as where:
        done = subprocess.run(
            websocat_client(site, where), input=data, capture_output=True, timeout=30, env=environment()
        )
    assert (done.returncode, done.stdout) == (0, data)


def test_a_silent_websocat_login_is_kept_alive_by_the_server(site: Site, login: LoginTo, tmp_path: Path) -> None:
    port = free_port()
    with run_server(tmp_path / "server", "--keepalive", "1") as server:
        replacements = http_site(port, f"http://127.0.0.1:{server.port}", site.certificates.good)
        replacements["proxy_read_timeout 1d;"] = "proxy_read_timeout 2s;"
        with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
            url = f"ws://localhost:{port}/~http2tcp/?addr=%h:%p"
            command = [program("websocat"), "-b", f"-H=Authorization: Bearer {server.token}", url]
            assert login(command).run("ssh", "target", "sleep 4.5; echo still here").stdout == b"still here\n"


def test_websocat_without_the_token_is_refused(site: Site) -> None:
    command = [part for part in websocat_client(site, site.sshd.address) if not part.startswith("-H")]
    done = subprocess.run(command, capture_output=True, timeout=20, env=environment())
    assert done.returncode != 0
    assert b"401" in done.stderr


# --- websocat as the server -------------------------------------------------------------------


def test_our_client_logs_in_through_websocat(site: Site, login: LoginTo, tmp_path: Path) -> None:
    port = free_port()
    command = [program("websocat"), "-b", "-E", f"ws-l:127.0.0.1:{port}", f"tcp:{site.sshd.address}"]
    with running(command, tmp_path / "websocat.log", lambda: listens(port)):
        # It knows no destinations: it has its own.
        client = site.client(f"http://127.0.0.1:{port}/", "--transport", "websocket")
        where = client.index("-d")
        del client[where : where + 2]
        done = login(client).run("ssh", "target", "head -c 1000000 /dev/zero | sha256sum; exit 3")
    assert (done.returncode, done.stderr) == (3, b"")
    assert done.stdout.split()[0].decode() == hashlib.sha256(bytes(1_000_000)).hexdigest()


def test_an_input_that_ends_with_a_silent_target_behind_websocat_is_told(site: Site, tmp_path: Path) -> None:
    port = free_port()
    command = [program("websocat"), "-b", "-E", f"ws-l:127.0.0.1:{port}", f"tcp:{site.sshd.address}"]
    shorter = "websocket._CLIENT_ENDS = websocket._CLIENT_ENDS._replace(eof_patience=0.5)"
    patience = f"import http2tcp.net.websocket as websocket; {shorter}"
    client = [sys.executable, "-c", f"{patience}; from http2tcp.__main__ import main; main()"]
    client += ["-c", "-e", f"http://127.0.0.1:{port}/", "--transport", "websocket"]
    with running(command, tmp_path / "websocat.log", lambda: listens(port)):
        done = subprocess.run(client, input=b"", capture_output=True, timeout=30, env=environment())
    assert done.stdout.startswith(b"SSH-2.0-")
    assert done.returncode == 71
    assert b"after our end of input, which WebSocket cannot pass on" in done.stderr
