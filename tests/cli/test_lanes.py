"""tests/run: which lane starts what. The programs that it calls only write down that they were called."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.processes import program

ROOT = Path(__file__).parents[2]

Calls = list[list[str]]
Start = Callable[..., tuple[int, Calls]]

_PROGRAM = """#!/bin/sh
echo "${0##*/} $*${PYTHONDONTWRITEBYTECODE:+ without compiled files}" >> CALLS
cat > /dev/null
[ "${0##*/} $1" != "dpkg-query --query" ] || echo unknown
[ "${0##*/}" != nproc ] || echo 2
case "$*" in *"not alone"*) exit FIRST;; *alone*) exit SECOND;; esac
"""
_OURS = ("pytest", "coverage", "ruff", "mypy", "lint-imports")
_THEIRS = ("apt-get", "dpkg-query", "nproc", "sudo", "env", "tee", "rm", "chmod")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start("fast", "-x")`: the exit status of tests/run, and what it called."""

    def start(*arguments: str, first: int = 0, second: int = 0) -> tuple[int, Calls]:
        checkout, calls = tmp_path / "checkout", tmp_path / "calls"
        shutil.rmtree(checkout, ignore_errors=True)
        for folder in ("tests", ".venv/bin", "bin"):
            (checkout / folder).mkdir(parents=True)
        shutil.copy(ROOT / "tests/run", checkout / "tests/run")
        text = _PROGRAM.replace("CALLS", str(calls)).replace("FIRST", str(first)).replace("SECOND", str(second))
        for path in [checkout / ".venv/bin" / name for name in _OURS] + [checkout / "bin" / name for name in _THEIRS]:
            path.write_text(text)
            path.chmod(0o755)
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        assert python is not None
        (checkout / ".venv/bin/python").symlink_to(python)
        for name in ("requirements.lock", "pyproject.toml"):
            (checkout / name).write_text(name)
        version = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
        (checkout / ".venv/recipe").write_text(f"{checkout}\n{version}requirements.lockpyproject.toml\n")
        calls.unlink(missing_ok=True)
        search = f"{checkout / 'bin'}:{Path(python).parent}:/usr/bin:/bin"
        command = [program("bash"), str(checkout / "tests/run"), *arguments]
        done = subprocess.run(
            command,
            env={"PATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        lines = [line.split() for line in calls.read_text().splitlines()]
        return done.returncode, [line for line in lines if line[0] != "nproc"]

    return start


def chosen(calls: Calls) -> list[str]:
    """What pytest was told, of each call of it."""
    return [" ".join(call).partition("pytest ")[2] for call in calls if "pytest" in call]


def folders(*names: str, ignored: bool = False) -> str:
    return " ".join(("--ignore=" if ignored else "") + f"tests/{name}" for name in names)


FAST, PROCESS = ("unit", "property", "streams"), ("sockets", "cli")
MEASURED = ("unit", "streams", "sockets", "cli")
#: Two for each core, of which there are two here.
BESIDE = "-m not alone --numprocesses 4 --dist loadfile --no-loadscope-reorder"


def test_the_fast_lane_asks_for_no_package_and_starts_nothing_but_its_tests(start: Start) -> None:
    status, calls = start("fast", "-x")
    assert status == 0
    assert [call[0] for call in calls] == ["pytest"]
    assert chosen(calls) == [f"-m not alone --numprocesses 2 --dist worksteal -x {folders(*FAST)}"]


@pytest.mark.parametrize(
    ("lane", "what"),
    [
        ("process", folders(*PROCESS)),
        ("world", folders(*FAST, ignored=True) + " " + folders(*PROCESS, ignored=True)),
    ],
)
def test_the_other_lanes_run_side_by_side_what_can_and_the_rest_alone(start: Start, lane: str, what: str) -> None:
    status, calls = start(lane)
    assert status == 0
    assert [call for call in calls if "apt-get" in call]
    assert chosen(calls) == [f"{BESIDE} {what}", f"-m alone {what}"]
    assert not [call for call in calls if call[0] in ("coverage", "ruff", "mypy", "lint-imports")]


def test_without_a_word_everything_runs_and_the_coverage_is_judged(start: Start) -> None:
    status, calls = start()
    assert status == 0
    # Each test once.
    assert chosen(calls) == [
        f"{BESIDE} {folders(*MEASURED)}",
        f"{BESIDE} {folders(*MEASURED, ignored=True)}",
        "-m alone",
    ]
    assert [call[0] for call in calls if "pytest" in call] == ["coverage", "pytest", "pytest"]
    ours = [" ".join(call) for call in calls if call[0] in _OURS and "pytest" not in call]
    assert ours == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports",
        "coverage erase",
        "coverage combine --quiet",
        "coverage report",
    ]


@pytest.mark.parametrize("words", [["tests/unit"], ["-k", "fast"], ["-x", "world"]])
def test_all_else_goes_to_pytest_as_it_is(start: Start, words: list[str]) -> None:
    status, calls = start(*words)
    assert status == 0
    assert chosen(calls) == [" ".join(words)]
    assert "coverage report --fail-under=0" in [" ".join(call) for call in calls]


@pytest.mark.parametrize(
    ("first", "second", "status"), [(0, 5, 0), (5, 0, 0), (1, 0, 1), (0, 1, 1), (5, 5, 1), (2, 5, 1)]
)
def test_a_failure_in_either_half_is_one_and_a_half_that_is_empty_is_none(
    start: Start, first: int, second: int, status: int
) -> None:
    assert start("process", first=first, second=second)[0] == status
    assert start("fast", first=first)[0] == (first != 0)
