"""docs/install.md, followed by a new user: every command, in a home directory that is empty."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from http2tcp.version import __version__
from tests.support.processes import program

from .conftest import ROOT, Built, run

pytestmark = [pytest.mark.usefixtures("index"), pytest.mark.timeout(300)]

PAGE = (ROOT / "docs" / "install.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """A new user's variables. On the PATH are the tools of this environment, and what pipx and uv will put there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("pipx", "uv"):
        (tools / name).symlink_to(Path(sys.executable).parent / name)
    (tools / "python3").symlink_to(sys.executable)
    path = os.pathsep.join([str(tmp_path / "home/.local/bin"), str(tools), "/usr/bin", "/bin"])
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home"), "PATH": path, "UV_PYTHON": sys.executable}


@pytest.fixture
def checkout(built: Built, tmp_path: Path) -> Path:
    """A copy of the sources, which the commands may write to."""
    return shutil.copytree(built.tree, tmp_path / "checkout")


def type_in(block: str, checkout: Path, user: dict[str, str]) -> str:
    return run(program("bash"), "-eu", "-c", block, cwd=checkout, variables=user)


def blocks(*beginnings: str) -> list[str]:
    """The page's blocks that begin so, in the order of the page."""
    found = [block for block in BLOCKS if block.startswith(beginnings)]
    assert len(found) == len(beginnings)
    return found


def test_no_command_of_the_page_is_left_out_here() -> None:
    assert len(BLOCKS) == 8


def test_pip_its_links_and_its_upgrade(checkout: Path, user: dict[str, str]) -> None:
    install, links, wheel, bash, fish, upgrade = blocks(
        "python3 -m venv",
        "mkdir -p ~/.local/bin",
        "~/.local/share/http2tcp/bin/pip wheel",
        "mkdir -p ~/.local/share/bash-completion",
        "mkdir -p ~/.config/fish",
        "~/.local/share/http2tcp/bin/pip install --upgrade",
    )
    for block in (install, links, bash, fish):
        type_in(block, checkout, user)
    assert type_in("http2tcp --version", checkout, user) == f"http2tcp {__version__}\n"
    home = Path(user["HOME"])
    assert (home / ".local/share/man/man1/http2tcp.1").read_text() == (ROOT / "docs/man/http2tcp.1").read_text()
    assert "complete -F" in (home / ".local/share/bash-completion/completions/http2tcp").read_text()
    assert "--transport" in run(program("fish"), "-c", "complete -C 'http2tcp -c --tr'", variables=user)
    # The line for zsh has its own kind of block.
    (zsh,) = re.findall(r"^```zsh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    loaded = f"{zsh}\nautoload -Uz compinit && compinit -u -D && echo $_comps[http2tcp]"
    assert run(program("zsh"), "-f", "-c", loaded, variables=user) == "_http2tcp\n"

    type_in(wheel, checkout, user)
    assert (checkout / "dist" / f"http2tcp-{__version__}-py3-none-any.whl").is_file()
    type_in(upgrade, checkout, user)
    assert type_in("http2tcp --version", checkout, user) == f"http2tcp {__version__}\n"


@pytest.mark.parametrize("tool", ["pipx", "uv tool"])
def test_pipx_and_uv(checkout: Path, user: dict[str, str], tool: str) -> None:
    (block,) = blocks(f"{tool} install")
    type_in(block, checkout, user)
    assert type_in("http2tcp --version", checkout, user) == f"http2tcp {__version__}\n"
    where = "$(pipx environment --value PIPX_LOCAL_VENVS)" if tool == "pipx" else "$(uv tool dir)"
    assert f"`{where}/http2tcp`" in PAGE
    type_in(f"test -f {where}/http2tcp/share/man/man1/http2tcp.1", checkout, user)
    if tool == "pipx":
        assert (Path(user["HOME"]) / ".local/share/man/man1/http2tcp.1").is_file()
