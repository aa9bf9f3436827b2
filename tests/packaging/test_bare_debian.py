"""A new Debian: with nothing but Python in it the README's first command, and with nginx and sshd the tutorial."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import bootstrap
from tests.support.documented import Block, Machine, blocks
from tests.support.machines import machine
from tests.support.processes import program, running

from .conftest import ROOT, Built, run

# debootstrap unpacks a hundred packages, on a slow machine too.
pytestmark = [pytest.mark.usefixtures("index"), pytest.mark.timeout(900)]


def mirror() -> tuple[str, str]:
    """Where this machine gets Debian from, and which release of it."""
    formatted = ("--format", "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI) $(CODENAME)", "Created-By: Packages")
    for line in run(program("apt-get"), "indextargets", *formatted).splitlines():
        origin, label, component, address, release = line.split(" ")
        if (origin, label, component) == ("Debian", "Debian", "main") and "-" not in release:
            return address, release
    pytest.skip("this machine's packages are not Debian's")


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of a new Debian. The tests are in the order in which they put more into it."""
    debootstrap = program("debootstrap")
    if os.getuid() != 0:
        pytest.skip("only root can make a root")
    address, release = mirror()
    directory = tmp_path_factory.mktemp("debian") / "root"
    try:
        bootstrap(debootstrap, directory, release, address, "python3,python3-venv", timeout=600)
        yield directory
    finally:
        # Not into what may still be mounted there.
        subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], timeout=300, check=True)


def bring_wheels(built: Built, directory: Path) -> None:
    """What pip would fetch; in there, no network is needed."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(directory)]
    run(*download, "hatchling", str(built.wheel))
    (directory / built.wheel.name).unlink()


def test_one_command_installs_and_runs_it_where_there_is_nothing_else(built: Built, debian: Path) -> None:
    (command,) = re.findall(r"^```sh\n(python3 -m venv .*--demo)\n```", (ROOT / "README.md").read_text(), re.MULTILINE)
    shutil.copytree(built.tree, debian / "root" / "checkout")
    bring_wheels(built, debian / "root" / "wheels")
    done = subprocess.run(
        [program("chroot"), str(debian), "/bin/sh", "-c", f"cd /root/checkout && {command}"],
        env={"HOME": "/root", "PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "every byte came back" in done.stdout


# --- the tutorial ---------------------------------------------------------------------------------

# Somebody who is new: the shell that a login gets, in the checkout.
PROFILE = """
cd ~/checkout
"""

# As in Debian's own, with a reload that is over when it says so: a test types faster than a person.
RELOAD = """#!/bin/sh
before=$(pgrep -P "$(cat /run/nginx.pid)")
/usr/sbin/nginx "$@" 2> /tmp/said || { cat /tmp/said; exit 1; }
cat /tmp/said
[ "$*" != "-s reload" ] || for worker in $before; do while [ -e /proc/$worker ]; do sleep 0.05; done; done
"""


def furnish(root: Path, built: Built) -> None:
    """What the tutorial asks for: nginx, sshd, a checkout, and a user who may become root and has a key."""
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    inside = (program("chroot"), str(root))
    install = "apt-get -qq update && apt-get -qq --yes --no-install-recommends install"
    run(*inside, "sh", "-c", f"{install} nginx-light openssh-server openssh-client sudo curl procps >/dev/null 2>&1")
    bring_wheels(built, root / "opt/wheels")
    (root / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /opt/wheels\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost {os.uname().nodename}\n::1 localhost\n")
    (root / "usr/local/sbin/nginx").write_text(RELOAD)
    (root / "usr/local/sbin/nginx").chmod(0o755)
    run(*inside, "useradd", "--create-home", "--shell", "/bin/bash", "me")
    (root / "etc/sudoers.d/me").write_text("me ALL=(ALL) NOPASSWD: ALL\n")
    home = root / "home/me"
    shutil.copytree(built.tree, home / "checkout")
    with (home / ".profile").open("a") as profile:
        profile.write(PROFILE)
    run(*inside, "sh", "-c", "install -d -m 755 /run/sshd && chown -R me: /home/me")
    run(
        *inside,
        "su",
        "-",
        "me",
        "-c",
        'install -d -m 700 ~/.ssh && ssh-keygen -q -t ed25519 -N "" -f ~/.ssh/id_ed25519',
    )
    run(*inside, "su", "-", "me", "-c", "cp ~/.ssh/id_ed25519.pub ~/.ssh/authorized_keys")
    # Else ssh asks a person.
    key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    (root / "etc/ssh/ssh_known_hosts").write_text(f"mybox {key}")


def without_tls(block: Block) -> Block:
    """What the tutorial says of a site without it: its lines are not there."""
    commands = [
        command._replace(output=tuple(line for line in command.output if " TLS " not in line))
        for command in block.commands
    ]
    return block._replace(commands=tuple(commands))


def test_who_follows_the_tutorial_with_nginx_and_sshd_alone_logs_in(built: Built, debian: Path, tmp_path: Path) -> None:
    furnish(debian, built)
    (tmp_path / "documented/home/me").mkdir(parents=True)
    with machine() as here:
        here.run("mount", "-t", "proc", "proc", str(debian / "proc"))
        here.run("mount", "--rbind", "/dev", str(debian / "dev"))
        inside = here.command(program("chroot"), str(debian))
        reader = Machine(
            tmp_path / "documented",
            replacements=[
                ("https://example.com/", "http://localhost/"),
                ("sites-available/example.com", "sites-available/default"),
                (r"example\.com", "_"),
            ],
            printed=[("http://localhost/", "https://example.com/")],
            variables={},
            shell=[*inside, "su", "-", "me", "-c"],
        )

        def listens(port: int) -> bool:
            probe = f"import socket; socket.create_connection(('127.0.0.1', {port})).close()"
            return subprocess.run([*inside, "python3", "-c", probe], capture_output=True, timeout=20).returncode == 0

        with (
            running([*inside, "/usr/sbin/sshd", "-D"], tmp_path / "sshd.log", lambda: listens(22)),
            running([*inside, "/usr/sbin/nginx", "-g", "daemon off;"], tmp_path / "nginx.log", lambda: listens(80)),
        ):
            try:
                for block in blocks(ROOT / "docs/tutorial.md"):
                    if block.not_run is None or block.not_run.startswith("tests/packaging"):
                        reader.run(without_tls(block))
            finally:
                reader.end()
