"""What a forge runs (.github) and what runs before a commit: valid, safe, and what tests/run and pyproject.toml say.

No forge is asked: zizmor and check-jsonschema know the formats, and work without a network.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
FORGE = ROOT / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
RUN = (ROOT / "tests" / "run").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The linters, as tests/run starts them.
CHECKS = re.findall(r"^    check ((?:ruff|mypy|lint-imports).*)$", RUN, re.MULTILINE)


def installed(name: str, *arguments: str) -> str:
    """What a program of this environment prints. Fails where it ends with another status than 0."""
    command = [str(Path(sys.executable).parent / name), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def parsed(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def jobs() -> dict[str, Any]:
    found: dict[str, Any] = parsed(FORGE / "workflows" / "tests.yml")["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def test_there_are_workflows() -> None:
    assert [file.name for file in WORKFLOWS] == ["newest.yml", "tests.yml"]
    assert len(CHECKS) == 4


def test_every_file_has_the_form_that_the_forge_wants() -> None:
    installed("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))
    installed("check-jsonschema", "--builtin-schema", "vendor.dependabot", str(FORGE / "dependabot.yml"))


def test_no_workflow_has_a_hole_that_zizmor_knows() -> None:
    installed("zizmor", "--offline", "--no-config", "--no-progress", "--pedantic", str(FORGE))


def test_zizmor_finds_a_hole(tmp_path: Path) -> None:
    """An expression in a script is one: whoever names a branch would run a command."""
    workflow = tmp_path / ".github/workflows/x.yml"
    workflow.parent.mkdir(parents=True)
    workflow.write_text(
        "on: pull_request_target\njobs:\n  x:\n    runs-on: x\n    steps:\n      - run: echo ${{ github.head_ref }}\n"
    )
    with pytest.raises(AssertionError, match="template-injection"):
        installed("zizmor", "--offline", "--no-config", "--no-progress", str(workflow))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_command_of_a_workflow_names_files_that_are_there(file: Path) -> None:
    for job in parsed(file)["jobs"].values():
        for command in commands(job):
            for script in re.findall(r"\bbash (\S+)", command):
                assert (ROOT / script).exists(), command


def test_the_lint_job_runs_the_linters_of_tests_run() -> None:
    lint = commands(jobs()["lint"])
    assert [command for command in lint if not command.startswith("python -m pip ")] == CHECKS


def test_every_lane_runs_and_every_python_that_is_supported() -> None:
    lanes, world = jobs()["lanes"], jobs()["world"]
    matrix = lanes["strategy"]["matrix"]
    (words,) = re.findall(r"^    ((?:\w+ \| )+\w+)\)$", RUN, re.MULTILINE)
    assert [*matrix["lane"], "world"] == words.split(" | ")
    assert commands(world) == ["bash tests/run world"]
    prefix = "Programming Language :: Python :: 3."
    minors = [name.removeprefix(prefix) for name in PROJECT["project"]["classifiers"] if name.startswith(prefix)]
    assert matrix["python"] == [f"3.{minor}" for minor in minors]


def test_the_checks_before_a_commit_are_those_of_tests_run() -> None:
    (local,) = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in local["hooks"]]
    assert {entry.split()[0] for entry in entries} == {
        f".venv/bin/{name}" for name in ("ruff", "mypy", "lint-imports", "zizmor")
    }
    for check in CHECKS:
        assert [entry for entry in entries if entry.startswith(f".venv/bin/{check.removesuffix(' .')}")], check


def test_dependabot_looks_at_every_folder_with_an_image() -> None:
    updates = {update["package-ecosystem"]: update for update in parsed(FORGE / "dependabot.yml")["updates"]}
    images = {f"/{file.parent.relative_to(ROOT)}" for file in (ROOT / "examples").rglob("Dockerfile")}
    assert set(updates["docker"]["directories"]) == images
    assert "github-actions" in updates
