"""curl, nc and openssl as clients: what the wire looks like to who has nothing of ours."""

from __future__ import annotations

import subprocess

import pytest

from tests.support.processes import conversation, environment, program
from tests.support.site import Site

BANNER = b"SSH-2.0-OpenSSH"


def curl(site: Site, *arguments: str) -> str:
    command = [program("curl"), "-sS", "-i", "-m", "20", "--cacert", str(site.certificates.ca), *arguments]
    done = subprocess.run(command, capture_output=True, timeout=30, env=environment())
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_curl_without_a_token_is_asked_for_one(site: Site, endpoint: str) -> None:
    head, _, body = curl(site, endpoint).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 401 Unauthorized\r\n")
    assert '\r\nWWW-Authenticate: Bearer realm="http2tcp"' in head
    assert "\r\nProxy-Status: http2tcp; error=http_request_denied" in head
    assert body == "a token is needed\n"


def test_curl_with_the_token_reads_that_an_upgrade_is_missing(site: Site, endpoint: str) -> None:
    # Basic, as who has only curl would try it first.
    head, _, body = curl(site, "-u", f"me:{site.server.token}", endpoint).partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 426 ")
    assert "upgrade" in body
    assert len(body.splitlines()) == 1


def test_a_web_page_that_knows_the_token_opens_no_tunnel(site: Site, endpoint: str) -> None:
    fields = ["Origin: https://evil.example", f"Authorization: Bearer {site.server.token}"]
    fields += ["Connection: Upgrade", "Upgrade: tcp"]
    options = [part for name in fields for part in ("-H", name)]
    answer = curl(site, *options, "--http1.1", f"{endpoint}?addr={site.sshd.address}")
    assert answer.startswith("HTTP/1.1 403 ")
    assert answer.endswith("a web page may not open tunnels\n")


def request(site: Site) -> bytes:
    """What a person would type."""
    lines = [
        f"GET /~http2tcp/?addr={site.sshd.address} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: tcp",
        f"Authorization: Bearer {site.server.token}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def type_in(command: list[str], typed: bytes) -> bytes:
    """Give the program these bytes and leave its stdin open; what it prints until the banner's line ends."""
    with conversation(command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(typed)
        process.stdin.flush()
        printed = b""
        for line in process.stdout:
            printed += line
            if line.startswith((BANNER, b"<html>")):
                break
        return printed


@pytest.mark.parametrize("way", ["nc to nginx", "nc to the server", "openssl to nginx"])
def test_a_request_typed_by_hand_reaches_sshd(site: Site, way: str) -> None:
    http_port, https_port = (url.split(":")[2].split("/")[0] for url in (site.http, site.https))
    openssl = [program("openssl"), "s_client", "-quiet", "-verify_return_error", "-servername", "localhost"]
    commands = {
        "nc to nginx": [program("nc"), "127.0.0.1", http_port],
        "nc to the server": [program("nc"), "127.0.0.1", str(site.server.port)],
        "openssl to nginx": [*openssl, "-CAfile", str(site.certificates.ca), "-connect", f"127.0.0.1:{https_port}"],
    }
    head, _, tunnel = type_in(commands[way], request(site)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"\r\nupgrade: tcp" in head.lower()
    assert tunnel.startswith(BANNER)
