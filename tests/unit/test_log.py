"""The log: whoever reads it can hold nothing up."""

from __future__ import annotations

import logging
import threading

import pytest

from http2tcp import log
from http2tcp.log import BackgroundHandler


class Reader(logging.Handler):
    """Takes a line only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.go_on.wait(10)
        self.lines.append(record.getMessage())


def record(text: str) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text})


def test_lines_come_in_order_and_the_last_ones_before_the_end() -> None:
    reader = Reader()
    reader.go_on.set()
    handler = BackgroundHandler(reader)
    for number in range(100):
        handler.handle(record(str(number)))
    handler.close()
    assert reader.lines == [str(number) for number in range(100)]


def test_a_reader_that_has_stopped_holds_nobody_up_and_learns_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_WAITING", 10)
    reader = Reader()
    handler = BackgroundHandler(reader)
    for number in range(1000):
        handler.handle(record(str(number)))
    reader.go_on.set()
    handler.close()
    dropped = next(line for line in reader.lines if "dropped" in line)
    kept = [line for line in reader.lines if "dropped" not in line]
    assert int(dropped.split(": ")[1].split(";")[0]) + len(kept) == 1000
    assert len(kept) <= 12


def test_a_flood_of_what_strangers_cause_leaves_room_for_the_records_of_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log, "_WAITING", 100)
    reader = Reader()
    handler = BackgroundHandler(reader)
    for number in range(1000):
        handler.handle(logging.makeLogRecord({"msg": f"stranger {number}", "expendable": True}))
    for number in range(20):
        handler.handle(record(f"session {number}"))
    reader.go_on.set()
    handler.close()
    assert [line for line in reader.lines if line.startswith("session")] == [f"session {n}" for n in range(20)]
    assert sum(line.startswith("stranger") for line in reader.lines) <= 80


def test_the_end_of_the_process_does_not_wait_for_a_reader_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_LAST_LINES", 0.05)
    reader = Reader()
    handler = BackgroundHandler(reader)
    handler.handle(record("stuck"))
    handler.close()
    assert reader.lines == []
    reader.go_on.set()
