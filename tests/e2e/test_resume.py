"""Tunnels that outlive what happens on their way: a front end that reloads, restarts or dies, and a client that sleeps.

Neither ssh nor sshd notices; scp's file is the same.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.front import Front, front
from tests.support.openssh import Login
from tests.support.processes import conversation, environment, exists, http2tcp, wait_until
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
def cuts(way: Way, count: int) -> Iterator[list[float]]:
    """So many cuts, at random moments, while the block runs. The times at which they were made."""
    made: list[float] = []
    over = threading.Event()

    def work() -> None:
        while len(made) < count and not over.wait(random.uniform(0.05, 0.4)):
            resumed = len(way.records("resumed"))
            way.front.cut()
            made.append(time.monotonic())
            # One that falls into the outage of the last one is no cut.
            wait_until(lambda: over.is_set() or len(way.records("resumed")) > resumed, "it is back")

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
    with cuts(way, CUTS) as made:
        # 2.5 MB/s: so the cuts have time to come.
        done = way.login().run("scp", "-q", "-l", "20000", *arguments, timeout=170)
        assert (done.returncode, done.stderr) == (0, b""), way.said
        assert len(made) == CUTS
    copied = (there if direction == "up" else here).read_bytes()
    assert hashlib.sha256(copied).hexdigest() == hashlib.sha256(data).hexdigest()
