"""The whole way that a user's bytes go: nginx with the example's configuration, `http2tcp -s`, sshd."""

from __future__ import annotations

import datetime
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support.nginx import Nginx, example, nginx
from tests.support.openssh import Sshd
from tests.support.processes import free_port, http2tcp, running

# What is replaced in the example, each exactly once: ports, names, paths and the certificate, nothing else.
LISTEN = "listen 443 ssl so_keepalive=60s:10s:3;"
NAME = "server_name example.com;"
CERTIFICATE = "/etc/ssl/example.com/fullchain.pem"
KEY = "/etc/ssl/example.com/privkey.pem"
UPSTREAM = "proxy_pass http://127.0.0.1:12345;"


@dataclass(frozen=True)
class Certificates:
    """A private authority, and files with certificates (and their keys) for localhost that it made."""

    ca: Path
    good: Path
    expired: Path


@dataclass(frozen=True)
class Server:
    """A running `http2tcp -s`."""

    process: subprocess.Popen[bytes]
    port: int
    token: str
    token_file: Path
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()


@dataclass(frozen=True)
class Site:
    """The whole way from an endpoint to an sshd, over https and over http."""

    https: str
    http: str
    nginx_https: Nginx
    nginx_http: Nginx
    server: Server
    sshd: Sshd
    certificates: Certificates

    def client(self, endpoint: str, *more: str, destination: str = "%h:%p") -> list[str]:
        """`http2tcp -c` with what this site needs; by default as a ProxyCommand has it."""
        return http2tcp(
            *("-c", "-e", endpoint, "-d", destination, "--token-file", str(self.server.token_file)),
            *(("--ca-file", str(self.certificates.ca)) if endpoint.startswith("https") else ()),
            *more,
        )


def issue_certificates(directory: Path) -> Certificates:
    """Make the files."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    now = datetime.datetime.now(datetime.UTC)
    long_ago, yesterday = now - datetime.timedelta(days=9), now - datetime.timedelta(days=1)
    good = authority.issue_cert("localhost")
    good.private_key_and_cert_chain_pem.write_to_path(str(directory / "good.pem"))
    expired = authority.issue_cert("localhost", not_before=long_ago, not_after=yesterday)
    expired.private_key_and_cert_chain_pem.write_to_path(str(directory / "expired.pem"))
    return Certificates(directory / "ca.pem", directory / "good.pem", directory / "expired.pem")


@contextmanager
def run_server(directory: Path, *arguments: str, listen: str | None = None) -> Iterator[Server]:
    """`http2tcp -s -v` with a token of its own, on a free port unless told otherwise."""
    directory.mkdir(exist_ok=True)
    token = secrets.token_hex(16)
    token_file = directory / "token"
    token_file.touch(0o600)
    token_file.write_text(token + "\n")
    port = free_port()
    log = directory / "server.log"
    command = http2tcp("-s", "-v", "--token-file", str(token_file), "-l", listen or f"127.0.0.1:{port}", *arguments)
    with running(command, log, lambda: "listening on" in log.read_text()) as process:
        yield Server(process, port, token, token_file, log)


def https_site(port: int, upstream: str, certificate: Path) -> dict[str, str]:
    """The replacements that make the example a site of this machine, before `upstream`."""
    return {
        LISTEN: LISTEN.replace("443", f"127.0.0.1:{port}"),
        NAME: "server_name localhost;",
        CERTIFICATE: str(certificate),
        KEY: str(certificate),
        UPSTREAM: f"proxy_pass {upstream};",
    }


def http_site(port: int, upstream: str, certificate: Path) -> dict[str, str]:
    """The same without TLS."""
    return https_site(port, upstream, certificate) | {LISTEN: f"listen 127.0.0.1:{port};"}


@contextmanager
def run_site(directory: Path, certificates: Certificates, sshd: Sshd) -> Iterator[Site]:
    """Start all of it."""
    with ExitStack() as stack:
        server = stack.enter_context(run_server(directory / "server"))
        upstream = f"http://127.0.0.1:{server.port}"
        running_nginx, ports = {}, {}
        for scheme, replacements in (("https", https_site), ("http", http_site)):
            ports[scheme] = free_port()
            text = example(directory / scheme, replacements(ports[scheme], upstream, certificates.good))
            running_nginx[scheme] = stack.enter_context(nginx(directory / scheme, text, ports[scheme]))
        yield Site(
            https=f"https://localhost:{ports['https']}/~http2tcp/",
            http=f"http://localhost:{ports['http']}/~http2tcp/",
            nginx_https=running_nginx["https"],
            nginx_http=running_nginx["http"],
            server=server,
            sshd=sshd,
            certificates=certificates,
        )
