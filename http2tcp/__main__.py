"""`http2tcp` and `python -m http2tcp`."""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line. Until it has its own handlers, Ctrl-C ends the process without a traceback."""
    _fill_standard_descriptors()
    # Nothing becomes garbage while modules load: without the collector they load in 0.93 of the time.
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from http2tcp.command.exit_status import run

    status = run()
    _ignore_signals()
    from http2tcp.log import finish

    if not finish():
        os._exit(status)
    _drop_untaken_lines()
    sys.exit(status)


def _ignore_signals() -> None:
    # A server's status is known. What it still has a handler for would kill it once the interpreter takes that away.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None and callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


def _drop_untaken_lines() -> None:
    # Python would try them once more on its way out, and its exit status would tell of that (120).
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _fill_standard_descriptors() -> None:
    # Where one was closed, the next socket would get its number, and be taken for stdin or stdout.
    for fd, mode in (0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number; a closed stdout stays one that fails


if __name__ == "__main__":
    main()
