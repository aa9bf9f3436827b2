"""What all tests share: how many examples hypothesis tries, what a hang-up does, and how the tests run in parallel."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# No deadlines: on a machine that does other work too they tell nothing about the code.
settings.register_profile("quick", max_examples=60, deadline=None)
settings.register_profile(
    "ci",
    max_examples=500,
    deadline=None,
    # The same examples for everybody, and no failure that the next run does not show.
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "quick")

# Under nohup, and behind a shell's &, the programs that the tests start would ignore these, as they should, and the
# tests of them would fail.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# The images of examples/docker take minutes and 2 GB of memory, so that they are built once: these files' tests run one
# after the other, in one process.
_IMAGES = ("tests/e2e/test_images.py", "tests/e2e/test_kubernetes.py", "tests/e2e/test_systemd_booted.py")

# Tests that take minutes, or wait for other programs, start first, so that no process begins one when the others have
# nothing left to do. After the last line, and within each, the order is that of the names.
_FIRST: tuple[str | tuple[str, ...], ...] = (
    _IMAGES,
    "tests/packaging/",
    "tests/e2e/",
    ("tests/sockets/", "tests/cli/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check what tests say about running in parallel, and put those that take longest first."""
    for item in items:
        for mark in item.iter_markers("alone"):
            if not (mark.args and isinstance(mark.args[0], str) and mark.args[0]):
                raise pytest.UsageError(f"{item.nodeid}: expected a reason, as in @pytest.mark.alone('measures time')")
            if item.nodeid.startswith(("tests/unit/", "tests/property/", "tests/streams/")):
                raise pytest.UsageError(f"{item.nodeid}: a test of the fast lane has to run beside others")
        builds = isinstance(item, pytest.Function) and "built" in item.fixturenames
        if builds and item.nodeid.startswith("tests/e2e/") and not item.nodeid.startswith(_IMAGES):
            raise pytest.UsageError(f"{item.nodeid}: expected its file among _IMAGES in tests/conftest.py")
    items.sort(key=_rank)


def pytest_collection_finish() -> None:
    """Keep the thousands of collected tests out of each gc.collect(), which then takes a hundredth of the time.

    After every test in tests/sockets there are several.
    """
    gc.collect()
    gc.freeze()


def _rank(item: pytest.Item) -> int:
    ranks = (rank for rank, starts in enumerate(_FIRST) if item.nodeid.startswith(starts))
    return next(ranks, len(_FIRST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """With --dist loadfile, files that share images count as one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class FilesAndImages(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "images" if file in _IMAGES else file

    return FilesAndImages(config, log)
