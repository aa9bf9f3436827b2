"""The whole way, once a session: nginx with the example's configuration, an http2tcp server, an sshd."""

from __future__ import annotations

import datetime
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.support.nginx import Nginx, example, nginx
from tests.support.openssh import Login, Sshd, sshd
from tests.support.processes import free_port, http2tcp, running

# What e2e replaces in the example, each exactly once: ports, paths and the certificate, nothing else.
LISTEN = "listen 443 ssl so_keepalive=60s:10s:3;"
CERTIFICATE = "/etc/ssl/example.com/fullchain.pem"
KEY = "/etc/ssl/example.com/privkey.pem"
NAME = "server_name example.com;"
UPSTREAM = "proxy_pass http://127.0.0.1:12345;"


@dataclass(frozen=True)
class Certificates:
    """One private authority, and files of certificates for localhost that it made."""

    ca: Path
    good: Path
    expired: Path


@dataclass(frozen=True)
class Server:
    """A running `http2tcp -s`."""

    port: int
    token: str
    token_file: Path
    log: Path


@dataclass(frozen=True)
class Site:
    """The whole way from an endpoint to an sshd."""

    https: str
    http: str
    tls: Nginx
    plain: Nginx
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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, not_after in (("good", None), ("expired", yesterday)):
        certificate = authority.issue_cert(
            "localhost", not_before=yesterday - datetime.timedelta(days=1), not_after=not_after
        )
        certificate.private_key_and_cert_chain_pem.write_to_path(str(directory / f"{name}.pem"))
    return Certificates(directory / "ca.pem", directory / "good.pem", directory / "expired.pem")


@pytest.fixture(scope="session")
def an_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running_sshd:
        yield running_sshd


@contextmanager
def run_server(directory: Path, *arguments: str, port: int | None = None) -> Iterator[Server]:
    """`http2tcp -s` with a token of its own, on a free port or that one, or where `-l unix:…` says."""
    directory.mkdir(exist_ok=True)
    token = secrets.token_hex(16)
    token_file = directory / "token"
    token_file.touch(0o600)
    token_file.write_text(token + "\n")
    port = port or free_port()
    log = directory / "server.log"
    listen = () if "-l" in arguments else ("-l", f"127.0.0.1:{port}")
    command = http2tcp("-s", "-v", "--token-file", str(token_file), *listen, *arguments)
    with running(command, log, lambda: "listening on" in log.read_text()):
        yield Server(port, token, token_file, log)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, an_sshd: Sshd) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with ExitStack() as stack:
        server = stack.enter_context(run_server(directory / "server"))
        https, http = free_port(), free_port()
        tls = stack.enter_context(
            nginx(directory / "https", example(directory / "https", https_site(https, server, certificates)), https)
        )
        # The same file as a site without TLS.
        replacements = https_site(http, server, certificates) | {LISTEN: f"listen 127.0.0.1:{http};"}
        plain = stack.enter_context(nginx(directory / "http", example(directory / "http", replacements), http))
        yield Site(
            f"https://localhost:{https}/~http2tcp/",
            f"http://localhost:{http}/~http2tcp/",
            tls,
            plain,
            server,
            an_sshd,
            certificates,
        )


def https_site(port: int, server: Server, certificates: Certificates) -> dict[str, str]:
    """The replacements that make the example a site of this machine."""
    return {
        LISTEN: LISTEN.replace("443", f"127.0.0.1:{port}"),
        NAME: "server_name localhost;",
        CERTIFICATE: str(certificates.good),
        KEY: str(certificates.good),
        UPSTREAM: UPSTREAM.replace("12345", str(server.port)),
    }


@pytest.fixture(params=["https", "http"])
def endpoint(request: pytest.FixtureRequest, site: Site) -> str:
    """The site's endpoint, over https and over http."""
    return site.https if request.param == "https" else site.http


LoginTo = Callable[..., Login]


@pytest.fixture
def login(site: Site, tmp_path: Path) -> LoginTo:
    """Make a Login: through the site over https, unless told otherwise."""
    number = itertools.count()

    def make(proxy_command: Sequence[str] | None = None, *, options: Sequence[str] = ()) -> Login:
        directory = tmp_path / f"login{next(number)}"
        return Login(site.sshd, proxy_command or site.client(site.https), directory, options)

    return make


@contextmanager
def front_end(directory: Path, server_block: str) -> Iterator[tuple[Nginx, int]]:
    """nginx with one server block of a test's own, and its port. `listen` is there already."""
    port = free_port()
    text = f"events {{}}\nhttp {{\nserver {{\nlisten 127.0.0.1:{port};\n{server_block}\n}}\n}}\n"
    with nginx(directory, text, port) as running_nginx:
        yield running_nginx, port
