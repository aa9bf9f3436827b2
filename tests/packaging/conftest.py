"""What is released, built once as a release builds it: the sdist from the checkout, the wheel from the sdist."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import environment

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Built:
    """The two files, and the unpacked sdist."""

    sdist: Path
    wheel: Path
    tree: Path


def build(source: Path, target: str, directory: Path) -> Path:
    """Build `sdist` or `wheel` from a tree, with the hatchling that is installed here."""
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(directory), cwd=source)
    (built,) = directory.glob("*.tar.gz" if target == "sdist" else "*.whl")
    return built


def run(*command: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None) -> str:
    """What a command prints, both streams. Raises AssertionError with that where it fails."""
    # The way to the index may be a proxy.
    proxies = {name: value for name, value in os.environ.items() if name.upper().endswith("_PROXY")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**{"NO_COLOR": "1", **proxies, **(variables or {})}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{command[0]}: {done.returncode}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    directory = tmp_path_factory.mktemp("dist")
    sdist = build(ROOT, "sdist", directory)
    with tarfile.open(sdist) as archive:
        archive.extractall(directory, filter="data")
    (tree,) = [path for path in directory.iterdir() if path.is_dir()]
    return Built(sdist, build(tree, "wheel", directory), tree)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The package index that pip is set up for. Without it a test fails in CI, and is skipped on other machines."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries", "1", "-d"]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("probe")), "h11"], capture_output=True, text=True, timeout=100
    )
    if done.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(f"pip reaches no package index: {done.stderr}")
        pytest.skip("pip reaches no package index")
