"""Where the log goes. Without trio: the command line warns before that is loaded.

Here is what every command has; a server's forms and files are in `http2tcp.server.service_log`.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence

logger = logging.getLogger("http2tcp")

# Lines that may wait for whoever reads the log, a few hundred kB; more are dropped and counted.
_WAITING = 4096
# The last quarter is closed to what strangers cause: no flood of theirs costs the record of a session.
_FOR_STRANGERS = 3 / 4
# How long the end of the process waits for the last lines to be taken.
_LAST_LINES = 1.0

# sd-daemon(3), by the levels of the standard library.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def start_logging(level: int, *, hold_back: bool = False) -> None:
    """Log to stderr, as `http2tcp: …`.

    `hold_back` keeps the lines until `http2tcp.server.service_log` knows in what form they are wanted, or the process
    ends before that.
    """
    # A log that cannot be written (a full disk, a closed pipe) is no reason to print tracebacks.
    logging.raiseExceptions = False
    # What is in none of our lines need not be looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stderr: logging.Handler = logging.StreamHandler()
    stderr.setFormatter(marked(logging.Formatter("http2tcp: %(message)s")))
    logger.handlers[:] = [HeldBack(stderr) if hold_back else stderr]
    logger.setLevel(level)


def log_in_background() -> None:
    """From now on a thread writes the log: a reader who has stopped (Ctrl-S, a stuck collector) stops no tunnel."""
    logger.handlers[:] = [BackgroundHandler(handler) for handler in logger.handlers]


def finish() -> bool:
    """At the end of the process: whether the last lines were taken, for which it waits a moment.

    Where they were not, only `os._exit` ends it: the interpreter would wait for the locks of whoever writes them.
    """
    background = [handler for handler in logger.handlers if isinstance(handler, BackgroundHandler)]
    if not background:
        return True
    for handler in background:
        handler.close()
    # A file's complaint may wait for a reader of stderr.
    flushing = threading.Thread(target=_flush_stderr, name="last lines", daemon=True)
    flushing.start()
    flushing.join(_LAST_LINES)
    return not flushing.is_alive() and all(handler.is_done for handler in background)


def _flush_stderr() -> None:
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        pass  # nobody is there who could take them


def dropped_lines() -> int:
    """How many lines of this process found no room, or were not taken by their file, since a thread writes its log."""
    return sum(handler.untold for handler in logger.handlers if isinstance(handler, BackgroundHandler))


def flush() -> None:
    """Show what is held back."""
    for handler in logger.handlers:
        handler.flush()


# --- the journal ------------------------------------------------------------------------------


def stderr_is_journal() -> bool:
    """Whether systemd has connected stderr to the journal: systemd.exec(5), $JOURNAL_STREAM.

    The variable alone does not say so. It is inherited, and stderr may have been sent elsewhere since.
    """
    named = os.environ.get("JOURNAL_STREAM")
    if not named or sys.stderr is None:
        return False
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


def mark(text: str, level: int) -> str:
    """The text with its priority before each line, as the journal reads it."""
    priority = _PRIORITIES.get(level, _PRIORITIES[logging.INFO])
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def marked(formatter: logging.Formatter) -> logging.Formatter:
    """The formatter, and where stderr is the journal, one that adds the priorities."""
    return _Marked(formatter) if stderr_is_journal() else formatter


class _Marked(logging.Formatter):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return mark(self._formatter.format(record), record.levelno)


# --- handlers ---------------------------------------------------------------------------------


class HeldBack(logging.Handler):
    """Keeps records for later; what is still there when it is flushed goes to another handler."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._records.append(record)

    def take(self) -> Sequence[logging.LogRecord]:
        """All of them; they are not held any more."""
        records, self._records = self._records, []
        return records

    def flush(self) -> None:
        """Let go what is held. The standard library calls it at the end of the process, too."""
        for record in self.take():
            self._handler.handle(record)


class BackgroundHandler(logging.Handler):
    """Hands records to another handler in a thread of its own, and never waits for it.

    A record with the attribute `expendable` is dropped before others are.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        # The simple kind has no limit of its own, and costs a tenth.
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        #: Lines that found no room. Written by who logs alone, and `_told` by the thread alone.
        self.dropped = 0
        self._told = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue it, or drop and count it."""
        room = _WAITING * _FOR_STRANGERS if hasattr(record, "expendable") else _WAITING
        if self._records.qsize() < room:
            self._records.put(record)
        else:
            self.dropped += 1

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            self._handler.handle(record)
            dropped = self.dropped - self._told
            if dropped:
                self._told += dropped
                self._handler.handle(
                    warning("lines of this log that were dropped: %d; its reader was too slow", dropped)
                )

    @property
    def untold(self) -> int:
        """How many lines nobody can read."""
        lost: int = getattr(self._handler, "lost", 0)
        return self.dropped + lost

    @property
    def is_done(self) -> bool:
        """After `close`: whether the last line was taken."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Wait a moment for the last lines, and end."""
        atexit.unregister(self.close)
        self._records.put(None)
        # Where nobody reads, the thread ends with the process: see `finish`.
        self._thread.join(_LAST_LINES)
        super().close()


def warning(words: str, *values: object) -> logging.LogRecord:
    """A record of ours about the log itself, for a handler alone."""
    return logger.makeRecord(logger.name, logging.WARNING, __file__, 0, words, values, None)
