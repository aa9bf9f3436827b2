"""`--ssh-config`: print a client's options as a Host block for ~/.ssh/config. It reads and prints no secret.

A ProxyCommand is parsed three times: ssh wants balanced quotes in each line of its configuration; later ssh replaces
its tokens (`%h`, …) and turns `%%` into `%`; then the user's shell, which may be any shell, parses the result. Each
value is quoted so that after all three, http2tcp gets what the user wrote.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from http2tcp.errors import SettingsError

if TYPE_CHECKING:
    from http2tcp.client.settings import ClientSettings

# The tokens that ssh replaces in a ProxyCommand (ssh_config(5), TOKENS), each with a sample of its replacement.
_TOKENS = {"%%": "%", "%h": "host", "%n": "host", "%p": "22", "%r": "user"}
_PERCENT = re.compile("%[%hnpr]|%")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# A host name or pattern of ssh_config(5). Exclude a leading !, since such a pattern matches nothing by itself, and a
# leading -, since ssh would take the name for an option.
_HOST = re.compile(r"""[^-!\s"'#\\][^\s"'#\\]*""")
# Characters without a special meaning in any shell. `~` and `=` are missing: they have one at the start of a word.
_PLAIN = re.compile(r"[A-Za-z0-9_@%+:,./-]+", re.ASCII)
# Options whose value may be @FILE.
AT_FILE = ("-H", "--proxy")
# For a tunnel that can come back: the seconds between ssh's own keepalives, and how many times longer than http2tcp's
# `resume` ssh tolerates silence. It must be longer, since http2tcp may begin its last attempt at the very end.
_ALIVE_INTERVAL = 60
_LONGER = 4 / 3
_SECRET_NAME = re.compile("auth|cookie|credential|key|pass|secret|session|signature|token", re.IGNORECASE)

_SHARED = """\
    # One tunnel for all logins to a host: later logins start at once, but end when the first one's connection does.
    #ControlMaster auto
    #ControlPath ~/.ssh/%C
    #ControlPersist 10m
"""


class Written(NamedTuple):
    """An option as the user gave it: for example `-e` and its text, or a flag without a text."""

    option: str
    text: str | None = None
    #: Whether the text is a file name.
    file: bool = False


def sample(text: str) -> str:
    """Return the text with sample values in place of ssh's tokens, so that it can be parsed."""
    return _PERCENT.sub(lambda match: _TOKENS.get(match[0], match[0]), text)


def has_token(text: str) -> bool:
    """Return whether ssh would replace a part of the text."""
    return any(match != "%" for match in _PERCENT.findall(text))


def host_block(name: str, options: Sequence[Written], settings: ClientSettings, command: Sequence[str]) -> str:
    """Return the block. It begins with a newline, since the file that it is appended to may lack its last one.

    `settings` are parsed from the options' samples (see `sample`). `command` has the words that start http2tcp.
    Raises SettingsError.
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
    return "\n" + "\n".join([*lines, *_alive(settings)]) + "\n" + _SHARED


def _alive(settings: ClientSettings) -> list[str]:
    """Return the lines for ssh's own keepalive, if it needs any: that depends on `resume` and the transport."""
    raw = settings.fdpass or (settings.transport is not None and settings.transport.raw)
    if settings.resume and not raw:
        count = math.ceil(_LONGER * settings.resume / _ALIVE_INTERVAL)
        length = settings.resume / 60
        return [
            f"    # http2tcp brings a lost connection back for up to {length:g} minutes. With a lower count, ssh would",
            "    # end before that; with no interval, it would not notice that the host behind the server is dead.",
            f"    ServerAliveInterval {_ALIVE_INTERVAL}",
            f"    ServerAliveCountMax {count}",
        ]
    if not raw and settings.transport is not None:
        return []
    where = "On raw bytes" if raw else "If only raw bytes get through"
    return [
        f"    # {where}, only ssh can keep the connection alive; a proxy on the way may cut a silent one.",
        f"    ServerAliveInterval {max(1, round(settings.keepalive or 0))}",
    ]


def own_command() -> list[str]:
    """Return the words that start this http2tcp from a shell: only its name, if every login finds it on the PATH."""
    script = sys.argv[0]
    if os.path.basename(script) == "__main__.py" or not os.path.isfile(script):
        return [sys.executable, "-m", "http2tcp"]
    found = shutil.which("http2tcp")
    # An activated virtual environment is on the PATH of this terminal only, so then the name is not enough.
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
    """Return a file's absolute name, since ssh may run in any directory."""
    try:
        directory = "" if os.path.isabs(name) else os.path.join(os.getcwd(), "")
    except FileNotFoundError:
        raise SettingsError(f"{name!a}: name it from the root, since the current directory is gone") from None
    absolute = os.path.join(directory, name)
    # If a file of exactly this name exists, the user means that file, so a % in its name does not begin a token of ssh.
    if os.path.lexists(absolute):
        return _doubled(absolute)
    return _doubled(directory) + _with_tokens(name)


def _with_tokens(text: str) -> str:
    return _PERCENT.sub(lambda match: match[0] if match[0] in _TOKENS else "%%", text)


def _doubled(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """Quote one word for sh, bash, zsh, csh and fish alike, and for ssh's own parser of quotes.

    shlex.quote is not enough. Inside single quotes, fish and ssh read a backslash as an escape, and csh reads a ! as a
    reference to its history. So both must be outside of the quotes.
    """
    if _PLAIN.fullmatch(word):
        return word
    return "'" + re.sub(r"['\\!]", lambda match: f"'\\{match[0]}'", word) + "'"
