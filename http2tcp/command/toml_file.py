"""Reads the server's configuration file: from TOML to values and tokens. docs/configuration.md is the reference.

The file's keys are the server's options, whose parsers the caller passes in, and `[[token]]`. Every error names the
path of its key, as in `token[2].allow[0]`, and all errors are reported at once. No message shows a value that may be a
secret: the value of `sha256`, or of an unknown key.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal, NamedTuple

from http2tcp.errors import ConfigError, Http2tcpError, SettingsError, os_reason
from http2tcp.server.policy import UNNAMED, Token, digest
from http2tcp.server.rules import Rule, parse_rule
from http2tcp.units import parse_count

# The longest name of a token, in characters: the operator's name for a person or a machine. It must fit into a line of
# the log.
_MAX_NAME = 64

#: The keys of a [[token]].
TOKEN_KEYS = ("name", "sha256", "expires", "allow", "deny", "max_tunnels")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
# How tomllib ends its sentences: "Invalid value (at line 3, column 8)".
_PLACE = re.compile(r"(.*) \(at (.*)\)", re.DOTALL)
_DAY = timedelta(days=1)


class Key(NamedTuple):
    """How an option's value is read from the file."""

    #: Parses a text. Raises Http2tcpError.
    parse: Callable[[str], Any]
    #: `number`: a number, or a text such as "15m". `file`: a file name, relative to the configuration file's directory.
    kind: Literal["text", "number", "flag", "file"] = "text"
    #: Whether the value is a list. A list of one text may be written without its brackets.
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A parsed configuration file."""

    path: str
    #: The values of the options that the file sets, by their keys.
    values: Mapping[str, Any]
    tokens: Sequence[Token] = field(repr=False)


def read_config(path: str, keys: Mapping[str, Key]) -> Config:
    """Read and parse a file. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            # utf-8-sig skips the byte order mark with which some editors begin a file.
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}, line {line}: it is not UTF-8"]) from None
    except OSError as error:
        raise ConfigError(
            [f"cannot read the configuration file {path or 'without a name'}: {os_reason(error)}"]
        ) from None
    return parse_config(text, keys, path)


