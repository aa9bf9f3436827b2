"""The lock files: what is installed for the tests and for the image is what was locked, byte for byte."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-runtime.lock", "requirements-build.lock")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

HASH = re.compile(r"[0-9a-f]{64}")


def locked(name: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Of a lock file, each project with its one release and the hashes of that release's files."""
    text = (ROOT / name).read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for line in lines:
        words, *hashes = line.split(" --hash=sha256:")
        requirement = Requirement(words)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        assert "*" not in pin.version, line
        # No other option, and no address of a file or an index.
        assert all(HASH.fullmatch(each.strip()) for each in hashes), line
        assert canonicalize_name(requirement.name) not in found, line
        found[canonicalize_name(requirement.name)] = pin.version, frozenset(map(str.strip, hashes))
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_each_release_has_hashes_and_no_index_is_named(name: str) -> None:
    assert "://" not in (ROOT / name).read_text()
    assert locked(name)
    for project, (_, hashes) in locked(name).items():
        assert hashes, project


@pytest.mark.parametrize("name", LOCKS[1:])
def test_the_image_gets_the_files_that_the_tests_ran_with(name: str) -> None:
    assert locked(name).items() <= locked("requirements.lock").items()


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("requirements-runtime.lock", PROJECT["project"]["dependencies"]),
        ("requirements-build.lock", PROJECT["build-system"]["requires"]),
        ("requirements.lock", PROJECT["project"]["dependencies"]),
        ("requirements.lock", PROJECT["dependency-groups"]["build"]),
        ("requirements.lock", [each for each in PROJECT["dependency-groups"]["test"] if isinstance(each, str)]),
    ],
)
def test_what_pyproject_asks_for_is_locked_in_a_release_that_it_allows(name: str, asked: list[str]) -> None:
    for requirement in map(Requirement, asked):
        version, _ = locked(name)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_whoever_builds_it_elsewhere_may_use_another_release_of_the_build_backend() -> None:
    assert PROJECT["build-system"]["requires"] == PROJECT["dependency-groups"]["build"]
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert {pin.operator for pin in requirement.specifier} <= {">=", "<", "!="}, requirement


@pytest.mark.parametrize("file", ["tests/run", "examples/docker/Dockerfile"])
def test_pip_installs_nothing_that_is_not_in_a_lock_file(file: str) -> None:
    text = (ROOT / file).read_text().replace("\\\n", " ")
    commands = re.findall(r"bin/pip .*?(?=&&|$)", text, re.MULTILINE)
    commands = [command for command in commands if re.search(r"\b(install|wheel|download)\b", command)]
    assert commands
    for command in commands:
        if "--requirement" in command:
            assert "--require-hashes" in command, command
        else:
            # What is ours: its dependencies are there already, and so is what builds it.
            assert "--no-deps" in command, command
            assert "--no-build-isolation" in command or command.split()[-1].endswith(".whl"), command


def test_no_base_image_is_frozen_and_the_file_says_why() -> None:
    text = (ROOT / "examples/docker/Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    assert not [image for image in images if "@" in image]
    assert "digest" in text
    assert "digest" in (ROOT / "docs/deploy/docker.md").read_text()
