"""Where the log goes. Without trio: the command line warns before that is loaded."""

from __future__ import annotations

import logging
import os
import time

logger = logging.getLogger("http2tcp")


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
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
