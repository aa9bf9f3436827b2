"""The units of examples/systemd under a real systemd, set up by the commands of docs/deploy/systemd.md."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.support.booted import Booted, booted
from tests.support.images import Image
from tests.support.processes import conversation, environment, http2tcp, program, running, wait_until

ROOT = Path(__file__).parents[2]

# debootstrap, and builds with packages of Debian and PyPI.
pytestmark = pytest.mark.timeout(900)


def commands() -> list[str]:
    """Of the page's first block, without sudo; what the first one installs is in the image."""
    page = (ROOT / "docs" / "deploy" / "systemd.md").read_text()
    first, *lines = page.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert first == "sudo python3 -m venv /opt/http2tcp && sudo /opt/http2tcp/bin/pip install ."
    return [line.replace("sudo ", "") for line in lines]


@dataclass(frozen=True)
class Host:
    """The machine, and what stands beside it: a target that echoes, and its users' token."""

    machine: Booted
    #: Its /.
    root: Path
    token_file: Path

    def client(self, *more: str, endpoint: str = "http://127.0.0.1:12345/") -> list[str]:
        arguments = ("-c", "-d", "localhost:7007", "-e", endpoint, "--token-file", str(self.token_file))
        return self.machine.beside(*http2tcp(*arguments, *more))

    def echoed(self, data: bytes, *more: str, endpoint: str = "http://127.0.0.1:12345/") -> bytes:
        """What comes back through a tunnel."""
        client = self.client(*more, endpoint=endpoint)
        done = subprocess.run(client, input=data, capture_output=True, timeout=60, env=environment())
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def host(built: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    directory = tmp_path_factory.mktemp("booted")
    image = built["machine"]
    shutil.copytree(ROOT / "examples" / "systemd", image.root / "examples" / "systemd")
    with booted(image) as machine:
        for command in commands():
            machine.run("sh", "-c", command)
        token_file = directory / "token"
        token_file.touch(0o600)
        token_file.write_text(machine.run("cat", "/etc/http2tcp/token"))
        log = directory / "target.log"
        target = machine.beside(
            program("socat"), "-d", "-d", "TCP-LISTEN:7007,bind=127.0.0.1,fork,reuseaddr", "EXEC:cat"
        )
        with running(target, log, lambda: "listening" in log.read_text()):
            yield Host(machine, image.root, token_file)


def answer(tunnel: subprocess.Popen[bytes]) -> bytes:
    """To hello."""
    assert tunnel.stdin is not None
    assert tunnel.stdout is not None
    tunnel.stdin.write(b"hello\n")
    tunnel.stdin.flush()
    return tunnel.stdout.readline()


def test_the_service_starts_with_the_first_login_and_its_sandbox_lets_it_serve(host: Host) -> None:
    assert host.machine.show("http2tcp.socket", "ActiveState") == "active"
    assert host.machine.show("http2tcp.service", "ActiveState") == "inactive"
    # Long enough for the relay to take its quick path.
    data = bytes(range(256)) * 16384
    assert host.echoed(data) == data
    assert host.machine.show("http2tcp.service", "ActiveState") == "active"
    pid = host.machine.show("http2tcp.service", "MainPID")
    # DynamicUser=
    assert 61184 <= int(host.machine.run("stat", "--format=%u", f"/proc/{pid}")) <= 65519
    said = host.machine.journal("http2tcp.service")
    assert [line.split()[0] for line in said if "session=" in line] == ["opened", "ended"]
    assert host.machine.journal("http2tcp.service", "--priority=warning") == []


def test_status_tells_how_many_sessions_are_open_and_a_reload_what_it_came_to(host: Host) -> None:
    with conversation(host.client()) as tunnel:
        assert answer(tunnel) == b"hello\n"
        wait_until(lambda: host.machine.show("http2tcp.service", "StatusText") == "1 session open", "it is told")
        host.machine.run("systemctl", "reload", "http2tcp.service")
        wait_until(lambda: "SIGHUP: reread; nothing has changed" in host.machine.journal("http2tcp.service"), "it is")


def test_a_login_during_a_restart_is_not_refused_but_served_when_the_old_process_has_left(host: Host) -> None:
    with conversation(host.client()) as old:
        assert answer(old) == b"hello\n"
        before = host.machine.show("http2tcp.service", "MainPID")
        host.machine.run("systemctl", "restart", "--no-block", "http2tcp.service")
        wait_until(lambda: host.machine.show("http2tcp.service", "ActiveState") == "deactivating", "it drains")
        assert host.echoed(b"waited\n") == b"waited\n"
        # Its five seconds were over.
        assert old.wait(20) == 71
    assert host.machine.show("http2tcp.service", "MainPID") != before
    assert host.machine.show("http2tcp.service", "NRestarts") == "0"


def test_a_server_that_is_stuck_is_ended_and_started_again(host: Host) -> None:
    impatient = "/run/systemd/system/http2tcp.service.d/impatient.conf"
    host.machine.run("install", "-D", "/dev/stdin", impatient, input="[Service]\nWatchdogSec=1\n")
    host.machine.run("systemctl", "daemon-reload")
    host.machine.run("systemctl", "restart", "http2tcp.service")
    pid = host.machine.show("http2tcp.service", "MainPID")
    host.machine.run("sh", "-c", f"kill -{signal.SIGSTOP.value} {pid}")
    wait_until(lambda: host.machine.show("http2tcp.service", "NRestarts") == "1", "it was started again")
    assert host.echoed(b"again\n") == b"again\n"


def test_of_two_servers_each_has_its_port(host: Host) -> None:
    (line,) = re.findall(r"sudo (systemctl enable --now http2tcp@.*)", (ROOT / "docs/deploy/systemd.md").read_text())
    host.machine.run("systemctl", "stop", "http2tcp.socket", "http2tcp.service")
    host.machine.run("cp", "/examples/systemd/http2tcp@.service", "/etc/systemd/system/")
    host.machine.run("sh", "-c", line)
    for port in (12345, 12346):
        assert host.echoed(b"hello\n", endpoint=f"http://127.0.0.1:{port}/") == b"hello\n"
        host.machine.run("systemctl", "restart", f"http2tcp@{port}.service")
    assert host.echoed(b"hello\n", endpoint="http://127.0.0.1:12346/") == b"hello\n"
    assert not host.machine.run("systemctl", "--failed", "--no-legend")


def test_a_service_without_a_front_end_has_port_443_and_renews_its_certificate_while_a_session_is_open(
    host: Host, tmp_path: Path
) -> None:
    host.machine.run("systemctl", "stop", "http2tcp.socket", "http2tcp.service", "http2tcp@*.service")
    page = (ROOT / "docs" / "deploy" / "without-a-front-end.md").read_text()
    # What Debian's package ssl-cert makes, certbot's hook, and the page's two files.
    host.machine.run("groupadd", "--system", "ssl-cert")
    (install, renew) = (
        line.replace("sudo ", "") for line in re.findall(r"^sudo .*renewal-hooks/deploy/http2tcp$", page, re.MULTILINE)
    )
    shutil.copytree(ROOT / "examples" / "certbot", host.root / "examples" / "certbot")
    host.machine.run("mkdir", "--parents", "/etc/letsencrypt/renewal-hooks/deploy")
    host.machine.run("sh", "-c", install)
    files = re.findall(r"^# (/etc/systemd/system/\S+)\n(.*?)\n(?=\n|```)", page, re.MULTILINE | re.DOTALL)
    assert len(files) == 2
    for name, text in files:
        host.machine.run("install", "-D", "--mode=644", "/dev/stdin", name, input=text)
    host.machine.run("systemctl", "daemon-reload")

    old = renewed(host, tmp_path / "old.pem", renew)
    host.machine.run("systemctl", "start", "http2tcp.socket")
    endpoint = "https://localhost/"
    with conversation(host.client("--ca-file", str(old), endpoint=endpoint)) as tunnel:
        assert answer(tunnel) == b"hello\n"
        new = renewed(host, tmp_path / "new.pem", renew)
        assert host.echoed(b"renewed\n", "--ca-file", str(new), endpoint=endpoint) == b"renewed\n"
        assert answer(tunnel) == b"hello\n"


def renewed(host: Host, ca: Path, hook: str) -> Path:
    """certbot's work: a new certificate, of an authority whose own is put into the file, and the hook."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(ca))
    made = authority.issue_cert("localhost")
    live = "/etc/letsencrypt/live/bastion.example.com"
    for name, blobs in {"fullchain": made.cert_chain_pems, "privkey": [made.private_key_pem]}.items():
        text = b"".join(blob.bytes() for blob in blobs).decode()
        host.machine.run("install", "-D", "--mode=600", "/dev/stdin", f"{live}/{name}.pem", input=text)
    host.machine.run("sh", "-c", hook)
    return ca
