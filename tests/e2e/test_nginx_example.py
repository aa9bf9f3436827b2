"""examples/nginx.conf, as it is but for ports, paths and the certificate."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.nginx import example, nginx
from tests.support.openssh import Login
from tests.support.processes import conversation, environment, free_port, wait_until
from tests.support.site import LISTEN, Site, https_site, run_server

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
    replacements["proxy_read_timeout 1d;"] = "proxy_read_timeout 2s;"
    with nginx(tmp_path / "nginx", example(tmp_path / "nginx", replacements), port):
        endpoint = f"https://localhost:{port}/~http2tcp/"
        framed = site.client(endpoint, "--transport", transport, "--keepalive", "1")
        done = login(framed).run("ssh", "target", "sleep 4.5; echo still here")
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
    both = (site.nginx_https, site.nginx_http)
    tunnel = '"GET /~http2tcp/ HTTP/1.1" 101'
    wait_until(lambda: all(tunnel in running_nginx.access_log for running_nginx in both), "the tunnels' lines")
    for running_nginx in both:
        assert site.server.token not in running_nginx.access_log + running_nginx.error_log + running_nginx.other_log
        # nginx quotes the query in its error lines, such as for an ssh that leaves before its last bytes are taken.
        assert "addr=" not in running_nginx.access_log + running_nginx.other_log
        assert not re.search(rf"(%3A|:){sshd_port}\b", running_nginx.access_log)
    assert f"target=127.0.0.1:{sshd_port}" in site.server.log
    assert site.server.token not in site.server.log
    assert base64.b64encode(site.server.token.encode()).decode() not in site.server.log
