"""The wheel on the newest Python that Debian has, which is the unstable release's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import environment, program

from .conftest import Built, run
from .test_bare_debian import mirror

# debootstrap unpacks a hundred packages, on a slow machine too.
pytestmark = [pytest.mark.usefixtures("index"), pytest.mark.timeout(900)]


@pytest.fixture
def unstable(tmp_path: Path) -> Iterator[Path]:
    """The root of a new Debian unstable. Where that cannot be made today, it is Debian's matter and not ours."""
    debootstrap = program("debootstrap")
    if os.getuid() != 0:
        pytest.skip("only root can make a root")
    directory = tmp_path / "root"
    command = [debootstrap, "--variant=minbase", "--include=python3,python3-venv", "sid", str(directory), mirror()[0]]
    try:
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment(), check=True)
        except subprocess.SubprocessError as error:
            pytest.skip(f"no Debian unstable is to be had: {error}")
        yield directory
    finally:
        # Not into what debootstrap may have left mounted.
        subprocess.run(["rm", "-rf", "--one-file-system", str(directory)], timeout=300, check=True)


def test_it_installs_and_runs_there_without_a_warning(built: Built, unstable: Path) -> None:
    wheels = unstable / "wheels"
    run(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), str(built.wheel))

    def inside(command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [program("chroot"), str(unstable), "/bin/sh", "-euc", command],
            env={"HOME": "/root", "PATH": "/usr/bin:/bin", "PYTHONWARNINGS": "always"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    # pip compiles what it installs, and the compiler warns too.
    installed = inside("python3 -m venv /v && /v/bin/pip install --no-index --find-links /wheels http2tcp")
    shown = inside("/v/bin/http2tcp --demo")
    assert "every byte came back" in shown.stdout
    checked = inside("/v/bin/http2tcp -s -d localhost:22 --check")
    for done in (installed, shown, checked):
        # Those of the libraries are theirs.
        assert "site-packages/http2tcp/" not in done.stderr
