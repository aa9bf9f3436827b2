"""What all tests share: how many examples hypothesis tries, what a hang-up does, and which tests have to be alone."""

from __future__ import annotations

import os
import signal

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that cannot run beside others says why, and is not of the fast lane, whose tests are all side by side."""
    for item in items:
        for mark in item.iter_markers("alone"):
            if not (mark.args and isinstance(mark.args[0], str) and mark.args[0]):
                raise pytest.UsageError(f"{item.nodeid}: expected a reason, as in @pytest.mark.alone('measures time')")
            if item.nodeid.startswith(("tests/unit/", "tests/property/", "tests/streams/")):
                raise pytest.UsageError(f"{item.nodeid}: a test of the fast lane has to run beside others")
