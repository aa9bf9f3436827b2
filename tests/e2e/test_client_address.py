"""The client's address in the server's log, behind real front ends that name it in every way there is."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.front_ends import FRONT_ENDS, FrontEnd, HAProxy, Place
from tests.support.nginx import example, nginx
from tests.support.processes import free_port, listens, program, running, wait_until
from tests.support.site import Server, Site, http_site, run_server

#: Front ends are 127.0.0.1; a client that is another address of loopback can be told from them.
CLIENT = "127.0.0.9"
TRUSTED = ("--trusted-proxy", "127.0.0.1")

SPOOFED = ("X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 6.6.6.6", "Forwarded: for=6.6.6.6")


def greeted(site: Site, port: int, token: str, *fields: str, tls: bool = False) -> int:
    """Open a tunnel to sshd from this address and read its greeting; the client's port."""
    lines = [
        f"GET /~http2tcp/?addr=127.0.0.1:{site.sshd.port} HTTP/1.1",
        *("Host: localhost", "Connection: Upgrade", "Upgrade: tcp", f"Authorization: Bearer {token}", *fields),
    ]
    with ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20, source_address=(CLIENT, 0)))
        own_port: int = plain.getsockname()[1]
        sock: socket.socket = plain
        if tls:
            context = ssl.create_default_context(cafile=str(site.certificates.ca))
            sock = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        received = b""
        while b"SSH-2.0" not in received:
            data = sock.recv(4096)
            assert data, f"the connection ended after {received!r}"
            received += data
            assert received[:13] == b"HTTP/1.1 101 "[: len(received)], received
    return own_port


def client(server: Server) -> tuple[str, str | None]:
    """Whom the one opened session is recorded as: its address, and its port where that is known."""
    (line,) = [line for line in server.log.splitlines() if "opened session=" in line]
    found = re.search(r" client=(\S+)(?: port=(\d+))?", line)
    assert found
    return found[1], found[2]


@contextmanager
def behind_nginx(site: Site, directory: Path, upstream: str, more: Mapping[str, str] = {}) -> Iterator[int]:
    """nginx with its example and these changes to it, over plain http: its port."""
    port = free_port()
    replacements = {**http_site(port, upstream, site.certificates.good), **more}
    with nginx(directory / "nginx", example(directory / "nginx", replacements), port):
        yield port


@pytest.mark.parametrize("front_end", FRONT_ENDS, ids=lambda front_end: front_end.name)
def test_every_example_names_the_client_and_nothing_that_the_client_says_counts(
    site: Site, tmp_path: Path, front_end: FrontEnd
) -> None:
    with run_server(tmp_path / "server", *TRUSTED) as server:
        place = Place(tmp_path / "front", free_port(), f"127.0.0.1:{server.port}", site.certificates.good)
        with front_end.running(place, {}):
            greeted(site, place.port, server.token, *SPOOFED, tls=True)
        assert client(server) == (CLIENT, None)


def test_without_trust_it_is_the_front_end(site: Site, tmp_path: Path) -> None:
    with run_server(tmp_path / "server") as server:
        with behind_nginx(site, tmp_path, f"http://127.0.0.1:{server.port}") as port:
            greeted(site, port, server.token, *SPOOFED)
        assert client(server)[0] == "127.0.0.1"


