"""Finds the token: on the command line, in the environment or from the service manager. Reads files with one secret."""

from __future__ import annotations

import logging
import os
import stat

from http2tcp.command.options import TOKEN, TOKEN_FILE, Given, Option
from http2tcp.command.values import why_unreadable
from http2tcp.errors import SettingsError

logger = logging.getLogger("http2tcp")

# The name of the systemd credential with the token. Not just `token`: a unit that runs ssh may have a credential of
# that name for another program.
_CREDENTIAL = "http2tcp.token"


def given_token(given: Given) -> str | None:
    """Return the token that the user gave by value or by file, or else the service manager's. None: no token.

    The command line beats the environment. Raises SettingsError.
    """
    from http2tcp.fields import check_token

    source = token_source(given)
    if source is None:
        return _credential()
    # click treats an empty variable as unset, so its value is None here. For a secret that is an error: somebody
    # probably forgot to fill it in.
    text = given[source] or ""
    token = (read_secret(text, "token file") if source is TOKEN_FILE else text).strip()
    if not token:
        if source is TOKEN_FILE:
            raise SettingsError(_empty(f"the first line of {text}"))
        raise SettingsError(_empty("-t" if given.on_command_line(source) else source.variable))
    check_token(token)
    return token


def _empty(where: str) -> str:
    return f"the token is empty ({where}): a secret was probably not set"


def _credential() -> str | None:
    """Return the token that a systemd unit passes by LoadCredential= or the like (systemd.exec(5)), or None."""
    from http2tcp.fields import check_token

    path = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", ""), _CREDENTIAL)
    if not os.path.isabs(path) or not os.path.exists(path):
        return None
    token = read_secret(path, "credential").strip()
    if not token:
        raise SettingsError(_empty(f"the first line of the credential {path}"))
    check_token(token)
    return token


def token_source(given: Given) -> Option[str | None] | None:
    """Return the option that gives the token: TOKEN, TOKEN_FILE, or None. Raises SettingsError if both do."""
    sources = [option for option in (TOKEN, TOKEN_FILE) if given[option] is not None or option.variable in os.environ]
    spoken = [option for option in sources if given.on_command_line(option)] or sources
    if len(spoken) > 1:
        raise SettingsError("expected one token: either by value (-t) or by file (--token-file)")
    return spoken[0] if spoken else None


def read_secret(path: str, what: str) -> str:
    """Return a file's first line. Raises SettingsError, whose message calls the file `what`."""
    if not path:
        raise SettingsError(f"the {what} has no name")
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                logger.warning("%s can be read by everybody on this machine: chmod o-r it", path)
            return file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the {what} {path}: {why_unreadable(error)}") from error
