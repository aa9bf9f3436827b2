"""Names, vocabularies and the page about them: what Prometheus's own linter asks for, and what operators read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from http2tcp.address import TCPAddress
from http2tcp.errors import DialFailure, Refusal
from http2tcp.server.counters import REFUSALS
from http2tcp.server.destination_refusals import dial_refusal as _dial_refusal
from http2tcp.server.destination_refusals import too_slow as _too_slow
from http2tcp.server.footprint import footprint
from http2tcp.server.metrics import families
from http2tcp.server.outcome import NoSession, Reason
from http2tcp.server.policy import Grant
from http2tcp.server.prometheus import Family
from http2tcp.server.settings import ServerSettings
from http2tcp.server.state import State

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

FAMILIES = [*families(State(ServerSettings(tokens=["tok"]))), *footprint()]

# https://prometheus.io/docs/practices/naming/
BASE_UNITS = {"seconds", "bytes"}
OTHER_UNITS = re.compile(r"_(milli|micro|nano)?(ms|us|millis|minutes|hours|days|kb|kib|mb|mib|gb|bits|percent)(_|$)")


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_its_name_its_type_and_its_labels_are_as_they_should_be(family: Family) -> None:
    assert re.fullmatch(r"(http2tcp|process)_[a-z0-9]+(_[a-z0-9]+)*", family.name)
    assert family.kind in ("counter", "gauge", "histogram")
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert not family.name.endswith(("_count", "_sum", "_bucket"))
    assert not OTHER_UNITS.search(family.name)
    assert family.kind != "histogram" or family.name.rpartition("_")[2] in BASE_UNITS
    assert family.help.endswith(".")
    assert "\n" not in family.help
    for label in family.labels:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", label)
        assert label not in ("le", "quantile", "job", "instance")


def test_every_name_comes_once() -> None:
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)


def test_every_reason_of_an_end_is_known_from_the_start() -> None:
    for name, reasons in [("http2tcp_sessions_ended_total", Reason), ("http2tcp_abandoned_total", NoSession)]:
        (family,) = [family for family in FAMILIES if family.name == name]
        assert {sample.labels for sample in family.samples()} == {(("reason", reason.value),) for reason in reasons}


def refusals(root: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    for each in root.__subclasses__():
        yield each
        yield from refusals(each)


def test_every_refusal_is_known_from_the_start() -> None:
    made = {(str(each.status), each.proxy_error) for each in refusals()}
    admission = Grant(None, None, pinned=False).admit(TCPAddress("db", 22))
    for failure in DialFailure:
        refusal = _dial_refusal(admission, failure, "", "")
        made.add((str(refusal.status), refusal.proxy_error))
    for named in (False, True):
        refusal = _too_slow(admission, 1, named=named)
        made.add((str(refusal.status), refusal.proxy_error))
    assert made == set(REFUSALS)


def rows() -> dict[str, tuple[str, list[str]]]:
    """The page's families: type and labels."""
    found = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\| .+ \|$", PAGE.read_text(), re.MULTILINE)
    return {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels in found}


def test_the_page_has_every_family_with_its_type_and_its_labels_and_no_other() -> None:
    assert rows() == {family.name: (family.kind, list(family.labels)) for family in FAMILIES}


def test_the_page_s_rules_speak_of_families_that_there_are() -> None:
    rules = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    named = {name for text in rules for name in re.findall(r"\bhttp2tcp_\w+|\bprocess_\w+", text)}
    known = {f"{family.name}{end}" for family in FAMILIES for end in ("", "_bucket", "_count", "_sum")}
    assert named
    assert named <= known
