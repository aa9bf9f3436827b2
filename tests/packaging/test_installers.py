"""pip, pipx and uv install it, from the index that this machine has, into environments that are empty."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from http2tcp.version import __version__

from .conftest import Built, run
from .test_contents import DATA

pytestmark = [pytest.mark.usefixtures("index"), pytest.mark.timeout(300)]

_WHICH = "import sys, venv, ensurepip; print(sys.version_info[:2] >= (3, 11), '%d.%d' % sys.version_info[:2])"


def interpreters() -> Iterator[tuple[str, str]]:
    """The versions of Python that are here and that http2tcp is for, with an interpreter of each."""
    directories = [Path(sys.executable).parent, *map(Path, os.get_exec_path()), Path("/usr/bin")]
    # Where pyenv and uv keep theirs.
    for home in (".pyenv/versions", ".local/share/uv/python"):
        directories += sorted(Path.home().glob(f"{home}/*/bin"))
    seen = set()
    for directory in directories:
        for name in ["python3", *(f"python3.{minor}" for minor in range(11, 20))]:
            python = directory / name
            if not os.access(python, os.X_OK):
                continue
            done = subprocess.run([python, "-c", _WHICH], capture_output=True, text=True, timeout=20)
            # A name that leads to no interpreter, such as pyenv's for one that was not chosen, is none.
            suitable, _, version = done.stdout.strip().partition(" ")
            if done.returncode == 0 and suitable == "True" and version not in seen:
                seen.add(version)
                yield version, str(python)


def works(prefix: Path, script: Path, *, compiled: bool) -> None:
    """What was installed below `prefix` is whole and runs."""
    assert run(str(script), "--version") == f"http2tcp {__version__}\n"
    shown = run(str(script), "--demo")
    assert "every byte came back" in shown
    for name in DATA:
        assert (prefix / name).is_file(), name
    (package,) = prefix.glob("lib/python3*/site-packages/http2tcp")
    # Without, each start compiles it anew where the user cannot write: a second, at every login.
    missing = [
        path
        for path in package.rglob("*.py")
        if not list((path.parent / "__pycache__").glob(f"{path.stem}.cpython-*.pyc"))
    ]
    assert not compiled or not missing


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "environment"


@pytest.mark.parametrize("what", ["wheel", "sdist"])
def test_pip_installs_it(built: Built, empty: Path, what: str) -> None:
    run(sys.executable, "-m", "venv", str(empty))
    pip = str(empty / "bin" / "pip")
    run(pip, "install", "--quiet", str(getattr(built, what)))
    assert "No broken requirements" in run(pip, "check")
    works(empty, empty / "bin" / "http2tcp", compiled=True)
    run(pip, "uninstall", "--yes", "http2tcp")
    assert not [name for name in DATA if (empty / name).exists()]


def test_it_runs_on_every_python_that_is_here(built: Built, tmp_path: Path) -> None:
    for version, interpreter in interpreters():
        empty = tmp_path / version
        run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", interpreter, str(empty))
        python = str(empty / "bin" / "python")
        install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
        run(*install, str(built.wheel))
        works(empty, empty / "bin" / "http2tcp", compiled=True)


def test_it_runs_with_the_oldest_libraries_that_it_asks_for(built: Built, empty: Path) -> None:
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, str(empty))
    python = str(empty / "bin" / "python")
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--resolution", "lowest-direct"]
    run(*install, "--python", python, str(built.wheel))
    works(empty, empty / "bin" / "http2tcp", compiled=False)


def test_uv_installs_it_as_a_tool(built: Built, tmp_path: Path) -> None:
    variables = {
        "UV_TOOL_DIR": str(tmp_path / "tools"),
        "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
        "UV_PYTHON": sys.executable,
    }
    run(sys.executable, "-m", "uv", "tool", "install", "--compile-bytecode", str(built.wheel), variables=variables)
    works(tmp_path / "tools" / "http2tcp", tmp_path / "bin" / "http2tcp", compiled=True)


def test_pipx_installs_it_with_its_manual(built: Built, tmp_path: Path) -> None:
    places = {"PIPX_HOME": "home", "PIPX_BIN_DIR": "bin", "PIPX_MAN_DIR": "man"}
    variables = {name: str(tmp_path / place) for name, place in places.items()}
    run(sys.executable, "-m", "pipx", "install", "--python", sys.executable, str(built.wheel), variables=variables)
    works(tmp_path / "home" / "venvs" / "http2tcp", tmp_path / "bin" / "http2tcp", compiled=False)
    assert (tmp_path / "man" / "man1" / "http2tcp.1").is_file()
