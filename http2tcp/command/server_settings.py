"""Makes a server's settings from options, variables and the configuration file. Also does `--new-token`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

from http2tcp.command import options
from http2tcp.command.credentials import given_token, token_source
from http2tcp.command.options import Given, Option, Source
from http2tcp.errors import ConfigError, SettingsError

if TYPE_CHECKING:
    from http2tcp.command.toml_file import Key
    from http2tcp.command.values import Kind
    from http2tcp.server.limits import Limits
    from http2tcp.server.policy import Token
    from http2tcp.server.rules import Rule
    from http2tcp.server.settings import ServerSettings, ServerTLS

logger = logging.getLogger("http2tcp")

# The options that decide which destinations a token may reach.
_RULES: tuple[Option[Any], ...] = (options.CONFIG, options.ALLOW, options.DENY)


def server_settings(given: Given) -> ServerSettings:
    """Make a server's settings from the options and the configuration file. Raises SettingsError or ConfigError."""
    from http2tcp.server.settings import ServerSettings

    for option in _RULES:
        if os.environ.get(option.variable) == "" and not given.on_command_line(option):
            # click treats an empty variable as unset. Without the rules, clients could reach more than the operator
            # meant.
            raise SettingsError(f"{option.variable} is empty: it was probably not filled in")
    given, tokens = _configured(given)
    return ServerSettings(
        listen=given[options.LISTEN],
        tokens=tokens,
        destination=given[options.DESTINATION],
        allow=_allow(given),
        deny=given[options.DENY],
        path=given[options.PATH],
        allow_origins=given[options.ALLOW_ORIGIN],
        connect=given[options.CONNECT],
        tls=_server_tls(given),
        admin=given[options.ADMIN],
        admin_names=given[options.ADMIN_NAME],
        trusted_proxies=given[options.TRUSTED_PROXY],
        forwarded_header=given[options.FORWARDED_HEADER],
        proxy_protocol=given[options.PROXY_PROTOCOL],
        head_timeout=given[options.HEAD_TIMEOUT],
        connect_timeout=given[options.CONNECT_TIMEOUT],
        limits=_limits(given),
        grace=given[options.GRACE],
        keepalive=given[options.KEEPALIVE],
        resume=given[options.RESUME],
        resume_window=given[options.RESUME_WINDOW],
        resume_memory=given[options.RESUME_MEMORY],
        max_detached=given[options.MAX_DETACHED],
        max_detached_per_token=given[options.MAX_DETACHED_PER_TOKEN],
        node=given[options.NODE] or "",
        keep_sessions=given[options.KEEP_SESSIONS],
        log_format=given[options.LOG_FORMAT],
        log_file=given[options.LOG_FILE],
    )


def _allow(given: Given) -> Sequence[Rule] | None:
    # Return None (no policy) if there is no --allow and the file has no `allow`. An empty list in the file is a policy:
    # it allows nothing.
    return given[options.ALLOW] if given[options.ALLOW] or given.in_file(options.ALLOW) else None


def _limits(given: Given) -> Limits:
    """Return the limits: those that the options give, and the defaults of `Limits` for the others."""
    from http2tcp.server.limits import Limits, described_limits

    # `Any` is safe here: each option's kind is made from the field of `Limits`, so the types match.
    found: dict[str, Any] = {name: given.by_key(name) for name, _, _ in described_limits()}
    return Limits(**{name: limit for name, limit in found.items() if limit is not None})


def _server_tls(given: Given) -> ServerTLS | None:
    from http2tcp.server.settings import ServerTLS

    certificate = given[options.TLS_CERT]
    if certificate is not None:
        return ServerTLS(certificate=certificate, key=given[options.TLS_KEY])
    if given[options.TLS_KEY] is not None:
        raise SettingsError("--tls-key needs --tls-cert, the certificate that goes with it")
    return None


# --- the configuration file -------------------------------------------------------------------


def _configured(given: Given) -> tuple[Given, Sequence[str | Token]]:
    """Return the options, completed by the file's values for options that are not given, and the tokens of both.

    Raises ConfigError or SettingsError.
    """
    path = given[options.CONFIG]
    if path is None:
        token = given_token(given)
        return given, [] if token is None else [token]
    from http2tcp.command.toml_file import read_config

    config = read_config(path, config_keys())
    nobody_gave = {row.key for row in options.rows() if given.source(row) is Source.DEFAULT}
    values = {key: value for key, value in config.values.items() if key in nobody_gave}
    if token_source(given) is not None:
        values.pop(options.TOKEN_FILE.key, None)
    given = given.with_file(values)
    try:
        token = given_token(given)
    except SettingsError as error:
        if not given.in_file(options.TOKEN_FILE):
            raise
        raise ConfigError([f"{config.path}: token_file: {error}"]) from None
    _refuse_twin(config.tokens, token)
    _warn_of_expired(config.tokens)
    return given, config.tokens if token is None else [token, *config.tokens]


def refuse_log_file(given: Given, path: str | None) -> None:
    """Raise SettingsError or ConfigError if the file cannot be written.

    A reload does not call this: it must be possible to revoke a token while the disk is full.
    """
    from http2tcp.server.log_writer import check_log_file

    try:
        if path is not None:
            check_log_file(path)
    except SettingsError as error:
        if given.anywhere(options.LOG_FILE):
            raise
        raise ConfigError([f"{given[options.CONFIG]}: log_file: {error}"]) from None


def _refuse_twin(tokens: Sequence[Token], other: str | None) -> None:
    """Raise SettingsError if `other` is also in the file: it would be unclear which rules apply to it."""
    from http2tcp.server.policy import digest

    for token in tokens:
        if other is not None and digest(other) == token.digest:
            raise SettingsError(
                f"the token of -t or --token-file is also the token of {token.name} in --config: give it only once"
            )


def _warn_of_expired(tokens: Sequence[Token]) -> None:
    from http2tcp.server.policy_report import expiry

    now = time.time()
    for token in tokens:
        if token.expires <= now:
            logger.warning("the token of %s %s: it opens nothing", token.name, expiry(token, now))


def config_keys() -> dict[str, Key]:
    """Return the keys that the file may have: all options of a server except modes, actions and secrets."""
    from http2tcp.command.toml_file import Key

    return {
        row.key: Key(str, "flag") if row.kind is None else Key(row.kind.parse, _form(row.kind), row.repeatable)
        for row in options.rows()
        if row.mode != "client" and row.in_file
    }


def _form(kind: Kind[Any]) -> Literal["text", "number", "file"]:
    if kind.file:
        return "file"
    return "number" if kind.number else "text"


def show_new_token(name: str) -> None:
    """Make a token. Print its lines to stdout, often redirected to the configuration file, and the token to stderr."""
    from http2tcp.command.toml_file import new_token, parse_name

    if sys.stderr is None or sys.stdout is None:
        closed = "stderr" if sys.stderr is None else "stdout"
        raise SettingsError(f"--new-token shows the token on stderr and its lines on stdout, and {closed} is closed")
    token, lines = new_token(parse_name(name) if name else "")
    if sys.stderr.isatty():
        whose = f" of {name}" if name else ""
        print(
            f"The token{whose}, shown this once; it goes into a file, for --token-file:\n\n  {token}\n", file=sys.stderr
        )
        if sys.stdout.isatty():
            print("And its hash, for the server's --config:", file=sys.stderr)
    else:
        print(token, file=sys.stderr)
    # Print bytes: TOML is UTF-8, whatever the terminal's encoding is.
    click.echo(lines.encode(), nl=False)
