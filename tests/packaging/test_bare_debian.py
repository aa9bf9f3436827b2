"""The README's first command, in a Debian that has nothing but Python and its venv module."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import environment, program

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


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    """The root of a new Debian."""
    debootstrap = program("debootstrap")
    if os.getuid() != 0:
        pytest.skip("only root can make a root")
    address, release = mirror()
    directory = tmp_path / "root"
    command = [debootstrap, "--variant=minbase", "--include=python3,python3-venv", release, str(directory), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment())
    try:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        yield directory
    finally:
        # Not into what debootstrap may have left mounted.
        subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], timeout=100, check=True)


def test_one_command_installs_and_runs_it_where_there_is_nothing_else(built: Built, bare: Path) -> None:
    (command,) = re.findall(r"^```sh\n(python3 -m venv .*--demo)\n```", (ROOT / "README.md").read_text(), re.MULTILINE)
    shutil.copytree(built.tree, bare / "root" / "checkout")
    # What pip would fetch; in there, no network is needed.
    wheels = bare / "root" / "wheels"
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--dest",
        str(wheels),
        "hatchling",
        str(built.wheel),
    ]
    run(*download)
    (wheels / built.wheel.name).unlink()
    done = subprocess.run(
        [program("chroot"), str(bare), "/bin/sh", "-c", f"cd /root/checkout && {command}"],
        env={"HOME": "/root", "PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "every byte came back" in done.stdout
