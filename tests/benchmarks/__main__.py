"""`python -m tests.benchmarks`: one command, one table."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.contenders import CONTENDERS
from tests.benchmarks.rows import QUICK, ROWS, Effort, Run
from tests.benchmarks.table import SUBJECT, markdown

_VERSIONS = {"socat": ["socat", "-V"], "haproxy": ["haproxy", "-v"], "websocat": ["websocat", "--version"]}
_VERSIONS |= {"chisel": ["chisel", "--version"]}


def main() -> int:
    """Measure and print; 1 where http2tcp itself failed in a row."""
    parser = argparse.ArgumentParser(prog="tests/benchmarks/run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute, to see that all runs; the figures are rough")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help=f"repeatable: {', '.join(names)}")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("the figures come from /proc: Linux only")

    failures: list[str] = []

    def failed(name: str, error: Exception) -> None:
        failures.append(name)
        print(f"  {name} is left out: {error or type(error).__name__}", file=sys.stderr)

    effort = QUICK if options.quick else Effort()
    measured = []
    for row in ROWS:
        if options.only is None or row.name in options.only:
            begin = time.monotonic()
            print(f"{row.name} …", end="", flush=True, file=sys.stderr)
            with tempfile.TemporaryDirectory(prefix="http2tcp-benchmark-") as scratch:
                samples = row.measure(Run(effort, Path(scratch), failed))
            print(f" {time.monotonic() - begin:.0f} s", file=sys.stderr)
            measured += [(figure, samples) for figure in row.figures]

    columns = [contender.name for contender in CONTENDERS if contender.found] + ["reference"]
    print(_conditions(effort))
    print()
    print(markdown(columns, measured))
    return 1 if SUBJECT in failures else 0


def _conditions(effort: Effort) -> str:
    versions = [f"{platform.python_implementation()} {platform.python_version()}"]
    for contender in CONTENDERS:
        if contender.found and contender.name in _VERSIONS:
            said = subprocess.run(_VERSIONS[contender.name], capture_output=True, text=True).stdout
            words = [word for word in said.split() if word[:1].isdigit()]
            versions.append(f"{contender.name} {words[0]}" if words else contender.name)
    return (
        f"Medians of {effort.rounds} interleaved rounds of {effort.seconds:g} s "
        f"({effort.trips} round trips, {effort.starts} starts, {effort.tunnels} idle tunnels); "
        f"Linux {platform.release().partition('-')[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{', '.join(versions)}."
    )


if __name__ == "__main__":
    sys.exit(main())
