"""What a process tells of itself: where the system says nothing, the other figures are still told."""

from __future__ import annotations

import errno
import os
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from http2tcp.server.footprint import footprint
from http2tcp.server.prometheus import exposition


def told() -> dict[str, float]:
    families = text_string_to_metric_families(exposition(footprint()))
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_and_descriptors_are_those_of_this_process() -> None:
    assert 1024 * 1024 < told()["process_resident_memory_bytes"] < 1024**4
    before = told()["process_open_fds"]
    with open(os.devnull, "rb"):
        assert told()["process_open_fds"] == before + 1
    assert told()["process_max_fds"] >= before


def test_without_proc_or_a_descriptor_to_read_it_with_there_are_still_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> object:
        raise OSError(errno.EMFILE, "Too many open files")

    before = told()
    with monkeypatch.context() as exhausted:
        exhausted.setattr("builtins.open", nothing)
        exhausted.setattr(os, "stat", nothing)
        exhausted.setattr(os, "listdir", nothing)
        text = exposition(footprint())
    left = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    assert left == set(before) - {"process_resident_memory_bytes", "process_open_fds"}
