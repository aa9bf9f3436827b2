"""Runs the command line, and turns each error into an exit code and one line on stderr."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Sequence

import click

from http2tcp.command.cli import command
from http2tcp.command.options import ENV_PREFIX, Source
from http2tcp.errors import ConfigError, Http2tcpError, StdioFailed, TunnelError

logger = logging.getLogger("http2tcp")


_MAX_SENTENCE = 1000
EXIT_BUG = 1
EXIT_USAGE = 2


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status. If it fails, a line on stderr says what went wrong."""
    status = _run(arguments)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # The interpreter flushes stdout again when it exits, and would print a traceback. Redirect stdout to /dev/null,
        # so that this flush succeeds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return command.main(arguments, prog_name="http2tcp", standalone_mode=False) or 0
    except click.ClickException as error:
        return _complain(_sentence(error), EXIT_USAGE)
    except ConfigError as error:
        return max(_complain(mistake, error.exit_code) for mistake in error.mistakes)
    except TunnelError as error:
        return _complain(f"{error.hop}: {error}", error.exit_code)
    except Http2tcpError as error:
        return _complain(str(error), error.exit_code)
    except SystemExit:
        return 0  # click raises SystemExit for EPIPE: the reader has closed our output, and that is fine
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _complain(
                f"{StdioFailed.hop}: cannot write to stdout: no space left on device", StdioFailed.exit_code
            )
        logger.exception("this is a bug in http2tcp; please report it with these lines")
        return EXIT_BUG


def _sentence(error: click.ClickException) -> str:
    """Write click's error in the form of our own errors: first the option or its variable, then what is wrong."""
    words = error.format_message()
    words = words[0].lower() + words[1:]
    if isinstance(error, click.BadParameter) and error.param is not None and error.ctx is not None:
        param = error.param
        from_variable = error.ctx.get_parameter_source(str(param.name)) is Source.ENVIRONMENT
        words = error.message
        variable = f"{ENV_PREFIX}_{str(param.name).upper()}"
        if isinstance(param.type, click.types.BoolParamType):
            # The value is a variable's, since a flag on the command line has no value. Replace click's message, which
            # lists eleven values.
            words = f"{os.environ.get(variable, '')!a}: expected 1 or 0, true or false, yes or no, on or off"
        words = f"{variable if from_variable else param.opts[0]}: {words}"
    return " ".join(words.split()).removesuffix(".")


def _complain(sentence: str, exit_code: int) -> int:
    from http2tcp.log import flush, mark, stderr_is_journal

    flush()
    if len(sentence) > _MAX_SENTENCE:
        # The user may have given a file's content in place of its name. Keep the end of the sentence, too: it says
        # what was expected.
        half = _MAX_SENTENCE // 2
        sentence = f"{sentence[:half]} ... {sentence[-half:]}"
    words = f"http2tcp: {sentence}"
    try:
        # stderr is None if it was closed when we began; print would write to stdout then.
        if sys.stderr is not None:
            # ssh may have put the terminal into raw mode, in which a newline does not return to the first column.
            end = "\r\n" if sys.stderr.isatty() else "\n"
            print(mark(words, logging.ERROR) if stderr_is_journal() else words, file=sys.stderr, end=end)
    except OSError:
        pass  # stderr is closed or broken; the exit status still says that the command failed
    return exit_code
