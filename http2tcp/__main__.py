"""`http2tcp` and `python -m http2tcp`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line. Until it has its own handlers, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from http2tcp.cli import run

    sys.exit(run())


if __name__ == "__main__":
    main()
