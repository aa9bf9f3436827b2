"""The images of examples/docker, built and run without Docker: tests/support/images.py says what stands in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.images import DOCKER, Image
from tests.support.pod import pod
from tests.support.processes import program, wait_until

# debootstrap, two builds with packages of Debian and PyPI.
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("file", sorted(DOCKER.rglob("Dockerfile")), ids=lambda file: file.parent.name)
def test_hadolint_finds_nothing_wrong_with_a_dockerfile(file: Path) -> None:
    done = subprocess.run([program("hadolint"), str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_serves_as_its_command_says_is_healthy_and_ends_when_docker_stops_it(
    built: dict[str, Image], tmp_path: Path
) -> None:
    image = built["http2tcp"]
    user, group = image.ids
    token = tmp_path / "token"
    token.write_text("a token")
    token.chmod(0o400)
    os.chown(token, user, group)
    test, *healthcheck = image.config["Healthcheck"]["Test"]
    assert test == "CMD"
    with pod(tmp_path / "pod") as empty:
        command = [*image.config["Entrypoint"], *image.config["Cmd"]]
        container = empty.start("http2tcp", image, command, (user, group), [(token, "/run/secrets/token", "ro")])
        wait_until(lambda: empty.get(12345, "/") == 401, f"it serves, see {container.log_file}")
        assert empty.execute("http2tcp", healthcheck) == 0
        assert "everybody" not in container.log
        container.terminate()
        assert container.launcher.wait(20) == 0
        assert empty.get(12345, "/") == 0


def test_the_image_is_not_healthy_where_nobody_answers_on_the_admin_port(
    built: dict[str, Image], tmp_path: Path
) -> None:
    image = built["http2tcp"]
    _, *healthcheck = image.config["Healthcheck"]["Test"]
    with pod(tmp_path / "pod") as empty:
        command = [*image.config["Entrypoint"], "-s", "-d", "localhost:22", "-l", ":12345"]
        container = empty.start("http2tcp", image, command, image.ids, [])
        wait_until(lambda: empty.get(12345, "/") == 426, f"it serves, see {container.log_file}")
        assert empty.execute("http2tcp", healthcheck) == 1


def test_no_shell_and_no_installer_is_in_the_image(built: dict[str, Image]) -> None:
    root = built["http2tcp"].root / "opt/http2tcp"
    assert not [file.name for file in (root / "bin").iterdir() if file.name.startswith("pip")]
    # Python reads them at each start, and could not write them: the image's user owns nothing.
    assert list(root.rglob("http2tcp/server/__pycache__/server.*.pyc"))
    assert not [file for file in root.rglob("*") if file.lstat().st_uid != 0]
