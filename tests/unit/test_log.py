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
    # The end finds room in the queue as soon as the reader goes on.
    while handler._records.full():
        pass
    handler.close()
    dropped = next(line for line in reader.lines if "dropped" in line)
    kept = [line for line in reader.lines if "dropped" not in line]
    assert int(dropped.split()[0]) + len(kept) == 1000
    assert len(kept) <= 12


def test_the_end_of_the_process_does_not_wait_for_a_reader_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_LAST_LINES", 0.05)
    reader = Reader()
    handler = BackgroundHandler(reader)
    handler.handle(record("stuck"))
    handler.close()
    assert reader.lines == []
    reader.go_on.set()
