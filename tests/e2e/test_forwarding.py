"""-L and -D through nginx with TLS, used by curl, nc and ssh: names, refusals, a Unix socket, a hundred megabytes."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.openssh import Login
from tests.support.processes import environment, free_port, http2tcp, program, running
from tests.support.site import Site

LoginTo = Callable[..., Login]

HUNDRED_MB = 100 * 1000 * 1000
CHUNK = 1 << 20


@dataclass(frozen=True)
class Client:
    """One `http2tcp -c` with all of its listeners."""

    socks: int
    sshd: int
    echo: int
    unix: Path
    log_file: Path


@contextmanager
def echoing() -> Iterator[int]:
    """A service that sends everything back, EOF included: its port."""

    def serve(sock: socket.socket) -> None:
        with sock:
            while data := sock.recv(CHUNK):
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    def accept(listener: socket.socket) -> None:
        try:
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept, args=(listener,))
        acceptor.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join(10)


@pytest.fixture(scope="module")
def client(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("forwarding")
    ports = [free_port() for _ in range(3)]
    unix, log = directory / "web.sock", directory / "client.log"
    web = site.http.split("/")[2]
    with echoing() as echo:
        command = http2tcp(
            *("-c", "-e", site.https, "--token-file", str(site.server.token_file)),
            *("--ca-file", str(site.certificates.ca), "-D", f"{ports[0]}", "-L", f"{ports[1]}:{site.sshd.address}"),
            *("-L", f"localhost:{ports[2]}:127.0.0.1:{echo}", "-L", f"{unix}:{web}"),
        )
        with running(command, log, lambda: log.read_text().count("listening on") >= 4):
            yield Client(ports[0], ports[1], ports[2], unix, log)


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("curl"), "-sS", "-m", "20", "-w", "%{http_code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment())


# What the site says to who has no token: a whole answer of nginx's.
ANSWER = (0, "a token is needed\n401", "")


@pytest.mark.parametrize("option", ["--socks5-hostname", "--socks5"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_reads_a_site_by_socks(client: Client, site: Site, scheme: str, option: str) -> None:
    url = site.https if scheme == "https" else site.http
    done = curl(option, f"127.0.0.1:{client.socks}", "--cacert", str(site.certificates.ca), url)
    assert (done.returncode, done.stdout, done.stderr) == ANSWER


def test_curl_reads_a_site_by_a_unix_socket(client: Client, site: Site) -> None:
    done = curl("--unix-socket", str(client.unix), site.http)
    assert (done.returncode, done.stdout, done.stderr) == ANSWER


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{nobody}/", "(5)"),
        ("http://no-such-name.invalid/", "(4)"),
        ("http://169.254.169.254/latest/meta-data/", "(2)"),
    ],
)
def test_curl_tells_why_a_destination_is_not_reached(client: Client, url: str, words: str) -> None:
    done = curl("--socks5-hostname", f"127.0.0.1:{client.socks}", url.format(nobody=free_port()))
    assert done.returncode == 97
    assert words in done.stderr


def test_ssh_logs_in_by_nc_and_socks(client: Client, login: LoginTo) -> None:
    nc = [program("nc"), "-X", "5", "-x", f"127.0.0.1:{client.socks}", "%h", "%p"]
    done = login(nc).run("ssh", "target", "cat; exit 42", stdin=b"x" * 100_000)
    assert (done.returncode, done.stdout) == (42, b"x" * 100_000)


def test_ssh_logs_in_by_a_local_port(client: Client, login: LoginTo) -> None:
    # Its ProxyCommand is taken away: it connects to the forwarded port itself.
    options = ("-o", "ProxyCommand=none", "-o", "HostName=127.0.0.1", "-o", f"Port={client.sshd}")
    done = login().run("ssh", *options, "target", "echo here; exit 3")
    assert (done.returncode, done.stdout) == (3, b"here\n")


def test_a_hundred_megabytes_are_whole_both_ways_and_end_with_the_half_close(client: Client) -> None:
    """As a dump that is restored through it: everything is sent, then the reply is awaited."""
    sent, received = hashlib.sha256(), hashlib.sha256()
    with socket.create_connection(("127.0.0.1", client.echo), 60) as sock:

        def send() -> None:
            for _ in range(HUNDRED_MB // CHUNK):
                data = os.urandom(CHUNK)
                sent.update(data)
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while data := sock.recv(CHUNK):
            received.update(data)
        sender.join(60)
    assert received.digest() == sent.digest()


def test_a_small_question_and_a_big_answer_by_socks_and_nc(client: Client, tmp_path: Path) -> None:
    """nc half-closes at the end of its input (-N) and waits for the rest."""
    data = os.urandom(5_000_000)
    nc = [program("nc"), "-N", "-X", "5", "-x", f"127.0.0.1:{client.socks}", "127.0.0.1", str(echo_port(client))]
    done = subprocess.run(nc, input=data, capture_output=True, timeout=60, env=environment())
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


def echo_port(client: Client) -> int:
    """Where the echo service itself is."""
    found = re.search(rf":{client.echo}, leads to 127\.0\.0\.1:(\d+)", client.log_file.read_text())
    assert found is not None
    return int(found[1])
