"""`--check` on real front ends, and the lines of configuration that it gives."""

from __future__ import annotations

import http.client
import json
import random
import re
import select
import socket
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from http2tcp.client.front_ends import APACHE, CADDY, ENVOY, HAPROXY, NGINX, SERVER, TRAEFIK, FrontEnd, lines
from http2tcp.protocol.transport import TOKENS
from tests.support.nginx import nginx
from tests.support.processes import PATIENCE, environment, free_port, listens, program, running, wait_until
from tests.support.site import Site
from tests.support.targets import MIB, echo, target

TRANSPORTS = ["connect-tcp", "tcp", "http2tcp/1.0", "websocket"]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment()
    )


def document(command: list[str]) -> dict[str, Any]:
    done = run([*command, "--check", "--json"])
    assert done.stderr == ""
    read: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == read["exit_status"]
    return read


def test_a_login_that_works_is_checked_hop_by_hop(site: Site, endpoint: str) -> None:
    read = document(site.client(endpoint, destination=site.sshd.address))
    assert read["works"] is True
    assert read["transport"] == "connect-tcp"
    hops = [hop["hop"] for hop in read["hops"]]
    tls = ["tls"] if endpoint.startswith("https") else []
    assert hops == ["name", "tcp", *tls, "front_end", *["transport"] * 4, "server", "authorisation", "target"]
    assert all(hop["state"] == "ok" for hop in read["hops"])
    assert {hop["transport"] for hop in read["hops"] if hop["hop"] == "transport"} == set(TRANSPORTS)
    (front_end,) = (hop for hop in read["hops"] if hop["hop"] == "front_end")
    assert front_end["recognised"] == "nginx"
    assert read["hops"][-1]["greeting"].startswith("SSH-2.0-OpenSSH_")
    assert read["hops"][-1]["ms"] is not None


# --- the lines that it gives ----------------------------------------------------------------------


@contextmanager
def advised_nginx(directory: Path, port: int, written: str) -> Iterator[None]:
    text = "events {}\n" + written.replace("server {\n", f"server {{\n        listen 127.0.0.1:{port};\n") + "\n"
    with nginx(directory, "\n" + text, port):
        yield


@contextmanager
def advised_haproxy(directory: Path, port: int, written: str) -> Iterator[None]:
    times = "\n".join(f"    timeout {name} 10s" for name in ("connect", "client", "server"))
    bound = written.replace("THE-ONE-THAT-BINDS-THE-PORT\n", f"site\n    bind 127.0.0.1:{port}\n")
    with started(
        directory, port, f"defaults\n{times}\n{bound}\n", lambda file: [program("haproxy"), "-db", "-f", file]
    ):
        yield


@contextmanager
def advised_apache(directory: Path, port: int, written: str) -> Iterator[None]:
    modules = "\n".join(
        f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so"
        for name in ("mpm_event", "authz_core", "headers", "proxy", "proxy_http")
    )
    text = f"""ServerRoot {directory}
ServerName localhost
DefaultRuntimeDir {directory}
PidFile {directory}/pid
ErrorLog {directory}/error.log
User nobody
Listen 127.0.0.1:{port}
{modules}
{written}
"""
    with started(directory, port, text, lambda file: [program("apache2"), "-D", "FOREGROUND", "-f", file]):
        yield


@contextmanager
def advised_caddy(directory: Path, port: int, written: str) -> Iterator[None]:
    text = f"{{\n    admin off\n}}\nhttp://localhost:{port} {{\n    bind 127.0.0.1\n{written}\n}}\n"
    command = [program("caddy"), "run", "--adapter", "caddyfile", "--config"]
    with started(directory, port, text, lambda file: [*command, file]):
        yield


@contextmanager
def advised_envoy(directory: Path, port: int, written: str) -> Iterator[None]:
    # Its last line says that a cluster belongs to it.
    *manager, cluster = written.splitlines()
    (server,) = re.findall(r"cluster http2tcp, .* endpoint is (\S+)$", cluster)
    host, _, upstream = server.rpartition(":")
    kind = "type.googleapis.com/envoy.extensions.filters"
    text = f"""
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": {kind}.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: site
          http_filters: [{{name: router, typed_config: {{"@type": {kind}.http.router.v3.Router}}}}]
{textwrap.indent(chr(10).join(manager), " " * 10)}
  clusters:
  - name: http2tcp
    load_assignment:
      cluster_name: http2tcp
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {upstream}}}}}}}
"""
    # Without what Envoy keeps for a successor.
    command = [program("envoy"), "--disable-hot-restart", "--config-path"]
    with started(directory, port, text, lambda file: [*command, file], suffix=".yaml"):
        yield


@contextmanager
def advised_traefik(directory: Path, port: int, written: str) -> Iterator[None]:
    # It listens before it has read the other file: this path says when it has.
    sign = '    sign: {rule: "Path(`/sign`)", service: noop@internal}'
    (directory / "dynamic.yml").write_text(written.replace("  routers:\n", f"  routers:\n{sign}\n"))
    text = f"""
entryPoints: {{site: {{address: "127.0.0.1:{port}"}}}}
providers: {{file: {{filename: {directory}/dynamic.yml}}}}
"""

    def loaded() -> bool:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            connection.request("GET", "/sign")
            return connection.getresponse().status != 404

    with started(directory, port, text, lambda file: [program("traefik"), f"--configfile={file}"], suffix=".yml"):
        wait_until(loaded, "it has read its file")
        yield


