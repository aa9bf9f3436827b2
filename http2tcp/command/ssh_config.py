"""`--ssh-config`: a client's options as a Host block for ~/.ssh/config. No secret is read or printed.

Three readers take a ProxyCommand apart: ssh, which wants balanced quotes in each line of its configuration; ssh
once more, which replaces its tokens (`%h`, …) and halves `%%`; and the user's shell, whichever it is. Each value is
written so that what the last of them hands on is what the user gave.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from http2tcp.errors import SettingsError

if TYPE_CHECKING:
    from http2tcp.client.settings import ClientSettings

# What ssh replaces in a ProxyCommand: ssh_config(5), TOKENS.
_TOKENS = {"%%": "%", "%h": "host", "%n": "host", "%p": "22", "%r": "user"}
_PERCENT = re.compile("%[%hnpr]|%")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Patterns of ssh_config(5). One that begins with ! matches nothing by itself, and ssh takes a leading - for an option.
_HOST = re.compile(r"""[^-!\s"'#\\][^\s"'#\\]*""")
# What no shell gives a meaning to. Not `~` and `=`, which mean something at the start of a word.
_PLAIN = re.compile(r"[A-Za-z0-9_@%+:,./-]+", re.ASCII)
# Options whose text may be @FILE.
AT_FILE = ("-H", "--proxy")
_SECRET_NAME = re.compile("auth|cookie|credential|key|pass|secret|session|signature|token", re.IGNORECASE)

_SHARED = """\
    # One tunnel for all logins to a host: the further ones start at once, but end with the first one's connection.
    #ControlMaster auto
    #ControlPath ~/.ssh/%C
    #ControlPersist 10m
"""


class Written(NamedTuple):
    """An option as it was given: `-e` and its text, or a flag alone."""

    option: str
    text: str | None = None
    #: Whether the text is a file's name.
    file: bool = False


def sample(text: str) -> str:
    """The text with values in the place of ssh's tokens, so that it can be parsed."""
    return _PERCENT.sub(lambda match: _TOKENS.get(match[0], match[0]), text)


def has_token(text: str) -> bool:
    """Whether ssh would replace a part of the text."""
    return any(match != "%" for match in _PERCENT.findall(text))


def host_block(name: str, options: Sequence[Written], settings: ClientSettings, command: Sequence[str]) -> str:
    """The block, which begins with an empty line: the file that it is appended to may end within a line.

    `settings` are what samples of the options come to; `command` starts http2tcp. Raises SettingsError.
    """
    if not _HOST.fullmatch(name) or _CONTROL.search(name):
        raise SettingsError(
            f"--ssh-config {name!a}: expected a name or a pattern for ssh, as in mybox or *.example.com"
        )
    if settings.forwards:
        raise SettingsError("--ssh-config is for ssh, which uses stdin and stdout: expected it without -l, -L and -D")
    _check_secrets(settings)
    words = [*map(_doubled, command), "-c"]
    for option, text, file in options:
        words.append(option)
        if text is not None:
            words.append(_value(option, text, file))
    lines = [f"Host {name}", f"    ProxyCommand {' '.join(map(_quoted, words))}"]
    if settings.fdpass:
        lines.append("    ProxyUseFdpass yes")
    raw = settings.fdpass or (settings.transport is not None and settings.transport.raw)
    if raw or settings.transport is None:
        where = "On raw bytes" if raw else "Where only raw bytes get through"
        lines.append(f"    # {where}, none but ssh breaks a silence, and a proxy on the way may cut what is silent.")
        lines.append(f"    ServerAliveInterval {max(1, round(settings.keepalive or 0))}")
    return "\n" + "\n".join(lines) + "\n" + _SHARED


def own_command() -> list[str]:
    """What starts this very http2tcp from a shell: its name where the PATH of every login leads to it."""
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py" or not os.path.isfile(script):
        return [sys.executable, "-m", "http2tcp"]
    found = shutil.which("http2tcp")
    # The PATH of an activated environment is that of one terminal.
    here = os.path.join(sys.prefix, "")
    activated = sys.prefix != sys.base_prefix and found is not None and found.startswith(here)
    if found is not None and os.path.samefile(found, script) and not activated:
        return ["http2tcp"]
    return [os.path.abspath(script)]


def _check_secrets(settings: ClientSettings) -> None:
    rule = "--ssh-config prints no secret: "
    if settings.endpoint.password is not None:
        raise SettingsError(
            f"{rule}leave the password out of -e, and put an Authorization line into a file for -H @FILE"
        )
    if settings.proxy is not None and settings.proxy.password is not None:
        raise SettingsError(f"{rule}put the proxy's URL into a file, and give it as --proxy @FILE")
    for name, _ in settings.headers:
        if _SECRET_NAME.search(name):
            raise SettingsError(f"{rule}put the line of {name} into a file, and give it as -H @FILE")


def _value(option: str, text: str, file: bool) -> str:
    if _CONTROL.search(text):
        raise SettingsError(f"{option}: ssh's configuration cannot hold a control character")
    at = "@" if option in AT_FILE and text.startswith("@") else ""
    if not file and not at:
        return _with_tokens(text)
    name = text.removeprefix(at)
    if not name:
        raise SettingsError(f"{option}: the file has no name")
    return at + _path(name)


def _path(name: str) -> str:
    """A file's absolute name, as ssh may run in any directory."""
    try:
        directory = "" if os.path.isabs(name) else os.path.join(os.getcwd(), "")
    except FileNotFoundError:
        raise SettingsError(f"{name!a}: name it from the root, since the current directory is gone") from None
    absolute = os.path.join(directory, name)
    # Of a file that is there with a % in its name, that very file is meant.
    if os.path.lexists(absolute):
        return _doubled(absolute)
    return _doubled(directory) + _with_tokens(name)


def _with_tokens(text: str) -> str:
    return _PERCENT.sub(lambda match: match[0] if match[0] in _TOKENS else "%%", text)


def _doubled(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word for sh, bash, zsh, csh and fish alike, and for ssh's own reader of quotes.

    Not shlex.quote: inside single quotes fish and ssh take a backslash for an escape, and csh a ! for its history, so
    neither may stand there.
    """
    if _PLAIN.fullmatch(word):
        return word
    return "'" + re.sub(r"['\\!]", lambda match: f"'\\{match[0]}'", word) + "'"
