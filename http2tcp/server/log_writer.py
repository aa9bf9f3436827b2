"""A server's log: as text or JSON, to stderr, to the journal, or to a file that other programs rotate.

A message that is a dict is a record of `http2tcp.server.audit`: JSON shows its keys, text shows its `str`. If the log
cannot be written, the server goes on without it. docs/log.md is the reference.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import threading
import time
from typing import Literal, TextIO

from http2tcp.errors import SettingsError, os_reason
from http2tcp.log import BackgroundHandler, HeldBack, logger, mark, marked, stderr_is_journal, warning

# The mode of a new log file. Other users may not read it: the log says which client went where.
_MODE = 0o640
# How many seconds to wait before stderr says again that the log cannot be written. A full disk may have room for every
# second line, so without this pause there would be thousands of complaints.
_COMPLAINTS = 60.0


def log_as_service(form: Literal["text", "json"], path: str | None) -> None:
    """From now on, log in this form to the file at `path`, or to stderr if it is None. A thread writes the lines.

    Lines that were held back so far are written first. Raises SettingsError if the file cannot be written.
    """
    # The journal adds the time itself.
    timed = path is not None or not stderr_is_journal()
    formatter = JSONFormatter() if form == "json" else TextFormatter(timed=timed)
    handler: logging.Handler
    if path is None:
        handler = _StderrHandler()
        handler.setFormatter(marked(formatter))
    else:
        handler = FileHandler(path)
        handler.setFormatter(formatter)
    background = BackgroundHandler(handler)
    for former in logger.handlers:
        for record in former.take() if isinstance(former, HeldBack) else ():
            background.handle(record)
    logger.handlers[:] = [background]


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes lines to stderr, and counts the lines that could not be written."""

    def __init__(self) -> None:
        super().__init__()
        #: How many lines could not be written.
        self.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the line as lost. Only the metrics can show the loss, since stderr itself has failed."""
        self.lost += 1


# --- formats ----------------------------------------------------------------------------------


class _Clock:
    """Formats times as in RFC 3339, in UTC with milliseconds. Keeps the text of the last second, which saves time."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def read(self, record: logging.LogRecord) -> str:
        """Return the time of the record as text."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """Formats a line as its time and its message. If there is a traceback, it comes below."""

    def __init__(self, *, timed: bool) -> None:
        super().__init__()
        self._clock = _Clock() if timed else None

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without a traceback."""
        return record.message if self._clock is None else f"{self._clock.read(record)} {record.message}"


class JSONFormatter(logging.Formatter):
    """Formats each line as a JSON object (RFC 8259), in ASCII."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()
        self._encode = json.JSONEncoder(separators=(",", ":")).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the line: the time and the level, then the keys of an audit record.

        A line that is not an audit record has `event`, which is `log`, and `message` instead of these keys.
        """
        line: dict[str, object] = {"time": self._clock.read(record), "level": record.levelname.lower()}
        if isinstance(record.msg, dict):
            line |= record.msg
        else:
            line |= {"event": "log", "message": _unicode(record.getMessage())}
        if record.exc_info:
            line["traceback"] = _unicode(self.formatException(record.exc_info))
        return self._encode(line)


def _unicode(text: str) -> str:
    # A file name that is not UTF-8 would become lone surrogates in JSON, which many readers reject.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


# --- a file -----------------------------------------------------------------------------------


def check_log_file(path: str) -> None:
    """Raise SettingsError if a log could not be written at this path. The file is neither created nor opened."""
    place = path if os.path.exists(path) else os.path.dirname(path) or os.curdir
    if os.path.isdir(path):
        code = errno.EISDIR
    elif not os.path.isdir(place) and place != path:
        code = errno.ENOENT
    elif not os.access(place, os.W_OK):
        code = errno.EACCES
    else:
        return
    raise SettingsError(f"cannot write the log file {path}: {os.strerror(code).lower()}")


class FileHandler(logging.Handler):
    """Appends lines to a file that other programs may rename, truncate or remove.

    If the file was moved or removed, the handler opens the path again. It counts lines that cannot be written, and
    reports them on stderr, and in the file once it can be written again.
    """

    def __init__(self, path: str) -> None:
        """Open the file. Raises SettingsError if it cannot be opened."""
        super().__init__()
        self._path = path
        self._fd = -1
        self._inode: tuple[int, int] | None = None
        #: Whether only a part of the last line was written.
        self._torn = False
        #: How many lines could not be written, and how many of these the file has already reported.
        self.lost = self._told = 0
        self._why = ""
        self._complained_at = -_COMPLAINTS
        try:
            self._open()
        except OSError as error:
            raise SettingsError(f"cannot write the log file {path}: {os_reason(error)}") from error

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, or count it as lost."""
        try:
            text = self.format(record)
        except Exception:
            # A line that cannot be formatted is a bug. It must not stop the other lines of the log.
            self.handleError(record)
            return
        if lost := self.lost - self._told:
            text = f"{self.format(warning('lines of this log that were lost: %d; %s', lost, self._why))}\n{text}"
        try:
            self._reopen_where_moved()
            self._write(text)
            self._told = self.lost
        except OSError as error:
            self.lost += 1
            self._why = os_reason(error)
            self._complain()

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()

    def _open(self) -> None:
        # Open with O_NONBLOCK, since opening a named pipe without a reader would block.
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), _MODE)
        if os.name == "posix":
            os.set_blocking(fd, True)
        status = os.fstat(fd)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode, self._torn = fd, (status.st_dev, status.st_ino), False

    def _reopen_where_moved(self) -> None:
        try:
            status = os.stat(self._path)
            found: tuple[int, int] | None = (status.st_dev, status.st_ino)
        except FileNotFoundError:
            found = None
        if self._fd < 0 or found != self._inode:
            self._open()

    def _write(self, text: str) -> None:
        # Write the whole line with one call, so that the lines of two processes that share the file do not mix.
        data = (("\n" if self._torn else "") + text + "\n").encode("utf-8", "backslashreplace")
        written = os.write(self._fd, data)
        while written < len(data):
            self._torn = True
            written += os.write(self._fd, data[written:])
        self._torn = False

    def _complain(self) -> None:
        if time.monotonic() - self._complained_at < _COMPLAINTS:
            return
        words = f"http2tcp: cannot write the log file {self._path}: {self._why}; lines are lost until this is fixed"
        if stderr_is_journal():
            words = mark(words, logging.ERROR)
        try:
            # Write in a thread, since a write to stderr blocks if the program at the other end has stopped reading.
            threading.Thread(target=_say, args=(words,), name="log complaint", daemon=True).start()
        except RuntimeError:
            return  # no further thread can be started: try again at the next lost line
        self._complained_at = time.monotonic()


def _say(words: str) -> None:
    try:
        if sys.stderr is not None:
            print(words, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # stderr cannot be written either, so the complaint is lost
