"""Users of the original http2tcp change one side at a time: our client on its server, its client on ours."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import original
from tests.support.nginx import example, nginx
from tests.support.openssh import Login
from tests.support.processes import environment, free_port, http2tcp, running
from tests.support.site import Site, http_site

LoginTo = Callable[..., Login]

TOKEN = "CaseSensitive"


@dataclass(frozen=True)
class Original:
    """The original's server, by itself and behind the example's nginx."""

    direct: str
    behind_nginx: str

    def client(self, *more: str, destination: str = "%h:%p", endpoint: str | None = None) -> list[str]:
        return http2tcp("-c", "-e", endpoint or self.direct, "-d", destination, "-t", TOKEN, *more)


@pytest.fixture(scope="module")
def its_server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    directory = tmp_path_factory.mktemp("original")
    port, front = free_port(), free_port()
    log = directory / "server.log"
    command = [*original.COMMAND, "server", "-l", f"127.0.0.1:{port}", "-t", TOKEN]
    text = example(directory, http_site(front, f"http://127.0.0.1:{port}", site.certificates.good))
    with running(command, log, lambda: "ready" in log.read_text()), nginx(directory, text, front):
        yield Original(direct=f"127.0.0.1:{port}/p?k=v", behind_nginx=f"http://127.0.0.1:{front}/~http2tcp/")


def run(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, input=b"", capture_output=True, timeout=30, env=environment())


@pytest.mark.parametrize("front_end", [False, True], ids=["direct", "nginx"])
def test_our_client_logs_in_through_its_server(its_server: Original, login: LoginTo, front_end: bool) -> None:
    endpoint = its_server.behind_nginx if front_end else its_server.direct
    client = its_server.client("--transport", "http2tcp/1.0", endpoint=endpoint)
    done = login(client).run("ssh", "target", "cat; exit 5", stdin=b"there and back")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"there and back", b"")


@pytest.mark.parametrize("front_end", [False, True], ids=["direct", "nginx"])
def test_a_target_that_its_server_cannot_reach_is_a_failure(its_server: Original, front_end: bool) -> None:
    endpoint = its_server.behind_nginx if front_end else its_server.direct
    closed = f"127.0.0.1:{free_port()}"
    done = run(its_server.client("--transport", "http2tcp/1.0", endpoint=endpoint, destination=closed))
    assert done.returncode == 70
    assert done.stderr.startswith(b"http2tcp: target: ")
    assert b"probably refused" in done.stderr


def test_a_token_that_its_server_does_not_know_is_told(site: Site, its_server: Original) -> None:
    client = its_server.client("--transport", "http2tcp/1.0", "-t", TOKEN.lower(), destination=site.sshd.address)
    done = run(client)
    assert done.returncode == 68
    assert b"the token is wrong" in done.stderr


def test_who_names_no_transport_logs_in_through_its_server_and_is_told_which(
    its_server: Original, login: LoginTo
) -> None:
    done = login(its_server.client()).run("ssh", "target", "cat; exit 5", stdin=b"there and back")
    assert (done.returncode, done.stdout) == (5, b"there and back")
    (line,) = done.stderr.splitlines()
    assert b"--transport http2tcp/1.0" in line


def test_who_names_another_transport_for_its_server_is_told_which(site: Site, its_server: Original) -> None:
    done = run(its_server.client("--transport", "tcp", destination=site.sshd.address))
    assert done.returncode == 68
    assert b"--transport http2tcp/1.0" in done.stderr


def test_its_client_logs_in_through_our_server(site: Site, login: LoginTo) -> None:
    client = [*original.COMMAND, "client", "-e", site.http + "?k=v", "-d", "%h:%p", "-t", site.server.token]
    done = login(client).run("ssh", "target", "cat; exit 5", stdin=b"there and back")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"there and back", b"")


def test_its_client_ends_with_an_error_where_our_server_cannot_reach_the_target(site: Site, tmp_path: Path) -> None:
    closed = f"127.0.0.1:{free_port()}"
    done = run([*original.COMMAND, "client", "-e", site.http, "-d", closed, "-t", site.server.token])
    assert done.returncode == 1
    assert b"502" in done.stderr


def test_ssh_s_user_reads_that_its_server_could_not_reach_the_target(its_server: Original, login: LoginTo) -> None:
    client = its_server.client("--transport", "http2tcp/1.0", destination=f"127.0.0.1:{free_port()}")
    done = login(client).run("ssh", "target", "true")
    assert done.returncode == 255
    assert done.stderr.startswith(b"http2tcp: target: closed before its first byte")