def parse_config(text: str, keys: Mapping[str, Key], path: str) -> Config:
    """Parse a file's text. File names in it are relative to the directory of `path`. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = _PLACE.fullmatch(str(error))
        words, place = (found[1], found[2]) if found else (str(error), "")
        if place == "end of document":
            place = f"line {len(text.splitlines())}, its end"
        raise ConfigError([f"{path}{place and ', '}{place}: {words[:1].lower()}{words[1:]}"]) from None
    reader = _Reader(os.path.dirname(path), keys)
    reader.refuse_unknown(document, {*keys, "token"}, "")
    values = {name: reader.value(name, document[name], keys[name]) for name in keys if name in document}
    tokens = reader.tokens(document.get("token", []))
    if reader.mistakes:
        raise ConfigError([f"{path}: {mistake}" for mistake in reader.mistakes])
    return Config(path=path, values=values, tokens=tokens)


class _Reader:
    """Reads values and collects errors. For a value with an error, it returns a placeholder."""

    def __init__(self, directory: str, keys: Iterable[str]) -> None:
        self.mistakes: list[str] = []
        self._directory = directory
        # The keys allowed at the top of the file, outside of any [[token]].
        self._keys = set(keys)
        # The name of the token that is being read, in brackets, for messages: a name is easier to find than a number.
        self._whose = ""

    def wrong(self, where: str, words: str) -> None:
        """Record an error. `where` is the path of its key."""
        self.mistakes.append(f"{where}{self._whose}: {words}")

    def refuse_unknown(self, table: Mapping[str, Any], known: Iterable[str], prefix: str) -> None:
        """Record an error for each key of `table` that is not in `known`."""
        known = sorted(known)
        for name in table:
            if name in known:
                continue
            shown = name if _BARE_KEY.fullmatch(name) else ascii(name)
            self.wrong(prefix + shown, self._hint(name, table[name], known, prefix))

    def _hint(self, name: str, value: Any, known: Sequence[str], prefix: str) -> str:
        plain = name.replace("-", "_").lower()
        if prefix and plain in self._keys.difference(TOKEN_KEYS):
            # In TOML, every line after a [[token]] belongs to that token.
            return f"{plain} is not a token's key: move it before the first [[token]]"
        if prefix and plain == "token":
            return "there is no such key; is sha256 meant, the token's hash?"
        if not prefix and plain in set(TOKEN_KEYS) - self._keys:
            return "this is a token's key: move it after a [[token]]"
        if near := difflib.get_close_matches(plain, known, 1):
            return f"there is no such key; is {near[0]} meant?"
        return (
            f"there is no such {'section: keys stand at the top, outside of any' if isinstance(value, dict) else 'key'}"
        )

    def value(self, where: str, value: Any, key: Key) -> Any:
        """Parse an option's value."""
        if not key.many:
            return self._one(where, value, key)
        if isinstance(value, str):
            return (self._one(where, value, key),)
        if not isinstance(value, list):
            self.wrong(where, f'expected a list, as in ["…", "…"], not {_what(value)}')
            return ()
        return tuple(self._one(f"{where}[{index}]", item, key) for index, item in enumerate(value))

    def _one(self, where: str, value: Any, key: Key) -> Any:
        if key.kind == "flag":
            if not isinstance(value, bool):
                self.wrong(where, f"expected true or false, not {_what(value)}")
            return value
        if key.kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
            # TOML's integers have at most 64 bits, but tomllib accepts longer ones.
            if isinstance(value, int) and value.bit_length() >= 64:
                self.wrong(where, "expected a smaller number")
                return None
            value = str(value)
        if not isinstance(value, str):
            expected = "a number" if key.kind == "number" else "text in quotes"
            self.wrong(where, f"expected {expected}, not {_what(value)}")
            return None
        if key.kind == "file":
            if not value:
                self.wrong(where, "expected the name of a file, not nothing")
                return None
            value = os.path.join(self._directory, value)
        try:
            return key.parse(value)
        except Http2tcpError as error:
            self.wrong(where, str(error))
            return None

    # --- tokens -----------------------------------------------------------------------------------

    def tokens(self, tables: Any) -> list[Token]:
        """Read the tokens of all `[[token]]` sections."""
        if isinstance(tables, dict):
            self.wrong("token", "expected [[token]] with two brackets, since there may be several")
            return []
        if not isinstance(tables, list):
            # Do not show the value: it may be a token.
            self.wrong("token", "expected sections [[token]], each with the sha256 of a token and never a token itself")
            return []
        tokens = [self._token(f"token[{index}]", table) for index, table in enumerate(tables)]
        self._refuse_twins(tokens)
        return tokens

    def _token(self, where: str, table: Any) -> Token:
        if not isinstance(table, dict):
            self.wrong(where, f"expected a section [[token]], not {_what(table)}")
            return _NO_TOKEN
        name = self._name(f"{where}.name", table.get("name"))
        self._whose = f" ({name})" if name else ""
        self.refuse_unknown(table, TOKEN_KEYS, f"{where}.")
        token = Token(
            name=name,
            digest=self._digest(f"{where}.sha256", table.get("sha256")),
            expires=self._expiry(f"{where}.expires", table["expires"]) if "expires" in table else math.inf,
            allow=self._rules(f"{where}.allow", table["allow"]) if "allow" in table else None,
            deny=self._rules(f"{where}.deny", table.get("deny", [])),
            max_tunnels=self._one(f"{where}.max_tunnels", table["max_tunnels"], _COUNT)
            if "max_tunnels" in table
            else None,
        )
        self._whose = ""
        return token

    def _name(self, where: str, value: Any) -> str:
        if value is None:
            self.wrong(where, "is missing: the log and --as name the token by it")
        elif not isinstance(value, str):
            self.wrong(where, f"expected text in quotes, not {_what(value)}")
        else:
            try:
                return parse_name(value)
            except SettingsError as error:
                self.wrong(where, str(error))
        return ""

    def _digest(self, where: str, value: Any) -> bytes:
        if value is None:
            self.wrong(where, "is missing: http2tcp --new-token prints a token once, and this line for it")
            return b""
        # Do not show the value: it may be the token itself.
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", value):
            self.wrong(where, "expected the SHA-256 of the token as 64 hexadecimal digits; --new-token prints it")
            return b""
        found = bytes.fromhex(value)
        if found in _OF_NOTHING:
            self.wrong(where, "this is the hash of an empty text: the token was probably not set")
        return found

    def _expiry(self, where: str, value: Any) -> float:
        if isinstance(value, datetime):
            if value.tzinfo is None:
                self.wrong(where, f"expected an offset behind the time: {value.isoformat()}Z is in UTC")
                return math.inf
            return value.timestamp()
        if isinstance(value, date):
            # The token is valid until the end of that day (UTC).
            return (datetime.combine(value, time(), UTC) - _EPOCH + _DAY).total_seconds()
        hint = ", without the quotes" if isinstance(value, str) else f", not {_what(value)}"
        self.wrong(where, f"expected a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z{hint}")
        return math.inf

    def _rules(self, where: str, value: Any) -> tuple[Rule, ...]:
        rules: tuple[Rule, ...] = self.value(where, value, _RULES)
        return rules

    def _refuse_twins(self, tokens: Sequence[Token]) -> None:
        names: dict[str, int] = {}
        digests: dict[bytes, int] = {}
        for index, token in enumerate(tokens):
            if token.name and names.setdefault(token.name, index) != index:
                self.wrong(f"token[{index}].name", f"token[{names[token.name]}] is called {token.name!a} too")
            if token.digest and (first := digests.setdefault(token.digest, index)) != index:
                self.wrong(f"token[{index}].sha256", f"is that of token[{first}], too: only one could ever be used")


_RULES = Key(parse_rule, many=True)
_COUNT = Key(parse_count, "number")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_TOKEN = Token("", b"")
# The hashes of an empty text, and of the newline that `echo` prints for one.
_OF_NOTHING = {hashlib.sha256(text).digest() for text in (b"", b"\n")}


def parse_name(text: str) -> str:
    """Check a token's name, and return it. Raises SettingsError."""
    if not text or text != text.strip() or not text.isprintable() or len(text) > _MAX_NAME or text == UNNAMED:
        # Do not show the text: it may be the token, written in the wrong place.
        limits = f"up to {_MAX_NAME} printable characters, without a blank at an end"
        raise SettingsError(f"expected a name such as alice, and not {UNNAMED}: {limits}")
    return text


def _what(value: Any) -> str:
    for kinds, words in _WORDS:
        if isinstance(value, kinds):
            return words
    return "that"


_WORDS: list[tuple[type | tuple[type, ...], str]] = [
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "text"),
    (list, "a list"),
    (dict, "a section"),
    ((date, time), "a date or a time"),
]


# --- new tokens -------------------------------------------------------------------------------


def new_token(name: str = "") -> tuple[str, str]:
    """Make a token, and the lines that let it in: a whole [[token]] section, or, without a name, only `sha256`."""
    token = secrets.token_urlsafe(32)
    line = f'sha256 = "{digest(token).hex()}"\n'
    if not name:
        return token, line
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return token, f'\n[[token]]\nname   = "{escaped}"\n{line}'
