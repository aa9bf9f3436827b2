"""Where the log goes. Without trio: the command line warns before that is loaded."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time

logger = logging.getLogger("http2tcp")

# Lines that may wait for whoever reads the log, a few hundred kB; more are dropped and counted.
_WAITING = 4096
# How long the end of the process waits for the last lines to be taken.
_LAST_LINES = 1.0


def start_logging(level: int, *, service: bool) -> None:
    """Log to stderr: a service with the time, unless the journal adds it; a command as `http2tcp: …`."""
    # A log that cannot be written (a full disk, a closed pipe) is no reason to print tracebacks.
    logging.raiseExceptions = False
    formatter = logging.Formatter("http2tcp: %(message)s")
    if service:
        formatter = logging.Formatter("%(message)s")
        if "JOURNAL_STREAM" not in os.environ:
            formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
            formatter.converter = time.gmtime
    stderr = logging.StreamHandler()
    stderr.setFormatter(formatter)
    logger.handlers[:] = [stderr]
    logger.setLevel(level)


def log_in_background() -> None:
    """From now on a thread writes the log: a reader who has stopped (Ctrl-S, a stuck collector) stops no tunnel."""
    logger.handlers[:] = [BackgroundHandler(handler) for handler in logger.handlers]


class BackgroundHandler(logging.Handler):
    """Hands records to another handler in a thread of its own, and never waits for it."""

    def __init__(self, handler: logging.Handler) -> None:
        super().__init__()
        self._handler = handler
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue it, or drop and count it."""
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            self._handler.handle(record)
            dropped, self._dropped = self._dropped, 0
            if dropped:
                self._handler.handle(_about(dropped))

    def close(self) -> None:
        """Wait a moment for the last lines, and end."""
        atexit.unregister(self.close)
        try:
            self._records.put_nowait(None)
        except queue.Full:
            return  # nobody reads; the thread ends with the process
        self._thread.join(_LAST_LINES)
        super().close()


def _about(dropped: int) -> logging.LogRecord:
    words = "%d lines of this log were dropped: its reader was too slow"
    return logger.makeRecord(logger.name, logging.WARNING, __file__, 0, words, (dropped,), None)
