"""The units of examples/systemd: systemd reads them, and their command lines run as systemd starts them."""

from __future__ import annotations

import re
import secrets
import shlex
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.loopback import upgrade
from tests.support.processes import free_port, http2tcp, program
from tests.support.service_manager import ServiceManager, listening

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "examples" / "systemd"
SERVICES = ("http2tcp.service", "http2tcp@.service")
INSTALLED = "/usr/local/bin/http2tcp"


def settings(name: str) -> dict[str, list[str]]:
    """A unit's settings, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(INSTALLED, sys.executable))
    return tmp_path


def analyze(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [program("systemd-analyze"), "--no-pager", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)


def test_systemd_finds_nothing_wrong_with_the_units(installed: Path) -> None:
    names = sorted(f"./{unit.name}" for unit in installed.iterdir())
    done = analyze(installed, "verify", "--man=no", *names)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", SERVICES)
def test_the_documented_verdict_on_the_hardening_is_no_better_than_the_real_one(installed: Path, name: str) -> None:
    done = analyze(installed, "security", "--offline=true", f"./{name}")
    (verdict,) = re.findall(r"Overall exposure level for \S+: (\S+)", done.stdout)
    page = (ROOT / "docs" / "deploy" / "systemd.md").read_text()
    (documented,) = re.findall(r"→ Overall exposure level for http2tcp\.service: (\S+)", page)
    # Newer versions ask for more, and may judge it otherwise.
    assert float(verdict) <= float(documented) + 0.3
    (version,) = re.findall(r"systemd (\d+)", analyze(installed, "--version").stdout)
    if f"systemd\n{version}" in page or f"systemd {version}:" in page:
        assert verdict == documented


def test_both_services_are_hardened_alike() -> None:
    one, other = map(settings, SERVICES)
    for differing in ("Description", "Requires", "After", "ExecStart", "WantedBy"):
        one.pop(differing, None)
        other.pop(differing, None)
    assert one == other


def test_the_service_starts_as_its_unit_says_with_its_socket_and_its_credential(tmp_path: Path) -> None:
    unit = settings("http2tcp.service")
    (start,) = unit["ExecStart"]
    program_path, *arguments = shlex.split(start)
    assert program_path == INSTALLED
    (credential,) = unit["LoadCredential"]
    token = secrets.token_hex()
    (tmp_path / credential.partition(":")[0]).write_text(token + "\n")
    (tmp_path / credential.partition(":")[0]).chmod(0o400)
    (watchdog,) = unit["WatchdogSec"]
    with (
        listening() as sock,
        ServiceManager(
            http2tcp(*arguments),
            tmp_path,
            sockets={"http2tcp.socket": sock},
            watchdog=float(watchdog),
            CREDENTIALS_DIRECTORY=str(tmp_path),
        ) as manager,
    ):
        manager.start()
        assert status(sock.getsockname()[1], token) == 400
        assert status(sock.getsockname()[1], "x" + token) == 401
        manager.reload()
        assert manager.stop() == 0


def test_one_of_two_starts_as_its_unit_says(tmp_path: Path) -> None:
    port = free_port()
    (start,) = settings("http2tcp@.service")["ExecStart"]
    _, *arguments = shlex.split(start.replace("%i", str(port)))
    (tmp_path / "http2tcp.token").touch(0o600)
    (tmp_path / "http2tcp.token").write_text("t0ken\n")
    with ServiceManager(http2tcp(*arguments), tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path)) as manager:
        manager.start()
        assert status(port, "t0ken") == 400
        assert manager.stop() == 0


def test_the_socket_is_where_the_front_ends_examples_look_for_it() -> None:
    (stream,) = settings("http2tcp.socket")["ListenStream"]
    assert f"proxy_pass http://{stream};" in (ROOT / "examples" / "nginx.conf").read_text()


def status(port: int, token: str) -> int:
    """401 for a wrong token; with a good one, 400: no destination is named."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as client:
        client.sendall(upgrade(token=token))
        return int(client.recv(4096).split(b" ")[1])
