"""`http2tcp` and `python -m http2tcp`."""

from __future__ import annotations

import gc
import os
import signal
import sys


def main() -> None:
    """Run the command line. Until it has its own handlers, Ctrl-C ends the process without a traceback."""
    _fill_standard_descriptors()
    # Loading modules makes no garbage. With the garbage collector off, it takes only 0.93 of the time.
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
    # The exit status is decided by now. When it ends, the interpreter removes our signal handlers. A signal after that
    # would kill the process and change its status.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None and callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


def _drop_untaken_lines() -> None:
    # Drop the lines that could not be written to stderr. Otherwise Python tries to write them once more at exit,
    # fails, and exits with status 120.
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _fill_standard_descriptors() -> None:
    # If stdin, stdout or stderr is closed, the next socket gets its number, and would be used in its place.
    for fd, mode in (0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY):
        try:
            os.fstat(fd)
        except OSError:
            os.open(
                os.devnull, mode
            )  # takes the lowest free number. A closed stdout is opened for reading, so writing to it still fails


if __name__ == "__main__":
    main()
