"""The lock files are complete for every Python and platform: the index is asked, nothing is installed."""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.processes import program
from tests.unit.test_locks import LOCKS, locked

from .conftest import ROOT, run

pytestmark = [pytest.mark.usefixtures("index"), pytest.mark.timeout(300)]

CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
PYTHONS = [each.rpartition(" ")[2] for each in CLASSIFIERS if each.startswith("Programming Language :: Python :: 3.")]


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/lock writes where the releases are known, and no hash is."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "tests").mkdir()
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/uv").symlink_to(Path(sys.executable).parent / "uv")
    for name in ("pyproject.toml", "README.md", "tests/lock"):
        shutil.copy(ROOT / name, checkout / name)
    for name in LOCKS:
        (checkout / name).write_text(re.sub(r" \\\n    --hash=\S+", "", (ROOT / name).read_text()))
    home = {"HOME": str(checkout), "UV_CACHE_DIR": str(checkout / "cache")}
    run(program("bash"), str(checkout / "tests/lock"), variables=home)
    return checkout


@pytest.mark.parametrize("name", LOCKS)
def test_the_hashes_are_those_of_every_file_of_a_release(name: str, anew: Path) -> None:
    found, expected = locked(name), locked(str(anew / name))
    assert {project: version for project, (version, _) in found.items()} == {
        project: version for project, (version, _) in expected.items()
    }
    for project, (_, hashes) in found.items():
        # A project may add files to a release, for a Python that is newer than this lock.
        assert hashes <= expected[project][1], project


@pytest.mark.parametrize("platform", ["x86_64-manylinux_2_36", "aarch64-manylinux_2_36"])
@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_every_supported_python_has_a_release_of_each_that_suits_it(
    name: str, version: str, platform: str, tmp_path: Path
) -> None:
    target = ("--target", str(tmp_path), "--python-version", version, "--python-platform", platform)
    install = (sys.executable, "-m", "uv", "pip", "install", "--dry-run", "--python", sys.executable)
    run(*install, *target, "--require-hashes", "--requirement", str(ROOT / name))
