"""examples/nginx.conf, as it is but for ports, paths and the certificate."""

from __future__ import annotations

import base64
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nginx import example, nginx
from tests.support.openssh import Login
from tests.support.processes import conversation, environment, free_port, wait_until
from tests.support.site import LISTEN, Site, http_site, https_site, run_server

LoginTo = Callable[..., Login]


def test_a_site_that_serves_http2_to_browsers_still_tunnels(site: Site, login: LoginTo, tmp_path: Path) -> None:
    port = free_port()
    replacements = https_site(port, f"http://127.0.0.1:{site.server.port}", site.certificates.good)
    replacements[LISTEN] = replacements[LISTEN].replace(" ssl ", " ssl http2 ")
    with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
        done = login(site.client(f"https://localhost:{port}/~http2tcp/")).run("ssh", "target", "echo in")
    assert (done.stdout, done.stderr) == (b"in\n", b"")


def test_a_server_on_a_unix_socket_is_reached(site: Site, login: LoginTo, tmp_path: Path) -> None:
    # A path of its own: pytest's are too long for a socket's name at times.
    path = tmp_path / "s"
    upstream = "# proxy_pass http://unix:/run/http2tcp/http2tcp.sock;"
    with run_server(tmp_path / "server", listen=f"unix:{path}") as server:
        port = free_port()
        replacements = https_site(port, "", site.certificates.good)
        # The alternative that the file names in a comment, in place of the one that it uses.
        replacements |= {"proxy_pass http://127.0.0.1:12345;": "", upstream: f"proxy_pass http://unix:{path};"}
        with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
            client = site.client(f"https://localhost:{port}/~http2tcp/", "--token-file", str(server.token_file))
            done = login(client).run("ssh", "target", "echo in")
        assert (done.stdout, done.stderr) == (b"in\n", b"")
        assert "client=unix" in server.log


def test_a_login_survives_a_reload_of_nginx(site: Site, login: LoginTo) -> None:
    command = login().command("ssh", "target", "echo ready; read line; echo got $line")
    with conversation(command) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"ready\n"
        before = site.nginx_https.workers()
        site.nginx_https.reload()
        wait_until(lambda: site.nginx_https.workers() - before, "a new worker runs")
        # A new login is the new worker's.
        assert login().run("ssh", "target", "echo new").stdout == b"new\n"
        output, _ = ssh.communicate(b"after the reload\n", timeout=20)
        assert output == b"got after the reload\n"
    wait_until(lambda: not before & site.nginx_https.workers(), "the old worker ends with its last tunnel")


@pytest.mark.parametrize("transport", ["connect-tcp", "websocket"])
def test_a_silent_login_outlives_a_front_end_s_short_patience(
    site: Site, login: LoginTo, tmp_path: Path, transport: str
) -> None:
    port = free_port()
    replacements = https_site(port, f"http://127.0.0.1:{site.server.port}", site.certificates.good)
    replacements["proxy_read_timeout 1d;"] = "proxy_read_timeout 1s;"
    with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
        endpoint = f"https://localhost:{port}/~http2tcp/"
        framed = site.client(endpoint, "--transport", transport, "--keepalive", "0.3")
        done = login(framed).run("ssh", "target", "sleep 2.5; echo still here")
        assert (done.stdout, done.stderr) == (b"still here\n", b"")


def test_a_login_of_the_site_s_own_goes_along_with_the_token(site: Site, login: LoginTo, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "htpasswd").write_text("ann:{PLAIN}se cret\n")
    replacements = https_site(port, f"http://127.0.0.1:{site.server.port}", site.certificates.good)
    location = "location /~http2tcp/ {"
    replacements[location] = f"{location} auth_basic internal; auth_basic_user_file {tmp_path / 'htpasswd'};"
    with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
        with_login = site.client(f"https://ann:se%%20cret@localhost:{port}/~http2tcp/")
        done = login(with_login).run("ssh", "target", "echo in")
        assert (done.stdout, done.stderr) == (b"in\n", b"")
        client = site.client(f"https://localhost:{port}/~http2tcp/", destination=site.sshd.address)
        without = subprocess.run(client, input=b"", capture_output=True, timeout=20, env=environment())
    assert without.returncode == 67
    assert b"wants a login of its own" in without.stderr


