"""A server's log: text and JSON, and a file that survives whatever becomes of it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from http2tcp import log
from http2tcp.address import TCPAddress
from http2tcp.errors import SettingsError
from http2tcp.log import start_logging
from http2tcp.server import log_writer as service_log
from http2tcp.server.audit import SessionRecords
from http2tcp.server.log_writer import FileHandler, JSONFormatter, TextFormatter, log_as_service
from http2tcp.server.outcome import Ended, Reason
from tests.support.processes import wait_until

# 2027-01-31T12:34:56.789Z
AT = 1801398896.7891


def record(message: object, *values: object, level: int = logging.INFO, at: float = AT) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": message, "args": values, "levelno": level})
    made.levelname = logging.getLevelName(level)
    made.created, made.msecs = at, at % 1 * 1000
    return made


def a_failure() -> logging.LogRecord:
    try:
        raise ValueError("two\nlines of it")
    except ValueError:
        made = record("session 5e55 failed", level=logging.ERROR)
        made.exc_info = sys.exc_info()
        return made


@pytest.fixture(autouse=True)
def _the_log_as_it_was() -> Iterator[None]:
    handlers, level, raises = log.logger.handlers[:], log.logger.level, logging.raiseExceptions
    yield
    for handler in log.logger.handlers:
        if handler not in handlers:
            handler.close()
    log.logger.handlers[:] = handlers
    log.logger.setLevel(level)
    logging.raiseExceptions = raises


# --- forms ----------------------------------------------------------------------------------------


def test_text_has_the_time_to_the_millisecond_and_in_utc() -> None:
    assert TextFormatter(timed=True).format(record("up")) == "2027-01-31T12:34:56.789Z up"
    assert TextFormatter(timed=False).format(record("up")) == "up"


@pytest.mark.parametrize("formatter", [TextFormatter(timed=True), JSONFormatter()])
def test_the_time_of_every_line_is_its_own(formatter: logging.Formatter) -> None:
    for at, text in ((AT, "34:56.789Z"), (AT + 0.2, "34:56.989Z"), (AT + 1, "34:57.789Z"), (AT - 60, "33:56.789Z")):
        assert f"2027-01-31T12:{text}" in formatter.format(record("x", at=at))


def test_text_has_a_traceback_below_its_line() -> None:
    first, second, *_ = TextFormatter(timed=True).format(a_failure()).split("\n")
    assert first == "2027-01-31T12:34:56.789Z session 5e55 failed"
    assert second == "Traceback (most recent call last):"


def test_a_line_that_is_no_record_is_the_event_log() -> None:
    line = JSONFormatter().format(record("listening on %s", "127.0.0.1:12345"))
    assert line == (
        '{"time":"2027-01-31T12:34:56.789Z","level":"info","event":"log","message":"listening on 127.0.0.1:12345"}'
    )


def test_a_traceback_is_a_key_and_all_of_it_one_line() -> None:
    line = JSONFormatter().format(a_failure())
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["level"], parsed["event"], parsed["message"]) == ("error", "log", "session 5e55 failed")
    assert parsed["traceback"].startswith("Traceback (most recent call last):\n")
    assert parsed["traceback"].endswith("ValueError: two\nlines of it")


def test_a_record_is_its_keys(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    session = SessionRecords(TCPAddress("192.0.2.1", 40000))
    session.authenticated('a "b"\n')
    session.asked(TCPAddress("db", 5432))
    session.opened(TCPAddress("10.0.0.7", 5432), "tcp", 0.0004)
    session.over(Ended(Reason.CLIENT_BROKE, "it broke"))
    lines = [JSONFormatter().format(entry) for entry in caplog.records]
    assert all(line.isascii() and "\n" not in line for line in lines)
    first, last = map(json.loads, lines)
    assert list(first)[:3] == ["time", "level", "event"]
    assert first["token"] == 'a "b"\n'
    assert (first["port"], first["dial_seconds"]) == (40000, 0)
    assert last["detail"] == "it broke"
    assert all(first[key] == last[key] for key in ("session", "client", "port", "token", "target", "dialled"))


@pytest.mark.parametrize("text", ["ü\u202e\u2028", "\udcff", "\x1b[2J\n", "\U0001f512"])
def test_json_is_ascii_whatever_a_line_holds_and_every_reader_takes_it(text: str) -> None:
    line = JSONFormatter().format(record("%s", text))
    assert line.isascii()
    assert line.isprintable()
    json.loads(line)["message"].encode("utf-8")


# --- a file ---------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "http2tcp.log"


@pytest.fixture
def handler(path: Path) -> Iterator[FileHandler]:
    path.parent.mkdir()
    made = FileHandler(str(path))
    yield made
    made.close()


def lines(path: Path) -> list[str]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return text.splitlines()


def test_a_file_is_for_its_owner_and_its_group(path: Path) -> None:
    path.parent.mkdir()
    umask = os.umask(0)
    try:
        FileHandler(str(path)).close()
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_was_in_the_file_stays(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("before\n")
    handler = FileHandler(str(path))
    handler.handle(record("after"))
    handler.close()
    assert lines(path) == ["before", "after"]


def test_after_a_rename_lines_go_to_a_new_file(handler: FileHandler, path: Path) -> None:
    handler.handle(record("one"))
    old = path.rename(path.with_suffix(".1"))
    handler.handle(record("two"))
    assert lines(old) == ["one"]
    assert lines(path) == ["two"]


def test_after_a_rename_lines_go_to_the_file_that_was_put_in_its_place(handler: FileHandler, path: Path) -> None:
    handler.handle(record("one"))
    old = path.rename(path.with_suffix(".1"))
    path.write_text("")
    path.chmod(0o600)
    handler.handle(record("two"))
    assert lines(old) == ["one"]
    assert lines(path) == ["two"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_after_a_truncation_lines_begin_at_its_begin(handler: FileHandler, path: Path) -> None:
    handler.handle(record("one"))
    os.truncate(path, 0)
    handler.handle(record("two"))
    assert path.read_bytes() == b"two\n"


def test_a_file_that_was_removed_comes_back(handler: FileHandler, path: Path) -> None:
    path.unlink()
    handler.handle(record("two"))
    assert lines(path) == ["two"]


def test_only_one_descriptor_is_held(handler: FileHandler, path: Path) -> None:
    def held() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(path)) for fd in os.listdir("/proc/self/fd"))

    for number in range(5):
        path.rename(path.with_suffix(f".{number}"))
        handler.handle(record("x"))
    assert held() == 1


def said(capsys: pytest.CaptureFixture[str], within: float = 10) -> str:
    """What was said on stderr: it comes from a thread."""
    deadline = time.monotonic() + within
    text = ""
    while not text and time.monotonic() < deadline:
        text += capsys.readouterr().err
        time.sleep(0.01)
    for thread in threading.enumerate():
        if thread.name == "log complaint":
            thread.join(within)
    return text + capsys.readouterr().err


def test_a_directory_that_vanishes_is_told_once_and_the_log_recovers(
    handler: FileHandler, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = path.parent.rename(path.parent.with_name("elsewhere"))
    for number in range(3):
        handler.handle(record(f"lost {number}"))
    assert said(capsys) == (
        f"http2tcp: cannot write the log file {path}: no such file or directory; lines are lost until this is fixed\n"
    )
    moved.rename(path.parent)
    handler.handle(record("back"))
    handler.handle(record("again"))
    first, second, third = lines(path)
    assert first.endswith("lines of this log that were lost: 3; no such file or directory")
    assert (second, third) == ("back", "again")
    assert said(capsys, 0) == ""


def test_a_full_disk_is_told_once_and_the_log_recovers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.write_text("")
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    handler = FileHandler(str(path))
    handler.setFormatter(JSONFormatter())
    handler.handle(record("one"))
    handler.handle(record("two"))
    assert said(capsys).count("\n") == 1
    path.unlink()
    path.symlink_to(disk)
    handler.handle(record("three"))
    first, second = map(json.loads, lines(disk))
    assert first["level"] == "warning"
    assert first["message"] == "lines of this log that were lost: 2; no space left on device"
    assert second["message"] == "three"
    # One that is full again soon is not worth another line; later it is.
    path.unlink()
    path.symlink_to("/dev/full")
    handler.handle(record("four"))
    assert said(capsys, 0) == ""
    monkeypatch.setattr(service_log, "_COMPLAINTS", 0)
    handler.handle(record("five"))
    assert "no space left on device" in said(capsys)
    handler.close()


def test_a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next(handler: FileHandler, path: Path) -> None:
    handler.handle(record("x" * 99))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (110, limits[1]))
    try:
        handler.handle(record("y" * 99))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    handler.handle(record("z"))
    first, cut, told, last = lines(path)
    assert (first, cut, last) == ("x" * 99, "y" * 10, "z")
    assert "lines of this log that were lost: 1; " in told


def test_a_reader_of_stderr_who_has_stopped_does_not_stop_the_log_in_the_file(
    handler: FileHandler, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    class Stuck:
        def write(self, text: str) -> None:
            go_on.wait(10)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stderr", Stuck())
    moved = path.parent.rename(path.parent.with_name("elsewhere"))
    handler.handle(record("lost"))
    moved.rename(path.parent)
    handler.handle(record("back"))
    assert lines(path)[-1] == "back"
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "log complaint":
            thread.join(10)


def test_where_no_thread_can_be_started_the_complaint_waits_and_the_log_goes_on(
    handler: FileHandler, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A unit's TasksMax= is reached sooner than one thinks, and the thread that writes the log must not die of it."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    moved = path.parent.rename(path.parent.with_name("elsewhere"))
    with monkeypatch.context() as refusing:
        refusing.setattr(threading.Thread, "start", refuse)
        handler.handle(record("lost"))
    handler.handle(record("lost"))
    assert "cannot write the log file" in said(capsys)
    moved.rename(path.parent)
    handler.handle(record("back"))
    assert lines(path)[-1] == "back"


def test_a_line_that_cannot_be_made_ends_no_log(path: Path) -> None:
    path.parent.mkdir()
    start_logging(logging.INFO)
    log_as_service("text", str(path))
    (background,) = log.logger.handlers
    background.handle(record("%d tunnels", "many"))
    background.handle(record("the next"))
    background.close()
    assert lines(path)[-1].endswith("the next")


def test_lines_that_a_file_did_not_take_are_counted_for_the_metrics(path: Path) -> None:
    path.parent.mkdir()
    start_logging(logging.INFO)
    log_as_service("text", str(path))
    moved = path.parent.rename(path.parent.with_name("elsewhere"))
    log.logger.info("lost")
    log.logger.info("lost")
    wait_until(lambda: log.dropped_lines() == 2, "both are counted")
    moved.rename(path.parent)
    log.logger.info("back")
    log.logger.handlers[0].close()
    assert log.dropped_lines() == 2
    assert lines(path)[-1].endswith("back")


def test_lines_that_stderr_did_not_take_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that was restarted without systemd's help, a pipe whose reader is gone, a full disk behind `2>`."""
    reads, writes = os.pipe()
    os.close(reads)
    with open(writes, "w", buffering=1) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        start_logging(logging.INFO)
        log_as_service("text", None)
        log.logger.info("lost")
        log.logger.info("lost")
        (background,) = log.logger.handlers
        background.close()
        assert log.dropped_lines() == 2
        with contextlib.suppress(BrokenPipeError):
            gone.close()


