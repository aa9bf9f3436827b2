"""Two hundred tunnels of the campaign: most of a seed that is always the same, some of a new one each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from tests.campaign.cases import Client, Cut, Order, Server, derive
from tests.campaign.runner import run_cases
from tests.campaign.servers import site
from tests.support.processes import program

_SEED = 17
_ALWAYS, _NEW = 160, 40
_JOBS = 20


@pytest.mark.timeout(400)
def test_two_hundred_tunnels_of_all_kinds_lose_nothing_and_lie_to_nobody(tmp_path: Path) -> None:
    program("nginx")
    new = random.randrange(1 << 32)
    cases = [*(derive(_SEED, index) for index in range(_ALWAYS)), *(derive(new, index) for index in range(_NEW))]
    # Run the slow cases first, so that none of them starts when all others have ended.
    cases.sort(key=lambda case: -(case.up.patience + case.down.patience))
    with site(tmp_path) as running:
        summary = trio.run(run_cases, running, cases, _JOBS)
    print(f"seeds {_SEED} and {new}")  # to see them where the test fails
    print(summary)
    assert not summary.findings, f"{len(summary.findings)} findings: see the output"
    assert not summary.bugs

    # The campaign has tested something: all kinds of cases were there, many went well, and many were cut.
    told = summary.dimensions
    assert summary.count == _ALWAYS + _NEW
    assert set(told["clients"]) == {client.value for client in Client}
    assert set(told["servers"]) == {server.value for server in Server}
    assert set(told["orders"]) == {order.value for order in Order}
    assert {f"cut by {cut.value}" for cut in Cut} | {"a bit flipped", "shaped"} <= set(told["weather"])
    assert told["outcomes"]["whole"] >= 80
    assert told["outcomes"]["cut"] >= 40


def test_a_case_is_the_same_whenever_it_is_derived_and_alone() -> None:
    cases = [derive(7, index) for index in range(50)]
    assert [derive(7, index) for index in reversed(range(50))] == cases[::-1]
    assert len({str(case) for case in cases}) == 50
    assert derive(8, 0) != cases[0]
