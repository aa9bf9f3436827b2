"""Logins from behind real corporate proxies: squid, tinyproxy, microsocks."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.openssh import Login
from tests.support.processes import conversation, environment, exists, free_port, wait_until
from tests.support.real_proxies import NAME, PASSWORD, USER, WITH_LOGIN, WITHOUT_LOGIN, Proxies, run_proxies
from tests.support.site import Site

LoginTo = Callable[..., Login]

HUNDRED_MB = 100 * 1000 * 1000


@pytest.fixture(scope="module")
def proxies(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    with run_proxies(tmp_path_factory.mktemp("proxies"), site.certificates.good) as running_proxies:
        yield running_proxies


@pytest.mark.parametrize("name", [*WITHOUT_LOGIN, *WITH_LOGIN])
def test_a_login_goes_through_each_proxy(
    site: Site, login: LoginTo, proxies: Proxies, tmp_path: Path, name: str
) -> None:
    # In a file, as a user keeps a password from others.
    file = tmp_path / "proxy"
    file.touch(0o600)
    file.write_text(proxies.url(name) + "\n")
    done = login(site.client(site.https, "--proxy", f"@{file}")).run("ssh", "target", "echo here; exit 42")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"here\n", b"")


@pytest.mark.parametrize("name", WITHOUT_LOGIN)
def test_a_site_without_tls_is_reached_through_each_proxy_too(
    site: Site, login: LoginTo, proxies: Proxies, name: str
) -> None:
    options = ("--proxy", proxies.url(name), "--ca-file", str(site.certificates.ca))
    done = login(site.client(site.http, *options)).run("ssh", "target", "echo here")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"here\n", b"")


@pytest.mark.parametrize("transport", ["connect-tcp", "tcp"])
@pytest.mark.parametrize("name", ["http squid", "https squid", "socks5h microsocks"])
def test_100_mb_each_way_arrive_unchanged(
    site: Site, login: LoginTo, proxies: Proxies, tmp_path: Path, name: str, transport: str
) -> None:
    data = os.urandom(1_000_000) * (HUNDRED_MB // 1_000_000)
    user = login(site.client(site.https, "--transport", transport, "--proxy", proxies.url(name)))
    up = user.run("ssh", "target", f"tee {tmp_path}/there | sha256sum", stdin=data, timeout=90)
    assert up.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest(), up.stderr
    down = user.run("ssh", "target", f"cat {tmp_path}/there", timeout=90)
    assert hashlib.sha256(down.stdout).digest() == hashlib.sha256(data).digest()
    (tmp_path / "there").unlink()


def run(site: Site, endpoint: str, *options: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The client by hand, as docs/exit-codes.md shows it."""
    command = site.client(endpoint, *options, destination=site.sshd.address)
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, env=environment(**variables)
    )


def behind(site: Site) -> tuple[str, tuple[str, ...]]:
    """The site by a name that squid knows and this machine does not, and what verifies its certificate."""
    return site.https.replace("localhost", NAME), ("--tls-server-name", "localhost")


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_the_environment_s_proxy_is_used_and_verbose_says_so(site: Site, proxies: Proxies, variable: str) -> None:
    endpoint, options = behind(site)
    done = run(site, endpoint, "-v", *options, **{variable: proxies.url("http squid")})
    assert done.stdout.startswith(b"SSH-2.0-"), done.stderr
    assert f"through the proxy {proxies.url('http squid')} (from {variable})" in done.stderr.decode()
    assert f"CONNECT {NAME}:" in proxies.squid_log.read_text()


def test_http_proxy_is_for_sites_without_tls_and_uses_connect_too(site: Site, proxies: Proxies) -> None:
    endpoint = site.http.replace("localhost", NAME)
    done = run(site, endpoint, HTTP_PROXY=proxies.url("http squid"))
    assert done.stdout.startswith(b"SSH-2.0-"), done.stderr
    port = re.search(r":([0-9]+)/", endpoint)
    assert port is not None
    wait_until(lambda: f"CONNECT {NAME}:{port[1]} " in proxies.squid_log.read_text(), "squid's log has it")


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (("--no-proxy",), {}),
        ((), {"HTTP2TCP_NO_PROXY": "1"}),
        ((), {"NO_PROXY": f"other,.{NAME}"}),
        ((), {"no_proxy": "*"}),
    ],
)
def test_what_is_to_be_reached_without_the_proxy_is_not_looked_for_there(
    site: Site, proxies: Proxies, options: tuple[str, ...], variables: dict[str, str]
) -> None:
    endpoint, verify = behind(site)
    done = run(site, endpoint, *verify, *options, HTTPS_PROXY=proxies.url("http squid"), **variables)
    # This machine does not know the name.
    assert done.returncode == 64, done.stderr
    assert done.stderr.startswith(b"http2tcp: name: ")


