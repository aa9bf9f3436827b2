"""The command: python -m tests.campaign --seed S --count N."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import trio

from tests.campaign.cases import derive
from tests.campaign.invariants import Finding, Observed
from tests.campaign.runner import describe, run_cases
from tests.campaign.servers import has_nginx, site


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description="A randomised campaign of tunnels.")
    parser.add_argument("--seed", type=int, help="what the cases are derived from; printed where it is left out")
    parser.add_argument("--count", type=int, default=200, help="how many tunnels; default: %(default)s")
    parser.add_argument("--first", type=int, default=0, metavar="INDEX", help="the first of them; default: %(default)s")
    parser.add_argument("--only", type=int, action="append", metavar="INDEX", help="only this one; repeatable")
    parser.add_argument("--jobs", type=int, default=16, help="how many at once; default: %(default)s")
    parser.add_argument("--show", action="store_true", help="print each case once it is over")
    options = parser.parse_args()

    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    indexes = options.only or range(options.first, options.first + options.count)
    print(f"seed {seed}", flush=True)

    def progress(seen: Observed, findings: list[Finding]) -> None:
        if options.show or options.only or findings:
            print(f"{seen.case.index}: {seen.case}", flush=True)
        if options.show or options.only:
            words = f"client {seen.client.saw.value}, target {seen.target.saw.value}, record {seen.reason or 'none'}"
            print(f"    {words}, status {seen.status}, struck {seen.struck}", flush=True)
        for finding in findings:
            print(describe(finding), flush=True)

    with tempfile.TemporaryDirectory(prefix="http2tcp-campaign-") as directory:
        with site(Path(directory), with_nginx=has_nginx()) as running:
            cases = (derive(seed, index) for index in indexes)
            summary = trio.run(run_cases, running, cases, options.jobs, progress)
    print(summary)
    return 1 if summary.findings or summary.bugs else 0


if __name__ == "__main__":
    sys.exit(main())
