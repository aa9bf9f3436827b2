"""Where the token comes from: the command line, the environment or the service manager. Files that hold one secret."""

from __future__ import annotations

import logging
import os
import stat

from http2tcp.command.options import TOKEN, TOKEN_FILE, Given, Option
from http2tcp.command.values import why_unreadable
from http2tcp.errors import SettingsError

logger = logging.getLogger("http2tcp")

# Not just `token`: a unit that runs ssh may have a credential of that name for another program.
_CREDENTIAL = "http2tcp.token"


def given_token(given: Given) -> str | None:
    """The token that was given by value or by file, or else by the service manager. None: no token.

    The command line beats the environment. Raises SettingsError.
    """
    from http2tcp.fields import check_token

    source = token_source(given)
    if source is None:
        return _credential()
    # To click, an empty variable is an unset one. An empty secret is an error: it was probably not filled in.
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
    """The token that a unit gives to its service by LoadCredential= or a similar setting: systemd.exec(5)."""
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
    """The option that gives the token: TOKEN, TOKEN_FILE, or None. Raises SettingsError if both do."""
    sources = [option for option in (TOKEN, TOKEN_FILE) if given[option] is not None or option.variable in os.environ]
    spoken = [option for option in sources if given.on_command_line(option)] or sources
    if len(spoken) > 1:
        raise SettingsError("expected one token: either by value (-t) or by file (--token-file)")
    return spoken[0] if spoken else None


def read_secret(path: str, what: str) -> str:
    """A file's first line. Raises SettingsError, which calls the file `what`."""
    if not path:
        raise SettingsError(f"the {what} has no name")
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                logger.warning("%s can be read by everybody on this machine: chmod o-r it", path)
            return file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the {what} {path}: {why_unreadable(error)}") from error