def test_a_pipe_by_name_without_a_reader_is_a_mistake_and_no_wait_for_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(SettingsError, match=r"cannot write the log file .*: no such device or address"):
        FileHandler(str(path))
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.closing(FileHandler(str(path))) as handler:
            # One that is slow is waited for, as anywhere.
            assert os.get_blocking(handler._fd)
            handler.setFormatter(TextFormatter(timed=False))
            handler.handle(record("through"))
            assert os.read(reader, 100) == b"through\n"
    finally:
        os.close(reader)


# --- the process's log ----------------------------------------------------------------------------


def test_what_was_said_before_the_form_was_known_comes_first_and_in_that_form(path: Path) -> None:
    path.parent.mkdir()
    start_logging(logging.INFO, hold_back=True)
    log.logger.warning("can be read by everybody")
    log.logger.debug("not wanted")
    log_as_service("json", str(path))
    log.logger.info("listening")
    log.logger.handlers[0].close()
    assert [json.loads(line)["message"] for line in lines(path)] == ["can be read by everybody", "listening"]


def test_what_was_said_before_the_form_was_known_is_shown_where_it_never_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_logging(logging.INFO, hold_back=True)
    log.logger.warning("can be read by everybody")
    assert capsys.readouterr().err == ""
    log.flush()
    log.flush()
    assert capsys.readouterr().err == "http2tcp: can be read by everybody\n"


def test_a_log_file_that_cannot_be_written_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"cannot write the log file {tmp_path}: is a directory"):
        log_as_service("text", str(tmp_path))
