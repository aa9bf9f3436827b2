"""A new Debian in a directory. Its packages come over a network, where a download fails now and then."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.support.processes import environment

_TRIES = 4
_PAUSE = 5.0
# What debootstrap says if a package or an index did not arrive. It keeps those that did.
_FAILED_DOWNLOADS = ("Couldn't download", "Failed getting release", "Invalid Release")


def bootstrap(program: str, directory: Path, release: str, mirror: str, packages: str, *, timeout: float) -> None:
    """Put Debian's minimum and some packages (comma-separated) there. Raises AssertionError with what it printed."""
    command = [program, "--variant=minbase", f"--include={packages}", release, str(directory), mirror]
    deadline = time.monotonic() + timeout
    for left in reversed(range(_TRIES)):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=max(1.0, deadline - time.monotonic()),
            env=environment(),
        )
        said = done.stdout[-4000:] + done.stderr[-2000:]
        if done.returncode == 0:
            return
        assert left, said
        assert any(words in said for words in _FAILED_DOWNLOADS), said
        time.sleep(_PAUSE)
