"""Tunnels that outlive what happens on their way: a front end that reloads, restarts or dies, and a client that sleeps.

Neither ssh nor sshd notices; scp's file is the same.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.front import Front, front
from tests.support.openssh import Login
from tests.support.processes import (
    conversation,
    environment,
    exists,
    free_port,
    http2tcp,
    listens,
    running,
    wait_until,
)
from tests.support.site import Server, Site, run_server

# The reader of the lines that are typed; it says each one once.
ECHO = 'while read -r line; do echo "heard $line"; done; echo bye'
FILE = 20_000_000
CUTS = 20


@dataclass
class Way:
    """A front end of its own, and a server behind it."""

    site: Site
    front: Front
    server: Server
    transport: str
    directory: Path

    def client(self, *more: str, destination: str = "%h:%p") -> list[str]:
        """The client's command line, by this way."""
        options = ["-d", destination, "--transport", self.transport, "--token-file", str(self.server.token_file)]
        certificates = self.site.certificates
        return http2tcp("-c", "-e", self.front.url, "--ca-file", str(certificates.ca), *options, *more)

    def login(self, *more: str) -> Login:
        """A login by this way, whose client writes its pid to a file and its words to another."""
        script = f'echo $$ >{self.pid_file}; exec "$@" 2>{self.said_file}'
        client = ["sh", "-c", script, "sh", *self.client(*more)]
        return Login(self.site.sshd, client, self.directory / "login")

    @property
    def pid_file(self) -> Path:
        return self.directory / "pid"

    @property
    def said_file(self) -> Path:
        return self.directory / "said"

    @property
    def pid(self) -> int:
        """The client's."""
        return int(self.pid_file.read_text())

    @property
    def said(self) -> str:
        """What the client has said on stderr."""
        return self.said_file.read_text()

    def records(self, event: str) -> list[str]:
        """The server's records of an event."""
        return [line for line in self.server.log.splitlines() if f" {event} session=" in line]


