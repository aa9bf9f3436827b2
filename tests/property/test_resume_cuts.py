"""A sixth of the pairs of cuts in CI, and a part of that otherwise: see resume_cuts.py, which takes all of them."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.property.resume_cuts import FIRST, SECOND, case, run, some

# Together they are one sixth.
PARTS = range(0, 24, 6)


@pytest.mark.parametrize("part", PARTS if os.environ.get("CI") else PARTS[:1])
def test_wherever_the_wire_is_cut_twice_no_byte_and_no_end_is_wrong(part: int) -> None:
    outcomes = Counter(run(number) for number in some(part, 24))
    # The cases reach everything that they are about.
    unknown = {"finished, and the server does not know", "finished by the tombstone"}
    assert set(outcomes) >= {"finished", "reset", "refused", "never opened"} | unknown
    assert outcomes["finished"] > outcomes.total() / 4


def test_every_place_of_either_cut_is_taken() -> None:
    cases = [case(number) for number in some(0, 6)]
    assert {each.first for each in cases} == set(FIRST)
    assert {each.second for each in cases} == set(SECOND)
