"""What all tests share: how many examples hypothesis tries, and what a hang-up does."""

from __future__ import annotations

import os
import signal

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