@pytest.fixture(params=["https", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["connect-tcp", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def way(site: Site, scheme: str, transport: str, tmp_path: Path) -> Iterator[Way]:
    with run_server(tmp_path / "server") as server:
        with front(tmp_path / "front", scheme, server.port, site.certificates.good) as running:
            yield Way(site, running, server, transport, tmp_path)


@dataclass
class Typing:
    """Somebody who types into an ssh, and reads what comes back."""

    ssh: subprocess.Popen[bytes]

    def type(self, line: str) -> None:
        """One line, and Enter."""
        assert self.ssh.stdin is not None
        self.ssh.stdin.write(line.encode() + b"\n")
        self.ssh.stdin.flush()

    def hears(self, line: str) -> None:
        """The next line of the answer is to this one."""
        assert self.ssh.stdout is not None
        assert self.ssh.stdout.readline() == f"heard {line}\n".encode()

    def says(self, line: str) -> None:
        """Type it, and get the answer."""
        self.type(line)
        self.hears(line)

    def ends(self) -> None:
        """End of input: the other side says goodbye, and ssh ends well."""
        said, _ = self.ssh.communicate(timeout=30)
        assert said == b"bye\n"
        assert self.ssh.returncode == 0


@contextmanager
def typing(way: Way, *more: str) -> Iterator[Typing]:
    """A login by this way."""
    with conversation(way.login(*more).command("ssh", "target", ECHO)) as ssh:
        user = Typing(ssh)
        user.says("hello")
        yield user


def reload(way: Way) -> None:
    way.front.reload()


def restart(way: Way) -> None:
    way.front.restart(0.5)


def kill(way: Way) -> None:
    way.front.kill()
    time.sleep(0.5)
    way.front.start()


def sleep(way: Way) -> None:
    os.kill(way.pid, signal.SIGSTOP)
    way.front.cut()
    time.sleep(2)
    os.kill(way.pid, signal.SIGCONT)


@pytest.mark.parametrize("outage", [reload, restart, kill, sleep])
def test_a_login_goes_on_after_an_outage_and_after_a_second_one(way: Way, outage: Callable[[Way], None]) -> None:
    with typing(way) as user:
        for number in range(2):
            known = len(way.records("resumed"))
            typed = threading.Timer(0.3, user.type, [f"during {number}"])
            typed.start()
            outage(way)
            typed.join()
            user.hears(f"during {number}")
            user.says(f"after {number}")
            wait_until(lambda: len(way.records("resumed")) > known, "it was resumed")  # noqa: B023
        user.ends()
    wait_until(lambda: way.records("ended"), "the session is over at the server")
    (opened,) = way.records("opened")
    (ended,) = way.records("ended")
    assert opened.split("session=")[1].split()[0] in ended
    assert "reason=closed" in ended
    assert f"resumes={len(way.records('resumed'))}" in ended


@contextmanager
def cuts(way: Way, count: int, begun: Callable[[], object]) -> Iterator[list[float]]:
    """So many cuts, at random moments, from when it has begun. The times at which they were made."""
    made: list[float] = []
    over = threading.Event()

    def work() -> None:
        wait_until(lambda: over.is_set() or begun(), "it has begun")
        while len(made) < count and not over.wait(random.uniform(0.02, 0.25)):
            way.front.cut()
            made.append(time.monotonic())
            # One that falls into the outage of the last one is no cut.
            wait_until(lambda: over.is_set() or len(way.records("resumed")) >= len(made), "it is back")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_file_arrives_whole_through_twenty_cuts(way: Way, direction: str, tmp_path: Path) -> None:
    data = os.urandom(1_000_000) * (FILE // 1_000_000)
    there, here = tmp_path / "there", tmp_path / "here"
    (here if direction == "up" else there).write_bytes(data)
    arguments = [str(here), f"target:{there}"] if direction == "up" else [f"target:{there}", str(here)]
    with cuts(way, CUTS, (there if direction == "up" else here).exists) as made:
        # 1.5 MB/s: so the cuts have time to come.
        done = way.login().run("scp", "-q", "-l", "12000", *arguments, timeout=170)
        assert (done.returncode, done.stderr) == (0, b""), way.said
        assert len(made) == CUTS
    copied = (there if direction == "up" else here).read_bytes()
    assert hashlib.sha256(copied).hexdigest() == hashlib.sha256(data).hexdigest()


# --- the end of it --------------------------------------------------------------------------------


@pytest.fixture
def one_way(site: Site, tmp_path: Path) -> Iterator[Way]:
    """For what no transport and no TLS changes."""
    with run_server(tmp_path / "server") as server:
        with front(tmp_path / "front", "http", server.port, site.certificates.good) as running:
            yield Way(site, running, server, "connect-tcp", tmp_path)


def run_client(way: Way, *more: str) -> subprocess.Popen[bytes]:
    """The client alone, to sshd, with pipes: it has said hello."""
    pipe = subprocess.PIPE
    command = way.client(*more, destination=way.site.sshd.address)
    client = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment())
    assert client.stdout is not None
    assert client.stdout.readline().startswith(b"SSH-2.0")
    time.sleep(0.3)
    return client


def test_a_restarted_server_does_not_know_the_session_and_the_client_says_so_at_once(
    site: Site, tmp_path: Path
) -> None:
    port = free_port()
    listen = f"127.0.0.1:{port}"
    with ExitStack() as stack:
        server = stack.enter_context(run_server(tmp_path / "server", listen=listen))
        running = stack.enter_context(front(tmp_path / "front", "http", port, site.certificates.good))
        way = Way(site, running, server, "connect-tcp", tmp_path)
        client = run_client(way)
        token = server.token_file.read_text()
        server.process.kill()
        server.process.wait()
        again = stack.enter_context(run_server(tmp_path / "again", listen=listen))
        again.token_file.write_text(token)
        again.process.send_signal(signal.SIGHUP)
        server.token_file.write_text(token)
        _, said = client.communicate(timeout=20)
    assert client.returncode == 71, said
    assert b"no longer knows the session" in said, said


def test_a_server_that_stays_away_is_given_up_with_the_last_reason(one_way: Way) -> None:
    short = [
        "-c",
        "import http2tcp.client.settings as s; s.RESUME_OF_STDIO = 5.0; from http2tcp.__main__ import main; main()",
    ]
    command = one_way.client(destination=one_way.site.sshd.address)
    command[1:3] = short
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()) as client:
        assert client.stdout is not None
        client.stdout.readline()
        time.sleep(0.3)
        one_way.front.kill()
        _, said = client.communicate(timeout=30)
    assert client.returncode == 71, said
    first, last = said.decode().splitlines()
    assert "connection lost, reconnecting" in first
    assert "did not come back" in last
    assert "connection refused" in last


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_a_long_outage_is_two_lines_and_with_quiet_none(one_way: Way, quiet: tuple[str, ...]) -> None:
    client = run_client(one_way, *quiet)
    one_way.front.kill()
    time.sleep(5)
    one_way.front.start()
    wait_until(lambda: one_way.records("resumed"), "it is back")
    time.sleep(0.5)
    assert client.stdin is not None
    client.stdin.close()
    client.stdin = None
    _, said = client.communicate(timeout=20)
    assert client.returncode == 0, said
    lines = said.decode().splitlines()
    if quiet:
        assert lines == []
    else:
        first, last = lines
        assert "connection lost, reconnecting" in first
        assert "connected again after" in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
@pytest.mark.parametrize("lost", [False, True], ids=["connected", "lost"])
def test_a_signal_ends_the_client_at_once_and_the_server_does_not_wait_for_it(
    one_way: Way, number: signal.Signals, lost: bool
) -> None:
    client = run_client(one_way)
    if lost:
        one_way.front.kill()
        time.sleep(1)
    started = time.monotonic()
    client.send_signal(number)
    _, said = client.communicate(timeout=20)
    assert time.monotonic() - started < 3
    assert client.returncode == (0 if number is signal.SIGHUP else 128 + number), said
    assert said == b""
    if not lost:
        wait_until(lambda: one_way.records("ended"), "the session is over at the server", within=3)
        assert one_way.records("detached") == []


@pytest.mark.parametrize("pace", [0.0, 0.05], ids=["stuck", "slow"])
def test_a_client_that_is_stopped_in_an_upload_leaves_no_session(one_way: Way, pace: float) -> None:
    with socket.create_server(("127.0.0.1", 0)) as service:

        def read_slowly() -> None:
            connection, _ = service.accept()
            with connection:
                connection.sendall(b"hello\n")
                try:
                    while pace and connection.recv(1000):
                        time.sleep(pace)
                    over.wait(30)
                except OSError:
                    pass

        over = threading.Event()
        thread = threading.Thread(target=read_slowly)
        thread.start()
        command = one_way.client(destination=f"127.0.0.1:{service.getsockname()[1]}")
        with (
            open("/dev/zero", "rb") as zeros,
            subprocess.Popen(command, stdin=zeros, stdout=subprocess.PIPE, env=environment()) as client,
        ):
            assert client.stdout is not None
            assert client.stdout.readline() == b"hello\n"
            time.sleep(2)
            started = time.monotonic()
            client.terminate()
            assert client.wait(10) == 128 + signal.SIGTERM
            assert time.monotonic() - started < 3
        wait_until(lambda: one_way.records("ended"), "the session is over at the server", within=9)
        over.set()
        thread.join()


def test_an_ssh_that_is_killed_leaves_no_session(one_way: Way) -> None:
    with typing(one_way) as user:
        time.sleep(0.3)
        user.ssh.kill()
        wait_until(lambda: one_way.records("ended"), "the session is over at the server", within=5)
        assert one_way.records("detached") == []
        wait_until(lambda: not exists(one_way.pid), "the client is gone")


# --- local listeners ------------------------------------------------------------------------------


@contextmanager
def echoing() -> Iterator[int]:
    """A service that sends everything back; its port."""
    with socket.create_server(("127.0.0.1", 0)) as service:

        def serve() -> None:
            while True:
                try:
                    connection, _ = service.accept()
                except OSError:
                    return
                with connection:
                    try:
                        while data := connection.recv(65536):
                            connection.sendall(data)
                    except OSError:
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield service.getsockname()[1]
        service.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["-l", "-L", "-D"])
def test_a_local_listener_s_connections_go_on(one_way: Way, kind: str, tmp_path: Path) -> None:
    port = free_port()
    with echoing() as service:
        forwarded = f"{port}:127.0.0.1:{service}" if kind == "-L" else str(port)
        command = one_way.client(kind, forwarded, destination=f"127.0.0.1:{service}")
        if kind != "-l":
            del command[command.index("-d") : command.index("-d") + 2]
        with running(command, tmp_path / "client.log", lambda: listens(port)):
            with socket.create_connection(("127.0.0.1", port), 20) as program_:
                reader = program_.makefile("rb")
                if kind == "-D":
                    address = bytes([127, 0, 0, 1]) + service.to_bytes(2, "big")
                    program_.sendall(b"\x05\x01\x00")
                    assert reader.read(2) == b"\x05\x00"
                    program_.sendall(b"\x05\x01\x00\x01" + address)
                    assert reader.read(10)[:2] == b"\x05\x00"
                program_.sendall(b"one\n")
                assert reader.readline() == b"one\n"
                one_way.front.cut()
                program_.sendall(b"two\n")
                assert reader.readline() == b"two\n"
                wait_until(lambda: one_way.records("resumed"), "it was resumed")
                program_.shutdown(socket.SHUT_WR)
                assert reader.read() == b""
