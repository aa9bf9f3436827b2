"""What is in the wheel and in the sdist."""

from __future__ import annotations

import stat
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

from http2tcp.version import __version__

from .conftest import ROOT, Built, build, run

DATA = {
    "share/man/man1/http2tcp.1": "docs/man/http2tcp.1",
    "share/bash-completion/completions/http2tcp": "docs/completions/http2tcp.bash",
    "share/zsh/site-functions/_http2tcp": "docs/completions/_http2tcp",
    "share/fish/vendor_completions.d/http2tcp.fish": "docs/completions/http2tcp.fish",
}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(built: Built) -> Message:
    return Parser().parsestr(contents(built.wheel)[f"http2tcp-{__version__}.dist-info/METADATA"].decode())


def test_both_pass_the_check_of_who_uploads_them(built: Built) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", str(built.sdist), str(built.wheel))


def test_a_wheel_is_the_program_with_its_manual_and_completions_and_nothing_else(built: Built) -> None:
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "http2tcp").rglob("*.py")} | {"http2tcp/py.typed"}
    information = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    prefix = f"http2tcp-{__version__}"
    expected = package | {f"{prefix}.dist-info/{name}" for name in information}
    expected |= {f"{prefix}.data/data/{name}" for name in DATA}
    assert contents(built.wheel).keys() == expected


def test_the_manual_and_the_completions_are_those_of_the_checkout(built: Built) -> None:
    found = contents(built.wheel)
    for name, source in DATA.items():
        assert found[f"http2tcp-{__version__}.data/data/{name}"] == (ROOT / source).read_bytes()


def test_a_wheel_of_the_checkout_is_the_same_as_one_of_the_sdist(built: Built, tmp_path: Path) -> None:
    assert build(ROOT, "wheel", tmp_path).read_bytes() == built.wheel.read_bytes()


def test_the_metadata_say_what_an_index_shows(built: Built) -> None:
    found = metadata(built)
    assert (found["Name"], found["Version"]) == ("http2tcp", __version__)
    assert (found["License-Expression"], found["License-File"]) == ("MIT", "LICENSE")
    assert found["Requires-Python"] == ">=3.11"
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (ROOT / "README.md").read_text()


def test_an_sdist_has_what_it_takes_to_read_build_and_test_it(built: Built) -> None:
    locks = [path.name for path in ROOT.glob("requirements*.lock")]
    assert len(locks) == 3
    pages = ("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
    for name in (*pages, ".pre-commit-config.yaml", "pyproject.toml", *locks, *DATA.values()):
        assert (built.tree / name).read_bytes() == (ROOT / name).read_bytes(), name
    folders = {"http2tcp": "*.py", "tests": "*.py", "docs": "*.md", "examples": "*", ".github": "*"}
    for folder, pattern in folders.items():
        there = {path.relative_to(built.tree) for path in (built.tree / folder).rglob(pattern)}
        here = {path.relative_to(ROOT) for path in (ROOT / folder).rglob(pattern)}
        assert there == {path for path in here if "__pycache__" not in path.parts}, folder
    assert (built.tree / "tests" / "run").stat().st_mode & stat.S_IXUSR


def test_an_sdist_has_nothing_that_work_leaves_behind(built: Built) -> None:
    names = {path.name for path in built.tree.rglob("*")}
    assert not names & {
        "__pycache__",
        ".venv",
        ".git",
        ".coverage",
        ".mypy_cache",
        ".ruff_cache",
        ".hypothesis",
        "dist",
    }
    assert {path.name for path in built.tree.iterdir() if path.is_dir()} == {
        ".github",
        "http2tcp",
        "docs",
        "examples",
        "tests",
    }