def test_nginx_at_a_unix_socket_names_the_client(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with run_server(tmp_path / "server", "--trusted-proxy", "unix", listen=f"unix:{path}") as server:
        with behind_nginx(site, tmp_path, f"http://unix:{path}") as port:
            greeted(site, port, server.token, *SPOOFED)
        assert client(server) == (CLIENT, None)
        assert "via=unix" in server.log


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("X-Forwarded-For", "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"),
        ("X-Real-IP", "proxy_set_header X-Real-IP $remote_addr;"),
        ("Forwarded", 'proxy_set_header Forwarded "$http_forwarded, for=$remote_addr;proto=$scheme";'),
    ],
)
def test_nginx_may_add_to_what_the_client_sent_and_name_it_elsewhere(
    site: Site, tmp_path: Path, name: str, line: str
) -> None:
    with run_server(tmp_path / "server", *TRUSTED, "--forwarded-header", name) as server:
        more = {"proxy_set_header X-Forwarded-For $remote_addr;": line}
        if name == "Forwarded":
            more['proxy_set_header Forwarded "";'] = ""
        with behind_nginx(site, tmp_path, f"http://127.0.0.1:{server.port}", more) as port:
            greeted(site, port, server.token, *SPOOFED, 'Forwarded: for="6.6.6.6')
        assert client(server) == (CLIENT, None)


def test_whoever_reaches_the_server_without_the_front_end_says_what_it_likes_in_vain(
    site: Site, tmp_path: Path
) -> None:
    with run_server(tmp_path / "server", *TRUSTED) as server:
        own_port = greeted(site, server.port, server.token, *SPOOFED)
        assert client(server) == (CLIENT, str(own_port))


@pytest.mark.parametrize(
    "sends", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn proxy-v2-options crc32c,unique-id"]
)
@pytest.mark.parametrize("trusted", [(), TRUSTED], ids=["everybody", "a network"])
def test_haproxy_names_the_client_by_the_proxy_protocol(
    site: Site, tmp_path: Path, sends: str, trusted: tuple[str, ...]
) -> None:
    with run_server(tmp_path / "server", "--proxy-protocol", *trusted) as server:
        place = Place(tmp_path / "front", free_port(), f"127.0.0.1:{server.port} {sends}", site.certificates.good)
        with HAProxy().running(place, {}):
            own_port = greeted(site, place.port, server.token, *SPOOFED, tls=True)
        assert client(server) == (CLIENT, str(own_port))


def test_haproxy_s_health_checks_by_the_proxy_protocol_pass_and_leave_no_complaint(site: Site, tmp_path: Path) -> None:
    with run_server(tmp_path / "server", "--proxy-protocol") as server:
        upstream = f"127.0.0.1:{server.port} send-proxy-v2 check inter 50ms rise 1"
        place = Place(tmp_path / "front", free_port(), upstream, site.certificates.good)
        with HAProxy().running(place, {}):
            wait_until(lambda: server.log.count("abandoned") >= 3, "three checks have come")
            greeted(site, place.port, server.token, tls=True)
        assert "refused" not in server.log
        assert client(server)[0] == CLIENT


def test_a_balancer_below_http_names_the_client_too(site: Site, tmp_path: Path) -> None:
    """What it passes on is the client's own connection, so that only the PROXY header can name it."""
    with run_server(tmp_path / "server", "--proxy-protocol") as server:
        port = free_port()
        file = tmp_path / "haproxy.cfg"
        lines = [
            *("defaults", "  mode tcp", "  timeout connect 10s", "  timeout client 60s", "  timeout server 60s"),
            *("listen all", f"  bind 127.0.0.1:{port}", f"  server one 127.0.0.1:{server.port} send-proxy-v2", ""),
        ]
        file.write_text("\n".join(lines))
        with running([program("haproxy"), "-db", "-f", str(file)], tmp_path / "haproxy.log", lambda: listens(port)):
            own_port = greeted(site, port, server.token, *SPOOFED)
        assert client(server) == (CLIENT, str(own_port))


def test_a_front_end_that_does_not_send_the_proxy_header_is_told_of_in_the_log(site: Site, tmp_path: Path) -> None:
    with run_server(tmp_path / "server", "--proxy-protocol") as server:
        with behind_nginx(site, tmp_path, f"http://127.0.0.1:{server.port}") as port:
            with pytest.raises(AssertionError, match="502"):
                greeted(site, port, server.token)
        (line,) = [line for line in server.log.splitlines() if "refused session=" in line]
        assert "client=127.0.0.1" in line
        assert "does not begin with a PROXY header" in line
        assert server.token not in server.log