def test_neither_the_token_nor_the_destination_is_in_a_log(site: Site, login: LoginTo) -> None:
    assert login().run("ssh", "target", "echo in").stdout == b"in\n"
    assert login(site.client(site.http)).run("ssh", "target", "echo in").stdout == b"in\n"
    sshd_port = str(site.sshd.port)
    for running_nginx in (site.nginx_https, site.nginx_http):
        wait_until(lambda log=running_nginx: '"GET /~http2tcp/ HTTP/1.1" 101' in log.access_log, "the tunnel's line")
        everything = running_nginx.access_log + running_nginx.error_log + running_nginx.other_log
        assert site.server.token not in everything
        assert "addr=" not in everything
        assert not re.search(rf"(%3A|:){sshd_port}\b", running_nginx.access_log)
    assert f"target=127.0.0.1:{sshd_port}" in site.server.log
    assert site.server.token not in site.server.log
    assert base64.b64encode(site.server.token.encode()).decode() not in site.server.log


# --- what nginx passes on, seen by a server that only listens --------------------------------------


class Upstream:
    """Takes requests from nginx, answers each with 404, and gives their heads."""

    def __init__(self, listener: socket.socket, port: int) -> None:
        self._listener = listener
        self._port = port

    def head(self, *fields: str) -> str:
        """What arrives here of a request with these fields to the location."""
        lines = ["GET /~http2tcp/?addr=a%3A1&k=v HTTP/1.1", "Host: localhost", *fields, "", ""]
        with socket.create_connection(("127.0.0.1", self._port), 20) as client:
            client.sendall("\r\n".join(lines).encode())
            accepted, _ = self._listener.accept()
            with accepted:
                accepted.settimeout(20)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += accepted.recv(65536)
                accepted.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 404")
        return head.decode()


@pytest.fixture(scope="module")
def upstream(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    directory = tmp_path_factory.mktemp("upstream")
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        replacements = http_site(port, f"http://127.0.0.1:{listener.getsockname()[1]}", site.certificates.good)
        with nginx(directory, example(directory, replacements), port):
            yield Upstream(listener, port)


@pytest.mark.parametrize("token", ["tcp", "TCP", "http2tcp/1.0", "Connect-TCP", "connect-tcp-12", "WebSocket"])
def test_a_known_upgrade_reaches_the_server_in_any_case(upstream: Upstream, token: str) -> None:
    head = upstream.head("Connection: upgrade", f"Upgrade: {token}").lower()
    assert f"\r\nupgrade: {token.lower()}\r\n" in head
    assert "\r\nconnection: upgrade\r\n" in head


@pytest.mark.parametrize("token", ["h2c", "tcp, h2c", "h2c, tcp", "tcp ", "tcpx", "xtcp", "TLS/1.0", "-"])
def test_an_unknown_upgrade_is_not_passed_on(upstream: Upstream, token: str) -> None:
    fields = ("Connection: upgrade, http2-settings", f"Upgrade: {token}", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    head = upstream.head(*fields).lower()
    # nginx strips the blank: that one is tcp, and nothing else is.
    assert re.findall(r"\r\nupgrade: (.*)\r\n", head) == (["tcp"] if token == "tcp " else [])


def test_two_upgrades_are_not_passed_on_as_two(upstream: Upstream) -> None:
    head = upstream.head("Connection: upgrade", "Upgrade: tcp", "Upgrade: h2c").lower()
    assert "h2c" not in head


def test_a_client_cannot_pretend_to_be_somebody_else(upstream: Upstream) -> None:
    head = upstream.head("X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.2").lower()
    assert "\r\nx-forwarded-for: 127.0.0.1\r\n" in head
    assert "192.0.2" not in head


def test_the_rest_of_the_request_is_passed_on_as_it_came(upstream: Upstream) -> None:
    fields = ("Origin: https://evil.example", "Authorization: Bearer t", "Http2tcp-Token: t")
    head = upstream.head(*fields)
    assert head.startswith("GET /~http2tcp/?addr=a%3A1&k=v HTTP/1.1\r\n")
    for field in fields:
        assert f"\r\n{field}\r\n" in head