@contextmanager
def started(
    directory: Path, port: int, text: str, command: Callable[[str], list[str]], *, suffix: str = ""
) -> Iterator[None]:
    file = directory / f"configuration{suffix}"
    file.write_text(text)
    env = environment(HOME=str(directory))
    with running(command(str(file)), directory / "log", lambda: listens(port), env=env):
        yield


Advised = Callable[[Path, int, str], AbstractContextManager[None]]
ADVISED: list[tuple[FrontEnd, Advised]] = [
    (NGINX, advised_nginx),
    (HAPROXY, advised_haproxy),
    (APACHE, advised_apache),
    (CADDY, advised_caddy),
    (ENVOY, advised_envoy),
    (TRAEFIK, advised_traefik),
]


@pytest.mark.parametrize(("front_end", "start"), ADVISED, ids=lambda value: getattr(value, "name", ""))
def test_with_its_lines_a_front_end_passes_every_transport(
    site: Site, front_end: FrontEnd, start: Advised, tmp_path: Path
) -> None:
    port = free_port()
    written = "\n".join(lines(front_end, "/here/")).replace(SERVER, f"127.0.0.1:{site.server.port}")
    with start(tmp_path, port, written):
        read = document(site.client(f"http://localhost:{port}/here/", destination=site.sshd.address))
    assert read["works"] is True
    passed = [hop["transport"] for hop in read["hops"] if hop["hop"] == "transport" and hop["state"] == "ok"]
    assert passed == TRANSPORTS


@pytest.mark.parametrize(("front_end", "start"), ADVISED, ids=lambda value: getattr(value, "name", ""))
def test_with_its_lines_a_front_end_passes_no_other_upgrade(
    front_end: FrontEnd, start: Advised, tmp_path: Path
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(PATIENCE)
        server = f"127.0.0.1:{upstream.getsockname()[1]}"
        with start(tmp_path, port, "\n".join(lines(front_end)).replace(SERVER, server)):
            for asked in ("h2c", "tcp, h2c", "tcpx", "xtcp", "connect-tcp-13"):
                assert upgrades(passed_on(port, upstream, asked)) == [], asked
            for token in TOKENS:
                for spelling in (token, token.upper()):
                    seen = upgrades(passed_on(port, upstream, spelling))
                    assert [name.lower() for name in seen] == [token]


@pytest.mark.parametrize(("front_end", "start"), ADVISED, ids=lambda value: getattr(value, "name", ""))
def test_with_its_lines_nobody_can_say_that_he_is_somebody_else(
    front_end: FrontEnd, start: Advised, tmp_path: Path
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        upstream.settimeout(PATIENCE)
        server = f"127.0.0.1:{upstream.getsockname()[1]}"
        with start(tmp_path, port, "\n".join(lines(front_end)).replace(SERVER, server)):
            head = passed_on(port, upstream, "tcp", "X-Forwarded-For: 203.0.113.9", "Forwarded: for=203.0.113.9")
    assert "203.0.113.9" not in head
    assert re.findall(r"^x-forwarded-for: *(.*?)\r$", head, re.MULTILINE | re.IGNORECASE) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("front_end", "start"), [(HAPROXY, advised_haproxy), (APACHE, advised_apache), (TRAEFIK, advised_traefik)]
)
def test_these_keep_half_close_of_bare_bytes_on_plain_http(
    site: Site, front_end: FrontEnd, start: Advised, tmp_path: Path
) -> None:
    port, sent = free_port(), random.Random(0).randbytes(MIB)
    written = "\n".join(lines(front_end)).replace(SERVER, f"127.0.0.1:{site.server.port}")
    with start(tmp_path, port, written), target(echo) as destination:
        client = site.client(f"http://localhost:{port}/~http2tcp/", "--transport", "tcp", destination=destination)
        done = subprocess.run(client, input=sent, capture_output=True, timeout=60, env=environment())
    assert (done.returncode, done.stdout == sent, done.stderr) == (0, True, b"")


def passed_on(port: int, upstream: socket.socket, upgrade: str, *fields: str) -> str:
    """The head that comes to the server behind a front end of a request with this Upgrade; none where that says 403."""
    lines = ["GET /~http2tcp/?addr=a%3A1 HTTP/1.1", "Host: localhost", "Connection: Upgrade", f"Upgrade: {upgrade}"]
    # HAProxy holds WebSocket requests to RFC 6455.
    lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", *fields]
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode())
        ready, _, _ = select.select([upstream, client], [], [], PATIENCE)
        if client in ready:
            assert client.recv(65536).startswith(b"HTTP/1.1 403")
            return ""
        accepted, _ = upstream.accept()
        with accepted:
            accepted.settimeout(PATIENCE)
            head = b""
            while b"\r\n\r\n" not in head:
                head += accepted.recv(65536)
            accepted.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 404")
    return head.decode()


def upgrades(head: str) -> list[str]:
    return re.findall(r"^upgrade: *(.*?)\r$", head, re.MULTILINE | re.IGNORECASE)
