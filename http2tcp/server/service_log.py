"""A server's log: its forms, text and JSON, and where they go: stderr, the journal, or a file that is rotated.

A message that is a dict is a record of `http2tcp.server.audit`: JSON has its keys, and its `str` is the line. Whatever
becomes of the log, the server goes on. docs/log.md is the reference.
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

# Who may read it: it says who went where.
_MODE = 0o640
# How often a log that cannot be written is told of, in seconds: a disk that is full may have room for one line in two.
_COMPLAINTS = 60.0


def log_as_service(form: Literal["text", "json"], path: str | None) -> None:
    """From now on log in this form, to the file or else to stderr, in a thread; what was held back comes first.

    Raises SettingsError where the file cannot be written.
    """
    # The journal has a time of its own.
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
    """Counts what could not be written."""

    def __init__(self) -> None:
        super().__init__()
        #: Lines that nobody got.
        self.lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        """There is nowhere else to tell of it but in the metrics."""
        self.lost += 1


# --- forms ------------------------------------------------------------------------------------


class _Clock:
    """RFC 3339 in UTC with milliseconds. The text of a second is made once."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def read(self, record: logging.LogRecord) -> str:
        """When the record was made."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """The time, and the message; a traceback below it."""

    def __init__(self, *, timed: bool) -> None:
        super().__init__()
        self._clock = _Clock() if timed else None

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Without what is below it."""
        return record.message if self._clock is None else f"{self._clock.read(record)} {record.message}"


class JSONFormatter(logging.Formatter):
    """One object a line (RFC 8259), in ASCII."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock()
        self._encode = json.JSONEncoder(separators=(",", ":")).encode

    def format(self, record: logging.LogRecord) -> str:
        """A record's own keys behind the time and the level; any other line is the event `log`."""
        line: dict[str, object] = {"time": self._clock.read(record), "level": record.levelname.lower()}
        if isinstance(record.msg, dict):
            line |= record.msg
        else:
            line |= {"event": "log", "message": _unicode(record.getMessage())}
        if record.exc_info:
            line["traceback"] = _unicode(self.formatException(record.exc_info))
        return self._encode(line)


def _unicode(text: str) -> str:
    # The name of a file may hold what is no UTF-8, and its escape in JSON is no character: many readers give up.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


# --- a file -----------------------------------------------------------------------------------


def check_log_file(path: str) -> None:
    """Raises SettingsError where a log could not be written there. It is neither made nor opened."""
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
    """Appends to a file that others rename, truncate or remove; it is opened anew where it is not there any more.

    What cannot be written is counted, told on stderr, and told in the file as soon as that can be written again.
    """

    def __init__(self, path: str) -> None:
        """Raises SettingsError where it cannot be opened."""
        super().__init__()
        self._path = path
        self._fd = -1
        self._inode: tuple[int, int] | None = None
        #: The last line was cut off within.
        self._torn = False
        #: Lines that could not be written, and how many of them the file tells of.
        self.lost = self._told = 0
        self._why = ""
        self._complained_at = -_COMPLAINTS
        try:
            self._open()
        except OSError as error:
            raise SettingsError(f"cannot write the log file {path}: {os_reason(error)}") from error

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, or count it."""
        try:
            text = self.format(record)
        except Exception:
            # A bug in one line must not keep the others from the file.
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
        # A pipe by name that nobody has open to read would be waited for, without a word.
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
        # One write, so that lines of two processes that share the file do not mix.
        data = (("\n" if self._torn else "") + text + "\n").encode("utf-8", "backslashreplace")
        written = os.write(self._fd, data)
        while written < len(data):
            self._torn = True
            written += os.write(self._fd, data[written:])
        self._torn = False

    def _complain(self) -> None:
        if time.monotonic() - self._complained_at < _COMPLAINTS:
            return
        words = f"http2tcp: cannot write the log file {self._path}: {self._why}; its lines are lost until it can"
        if stderr_is_journal():
            words = mark(words, logging.ERROR)
        try:
            # In a thread, since stderr may have a reader who has stopped.
            threading.Thread(target=_say, args=(words,), name="log complaint", daemon=True).start()
        except RuntimeError:
            return  # there are too many; the next line that is lost tries again
        self._complained_at = time.monotonic()


def _say(words: str) -> None:
    try:
        if sys.stderr is not None:
            print(words, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass  # nobody listens there either
