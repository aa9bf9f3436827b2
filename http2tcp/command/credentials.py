"""The token that the command line, the environment or the service manager gives, and files that hold one secret."""

from __future__ import annotations

import logging
import os
import stat

from http2tcp.command.options import TOKEN, TOKEN_FILE, Given, Option
from http2tcp.command.values import why_unreadable
from http2tcp.errors import SettingsError

logger = logging.getLogger("http2tcp")

# A name of our own: a unit that runs ssh may have a `token` that is for somebody else.
_CREDENTIAL = "http2tcp.token"


def given_token(given: Given) -> str | None:
    """The one token that was given, by value or by file, or else the service manager's.

    The command line beats the environment.
    """
    from http2tcp.fields import check_token

    source = token_source(given)
    if source is None:
        return _credential()
    # click takes a variable that is set but empty for one that is unset; an empty secret is a mistake.
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
    """The token that a unit hands to its service by LoadCredential= and the like: systemd.exec(5)."""
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
    """The option that says the token: TOKEN, TOKEN_FILE, or None. Raises SettingsError where both do."""
    sources = [option for option in (TOKEN, TOKEN_FILE) if given[option] is not None or option.variable in os.environ]
    spoken = [option for option in sources if given.on_command_line(option)] or sources
    if len(spoken) > 1:
        raise SettingsError("expected one token: either by value (-t) or by file (--token-file)")
    return spoken[0] if spoken else None


def read_secret(path: str, what: str) -> str:
    """A file's first line. Raises SettingsError, in which the file is called `what`."""
    if not path:
        raise SettingsError(f"the {what} has no name")
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                logger.warning("%s can be read by everybody on this machine: chmod o-r it", path)
            return file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the {what} {path}: {why_unreadable(error)}") from error
