"""Where the log goes. This does not use trio: the command line logs its warnings before trio is loaded.

Every command uses this module. A server's formats and log files are in `http2tcp.server.log_writer`.
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

# How many lines may wait to be written (a few hundred kB). Further lines are dropped and counted.
_WAITING = 4096
# Lines about clients without an accepted token may fill only this part of the queue, so that a flood of them leaves
# room for the records of sessions.
_FOR_STRANGERS = 3 / 4
# How many seconds the process waits, when it ends, for the last lines to be written.
_LAST_LINES = 1.0

# The priorities of sd-daemon(3) for the levels of the standard library.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def start_logging(level: int, *, hold_back: bool = False) -> None:
    """Log to stderr. Each line begins with `http2tcp: `.

    `hold_back` keeps the lines until `http2tcp.server.log_writer` knows the wanted format and file, or until the
    process ends.
    """
    # By default, logging prints a traceback when a line cannot be written (a full disk, a closed pipe).
    logging.raiseExceptions = False
    # No format of ours shows these, so logging need not look them up for each line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    stderr: logging.Handler = _Stderr()
    stderr.setFormatter(marked(logging.Formatter("http2tcp: %(message)s")))
    logger.handlers[:] = [HeldBack(stderr) if hold_back else stderr]
    logger.setLevel(level)


def log_in_background() -> None:
    """Write the log in a thread from now on, so that no tunnel waits if the log's reader stops (as by Ctrl-S)."""
    logger.handlers[:] = [BackgroundHandler(handler) for handler in logger.handlers]


def finish() -> bool:
    """Wait a moment at the end of the process for the last lines. Return whether they were written.

    If not, the process has to end by `os._exit`: a normal exit would wait for the locks that the writing thread holds.
    """
    background = [handler for handler in logger.handlers if isinstance(handler, BackgroundHandler)]
    if not background:
        return True
    for handler in background:
        handler.close()
    # stderr may still have to write a message about the log file, and the reader of stderr may have stopped too.
    flushing = threading.Thread(target=_flush_stderr, name="last lines", daemon=True)
    flushing.start()
    flushing.join(_LAST_LINES)
    return not flushing.is_alive() and all(handler.is_done for handler in background)


def _flush_stderr() -> None:
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        pass  # stderr is closed: there is nowhere left to write to


def dropped_lines() -> int:
    """Return how many lines the log's thread has lost, because its queue was full or the file could not be written."""
    return sum(handler.untold for handler in logger.handlers if isinstance(handler, BackgroundHandler))


def flush() -> None:
    """Write the lines that were held back."""
    for handler in logger.handlers:
        handler.flush()


# --- the journal ------------------------------------------------------------------------------


def stderr_is_journal() -> bool:
    """Whether systemd has connected stderr to the journal: systemd.exec(5), $JOURNAL_STREAM.

    It is not enough that the variable is set: it is inherited, and stderr may have been redirected since.
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
    """Return the text with its priority before each line, in the form that the journal reads."""
    priority = _PRIORITIES.get(level, _PRIORITIES[logging.INFO])
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def marked(formatter: logging.Formatter) -> logging.Formatter:
    """Return the formatter. If stderr is the journal, wrap it in one that adds the priorities."""
    return _Marked(formatter) if stderr_is_journal() else formatter


class _Marked(logging.Formatter):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return mark(self._formatter.format(record), record.levelno)


# --- handlers ---------------------------------------------------------------------------------


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]  # only type checkers see it as generic
    """Standard error, which may be a terminal that ssh or an editor has put into raw mode."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record. On a raw terminal a line feed does not return to the start of the line: add a CR."""
        self.terminator = "\r\n" if _is_raw() else "\n"
        super().emit(record)


def _is_raw() -> bool:
    if not os.isatty(2) or os.name != "posix":
        return False
    import termios

    try:
        return not termios.tcgetattr(2)[1] & termios.OPOST
    except termios.error:
        return False


class HeldBack(logging.Handler):
    """Keeps records until `take` returns them, or until `flush` passes them on to another handler."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record."""
        self._records.append(record)

    def take(self) -> Sequence[logging.LogRecord]:
        """Return the kept records, and forget them."""
        records, self._records = self._records, []
        return records

    def flush(self) -> None:
        """Pass the kept records on. The standard library also calls this when the process ends."""
        for record in self.take():
            self._handler.handle(record)


class BackgroundHandler(logging.Handler):
    """Hands records to another handler in a thread of its own, and never waits for it.

    When the queue fills up, records with the attribute `expendable` are dropped before others.
    """

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        # A SimpleQueue takes a tenth of the time of a queue.Queue. It has no size limit: `emit` checks the size.
        self._records: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        #: How many lines were dropped because the queue was full. Only `emit` changes this, and only the thread changes
        #: `_told`, so neither needs a lock.
        self.dropped = 0
        self._told = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        """Put the record into the queue. If there is no room, drop and count it."""
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
        """How many lines were lost, in this queue or in the other handler."""
        lost: int = getattr(self._handler, "lost", 0)
        return self.dropped + lost

    @property
    def is_done(self) -> bool:
        """Whether the last line was written. Ask this after `close`."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Wait a moment for the last lines, and end the thread."""
        atexit.unregister(self.close)
        self._records.put(None)
        # If the thread is stuck in a write, it ends only with the process: see `finish`.
        self._thread.join(_LAST_LINES)
        super().close()


def warning(words: str, *values: object) -> logging.LogRecord:
    """Make a record about the log itself, to be given to a handler directly."""
    return logger.makeRecord(logger.name, logging.WARNING, __file__, 0, words, values, None)