def test_a_loopback_endpoint_is_reached_without_the_environment_s_proxy(site: Site, login: LoginTo) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = run(site, site.https, HTTPS_PROXY=nowhere, ALL_PROXY=nowhere)
    assert done.stdout.startswith(b"SSH-2.0-"), done.stderr


@pytest.mark.parametrize("name", ["http squid-login", "https squid-login", "http tinyproxy-login"])
@pytest.mark.parametrize(
    ("login", "words"),
    [("", "wants a login (407; it offers Basic)"), (f"{USER}:wr0ng@", "does not take this user and password (40")],
)
def test_a_proxy_that_wants_a_password_is_the_hop_that_is_named(
    site: Site, proxies: Proxies, name: str, login: str, words: str
) -> None:
    done = run(site, site.https, "--proxy", proxies.url(name, login))
    said = done.stderr.decode()
    assert done.returncode == 75
    assert said.startswith("http2tcp: proxy: http")
    assert words in said
    assert "wr0ng" not in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("login", "words"), [("", "wants a login"), (f"{USER}:wr0ng@", "does not take this user and password")]
)
def test_a_socks_proxy_that_wants_a_password_is_the_hop_that_is_named(
    site: Site, proxies: Proxies, login: str, words: str
) -> None:
    done = run(site, site.https, "--proxy", proxies.url("socks5h microsocks-login", login))
    assert done.returncode == 75
    assert words in done.stderr.decode()
    assert b"wr0ng" not in done.stderr


@pytest.mark.parametrize("name", WITHOUT_LOGIN)
def test_an_endpoint_that_the_proxy_cannot_reach_is_told(site: Site, proxies: Proxies, name: str) -> None:
    port = free_port()
    options = ("--proxy", proxies.url(name), "--ca-file", str(site.certificates.ca))
    done = run(site, f"https://127.0.0.1:{port}/", *options)
    said = done.stderr.decode()
    assert done.returncode == 75
    assert f"127.0.0.1:{port}" in said
    assert "cannot reach" in said or "does not connect to" in said, said


def test_a_destination_that_the_proxy_forbids_is_told(site: Site, proxies: Proxies) -> None:
    done = run(site, "https://127.0.0.1:9/", "--proxy", proxies.url("http squid"))
    assert done.returncode == 75
    assert "answered 403 Forbidden: it does not allow 127.0.0.1:9" in done.stderr.decode()


@pytest.mark.parametrize(
    "name", ["http squid", "http tinyproxy-login", "socks5 microsocks", "socks5h microsocks-login"]
)
def test_ssh_takes_the_connection_over_from_behind_a_proxy(
    site: Site, login: LoginTo, proxies: Proxies, tmp_path: Path, name: str
) -> None:
    pid_file = tmp_path / "pid"
    client = site.client(site.http, "--fdpass", "--proxy", proxies.url(name))
    client = ["sh", "-c", f'echo $$ >{pid_file}; exec "$@"', "sh", *client]
    command = login(client, options=["ProxyUseFdpass yes"]).command("ssh", "target", "echo ready; read line; exit 6")
    with conversation(command) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        wait_until(lambda: not exists(int(pid_file.read_text())), "the client is gone")
        ssh.communicate(b"\n", timeout=20)
        assert ssh.returncode == 6


def test_the_password_is_not_in_the_process_list(site: Site, proxies: Proxies, login: LoginTo, tmp_path: Path) -> None:
    file, pid_file = tmp_path / "proxy", tmp_path / "pid"
    file.touch(0o600)
    file.write_text(proxies.url("http squid-login") + "\n")
    client = site.client(site.https, "--proxy", f"@{file}")
    client = ["sh", "-c", f'echo $$ >{pid_file}; exec "$@"', "sh", *client]
    with conversation(login(client).command("ssh", "target", "echo ready; read line")) as ssh:
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        shown = Path(f"/proc/{int(pid_file.read_text())}/cmdline").read_bytes()
        assert b"--proxy" in shown
        assert PASSWORD.encode() not in shown
        ssh.communicate(b"\n", timeout=20)
