"""Without a front end: real clients at a server that serves https itself, and a certificate renewed under it."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.nginx import replaced
from tests.support.openssh import Login, Sshd, sshd
from tests.support.processes import conversation, environment, http2tcp, program, wait_until
from tests.support.site import Server, run_server

HUNDRED_MB = 100_000_000
HOOK = Path(__file__).parents[2] / "examples" / "certbot" / "http2tcp"


@dataclass
class Host:
    """A host with an sshd, an http2tcp server that has port 443, so to say, and nothing else."""

    server: Server
    sshd: Sshd
    authority: trustme.CA
    ca_file: Path
    certificate: Path
    key: Path

    @property
    def url(self) -> str:
        return f"https://localhost:{self.server.port}/"

    def client(self, *more: str) -> list[str]:
        """A ProxyCommand."""
        token = ("--token-file", str(self.server.token_file))
        return http2tcp("-c", "-e", self.url, "-d", "%h:%p", *token, "--ca-file", str(self.ca_file), *more)

    def curl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [program("curl"), "-sS", "-m", "20", "--cacert", str(self.ca_file), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment())

    def presented(self) -> bytes:
        """The certificate that the server shows now, in DER."""
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("localhost", self.server.port)))

    def reload(self) -> str:
        """SIGHUP: what the server says of it."""
        before = len(self.server.log)
        self.server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP: " in self.server.log[before:], "the server says what became of SIGHUP")
        return self.server.log[before:]


def issue(authority: trustme.CA, certificate: Path, key: Path) -> bytes:
    """Write a new pair; the certificate in DER."""
    leaf = authority.issue_cert("localhost")
    key.touch(0o600)
    leaf.private_key_pem.write_to_path(str(key))
    certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    return ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())


@contextmanager
def running_host(directory: Path, tls: Path | None = None) -> Iterator[Host]:
    """`tls`: where its certificate and key are."""
    authority = trustme.CA()
    tls = tls or directory
    tls.mkdir(exist_ok=True)
    ca_file, certificate, key = directory / "ca.pem", tls / "fullchain.pem", tls / "privkey.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    issue(authority, certificate, key)
    options = ("--tls-cert", str(certificate), "--tls-key", str(key), "--connect")
    with sshd(directory / "sshd") as running_sshd, run_server(directory / "server", *options) as server:
        yield Host(server, running_sshd, authority, ca_file, certificate, key)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with running_host(tmp_path_factory.mktemp("host")) as host:
        yield host


def pin(certificate: bytes) -> str:
    key = x509.load_der_x509_certificate(certificate).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return f"sha256//{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize("transport", ["auto", "tcp", "http2tcp/1.0", "connect-tcp", "websocket"])
def test_ssh_logs_in_with_the_key_pinned(host: Host, tmp_path: Path, transport: str) -> None:
    client = host.client("--pin-sha256", pin(host.presented()), "--transport", transport)
    done = Login(host.sshd, client, tmp_path).run("ssh", "target", "echo $((6*7)); exit 5")
    assert (done.returncode, done.stdout) == (5, b"42\n"), done.stderr
    assert done.stderr == b""


def test_another_key_than_the_pinned_one_is_no_login(host: Host, tmp_path: Path) -> None:
    done = Login(host.sshd, host.client("--pin-sha256", "00" * 32), tmp_path).run("ssh", "target", "true")
    assert done.returncode == 255
    assert b"http2tcp: TLS: " in done.stderr


@pytest.mark.parametrize("transport", ["connect-tcp", "tcp"])
def test_100_mb_each_way_arrive_unchanged(host: Host, tmp_path: Path, transport: str) -> None:
    data = os.urandom(1_000_000) * (HUNDRED_MB // 1_000_000)
    user = Login(host.sshd, host.client("--transport", transport), tmp_path / "login")
    (tmp_path / "login").mkdir()
    up = user.run("ssh", "target", f"tee {tmp_path}/there | sha256sum", stdin=data, timeout=90)
    assert up.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    down = user.run("ssh", "target", f"cat {tmp_path}/there", timeout=90)
    assert hashlib.sha256(down.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("versions", [("--tls-max", "1.2"), ("--tlsv1.3",), ("--http2",), ("--http1.1",)], ids="-".join)
def test_curl_is_answered_in_http_1_1_whatever_else_it_offers(host: Host, versions: tuple[str, ...]) -> None:
    done = host.curl(
        *versions, "-o", os.devnull, "-w", "%{http_version} %{response_code} %{ssl_verify_result}", host.url
    )
    assert (done.stdout, done.stderr) == ("1.1 401 0", "")


def test_curl_goes_through_connect_as_by_an_https_proxy(host: Host) -> None:
    options = ("-p", "-x", host.url, "--proxy-cacert", str(host.ca_file), "--proxy-user", f"x:{host.server.token}")
    done = host.curl(*options, "--http0.9", "--max-time", "3", f"http://{host.sshd.address}/")
    assert done.stdout.startswith("SSH-2.0-"), done.stderr


def test_a_check_finds_nothing_between(host: Host) -> None:
    command = [argument.replace("%h:%p", host.sshd.address) for argument in host.client("--check")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr


def test_plain_http_is_told_to_use_https(host: Host) -> None:
    command = [argument.replace("https://", "http://") for argument in host.client() if argument != "%h:%p"]
    command.remove("-d")
    done = subprocess.run([*command, "-d", "x:1"], capture_output=True, text=True, timeout=30, env=environment())
    assert done.returncode == 74
    assert done.stderr == "http2tcp: http2tcp server: the server serves https: write https:// in the endpoint\n"
    assert "Traceback" not in host.server.log


def test_a_renewed_certificate_is_served_after_sighup_and_a_broken_one_is_not(tmp_path: Path) -> None:
    with running_host(tmp_path) as host:
        first = host.presented()
        command = Login(host.sshd, host.client(), tmp_path / "login").command("ssh", "target", "read line; echo $line")
        with conversation(command) as ssh:
            assert ssh.stdin is not None
            assert ssh.stdout is not None
            wait_until(lambda: "opened " in host.server.log, "the login's tunnel is open")
            renewed = issue(host.authority, host.certificate, host.key)
            assert host.presented() == first
            said = host.reload()
            assert f"the certificate in {host.certificate} is good until" in said
            assert "SIGHUP: reread, the certificate too; nothing else has changed" in said
            assert host.presented() == renewed
            host.key.write_text("rubbish\n")
            said = host.reload()
            assert f"SIGHUP: {host.key} holds no private key in PEM; everything stays as it was" in said
            assert host.presented() == renewed
            done = Login(host.sshd, host.client(), tmp_path / "second").run("ssh", "target", "echo new")
            assert done.stdout == b"new\n", done.stderr
            ssh.stdin.write(b"still here\n")
            ssh.stdin.flush()
            assert ssh.stdout.readline() == b"still here\n"
            ssh.wait(20)


def test_certbots_hook_renews_the_certificate_while_a_login_is_open(tmp_path: Path) -> None:
    lineage, programs, tls = tmp_path / "live", tmp_path / "bin", tmp_path / "tls"
    for directory in (lineage, programs):
        directory.mkdir()
    with running_host(tmp_path, tls) as host:
        (programs / "systemctl").write_text(
            f'#!/bin/sh\n[ "$*" = "try-reload-or-restart http2tcp.service" ] && kill -HUP {host.server.process.pid}\n'
        )
        (programs / "systemctl").chmod(0o755)
        hook = tmp_path / "hook"
        hook.write_text(
            replaced(
                HOOK.read_text(),
                {"directory=/etc/http2tcp/tls": f"directory={tls}", "group=ssl-cert": f"group={os.getgid()}"},
            )
        )
        hook.chmod(0o755)
        command = Login(host.sshd, host.client(), tmp_path / "login").command("ssh", "target", "read line; echo $line")
        with conversation(command) as ssh:
            assert ssh.stdin is not None
            assert ssh.stdout is not None
            wait_until(lambda: "opened " in host.server.log, "the login's tunnel is open")
            renewed = issue(host.authority, lineage / "fullchain.pem", lineage / "privkey.pem")
            path = os.pathsep.join([str(programs), os.environ["PATH"]])
            variables = environment(PATH=path, RENEWED_LINEAGE=str(lineage))
            subprocess.run([hook], check=True, capture_output=True, timeout=20, env=variables)
            wait_until(lambda: host.presented() == renewed, "the new certificate is served")
            assert (tls / "privkey.pem").stat().st_mode & 0o777 == 0o640
            ssh.stdin.write(b"still here\n")
            ssh.stdin.flush()
            assert ssh.stdout.readline() == b"still here\n"
            ssh.wait(20)
