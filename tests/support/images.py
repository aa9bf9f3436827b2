"""Container images built from the examples' Dockerfiles, as root, without a daemon and without an image registry.

The images that they start from are stood in for: Debian's by debootstrap, and the one without a shell by the same, with
its Python and without its shells. What stands in the Dockerfiles is run as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.support.debian import bootstrap
from tests.support.processes import environment, program

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "examples" / "docker"

_DEBIAN = "docker.io/library/debian:13-slim"
_PYTHON = "gcr.io/distroless/python3-debian13:nonroot"
_SHELLS = "/bin/sh /bin/bash /bin/dash"
# A machine where http2tcp was installed from the checkout.
_MACHINE = f"""
FROM {_DEBIAN}
RUN apt-get update && apt-get install --yes --no-install-recommends procps python3 systemd
COPY --from=localhost/http2tcp /opt/http2tcp /opt/http2tcp
"""
#: The authorities of this machine, for a network that signs its own way to the package registries.
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
# For one step, which may fetch a hundred packages.
_PATIENCE = 600


@dataclass(frozen=True)
class Image:
    """What an image holds, and how it wants to be run."""

    root: Path
    #: As `docker inspect` has it under Config.
    config: dict[str, Any]

    @property
    def ids(self) -> tuple[int, int]:
        """The user and the group that it runs as."""
        user, _, group = self.config["User"].partition(":")
        return int(user), int(group)


@contextmanager
def images() -> Iterator[dict[str, Image]]:
    """Images by the names that the examples give them, and `machine`, with systemd. Takes a minute or more."""
    buildah, debootstrap = program("buildah"), program("debootstrap")
    if os.getuid() != 0:
        pytest.skip("only root can build images here")
    with _memory() as directory:
        # No layers, no daemon, no namespaces: works within a container too.
        storage = ["--root", str(directory / "store"), "--runroot", str(directory / "run"), "--storage-driver", "vfs"]

        def run(*arguments: str | Path) -> str:
            done = subprocess.run(
                [buildah, *storage, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                env=environment(BUILDAH_ISOLATION="chroot", DEBIAN_FRONTEND="noninteractive"),
                cwd=ROOT,
                timeout=_PATIENCE,
            )
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            return done.stdout.strip()

        def image(tag: str) -> Image:
            container = run("from", "--pull-never", f"localhost/{tag}")
            config = json.loads(run("inspect", "--type", "image", f"localhost/{tag}"))["Docker"]["config"]
            return Image(Path(run("mount", container)), config)

        _stand_in(directory, debootstrap, run)
        build = ("build", "--format", "docker", "--pull-never")
        ignored = ("--ignorefile", DOCKER / "Dockerfile.dockerignore")
        run(*build, *ignored, "--tag", "http2tcp", "--file", DOCKER / "Dockerfile", ".")
        run(*build, "--tag", "debug-box", DOCKER / "debug")
        (directory / "machine").write_text(_MACHINE)
        run(*build, "--tag", "machine", "--file", directory / "machine", directory / "debian" / "srv")
        made = {tag: image(tag) for tag in ("http2tcp", "debug-box", "machine")}
        # Memory: what they were made from is some 2 GB.
        shutil.rmtree(directory / "debian")
        for layer in {image.root.parent for image in made.values()}.pop().iterdir():
            if layer not in {image.root for image in made.values()}:
                shutil.rmtree(layer)
        yield made


@contextmanager
def _memory() -> Iterator[Path]:
    """A directory in memory: a disk takes minutes for so many files, and as long to delete them."""
    with TemporaryDirectory(prefix="http2tcp-images-") as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "http2tcp-images", name], check=True, timeout=20)
        try:
            yield Path(name)
        finally:
            # What still runs in there has it for so long.
            subprocess.run(["umount", "--lazy", name], check=True, timeout=20)


def _stand_in(directory: Path, debootstrap: str, run: Any) -> None:
    """Make the images that the examples start from."""
    debian = directory / "debian"
    mirror = "http://deb.debian.org/debian"
    bootstrap(debootstrap, debian, "trixie", mirror, "ca-certificates", timeout=_PATIENCE)
    base = run("from", "scratch")
    run("copy", "--quiet", base, debian, "/")
    if _AUTHORITIES.exists():
        run("copy", "--quiet", base, _AUTHORITIES, "/etc/authorities.crt")
        run("config", "--env", "PIP_CERT=/etc/authorities.crt", base)
    run("commit", "--quiet", "--rm", base, _DEBIAN)

    python = run("from", "--pull-never", _DEBIAN)
    install = "apt-get update && apt-get install --yes --no-install-recommends python3"
    run("run", python, "--", "sh", "-c", f"{install} && rm {_SHELLS}")
    run("config", "--user", "65532", python)
    run("commit", "--quiet", "--rm", python, _PYTHON)
