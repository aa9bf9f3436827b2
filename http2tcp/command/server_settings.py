"""What `-s` is given: options, variables and the configuration file, as one server's settings. And `--new-token`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from http2tcp.command.credentials import given_token, token_source
from http2tcp.command.values import ENV_PREFIX, Option, Source, on_command_line
from http2tcp.errors import ConfigError, SettingsError

if TYPE_CHECKING:
    from http2tcp.command.config_file import Key
    from http2tcp.server.limits import Limits
    from http2tcp.server.policy import Token
    from http2tcp.server.settings import ServerSettings, ServerTLS

logger = logging.getLogger("http2tcp")

# What says where tokens may go.
_RULES = ("config", "allow", "deny")


def server_settings(ctx: click.Context, options: dict[str, Any]) -> ServerSettings:
    """What the options and the file come to. Raises SettingsError or ConfigError."""
    from http2tcp.server.settings import ServerSettings

    for name in _RULES:
        variable = f"{ENV_PREFIX}_{name.upper()}"
        if os.environ.get(variable) == "" and not on_command_line(ctx, name):
            # click takes it for unset, and the server would be open to more than somebody meant.
            raise SettingsError(f"{variable} is empty: it was probably not filled in")
    options, tokens = _configured(ctx, options)
    return ServerSettings(
        listen=options["listen"],
        tokens=tokens,
        destination=options["destination"],
        allow=options["allow"],
        deny=options["deny"],
        path=options["path"],
        allow_origins=options["allow_origin"],
        connect=options["connect"],
        tls=_server_tls(options),
        admin=options["admin"],
        admin_names=options["admin_name"],
        trusted_proxies=options["trusted_proxy"],
        forwarded_header=options["forwarded_header"],
        proxy_protocol=options["proxy_protocol"],
        head_timeout=options["head_timeout"],
        connect_timeout=options["connect_timeout"],
        limits=_limits(options),
        grace=options["grace"],
        keepalive=options["keepalive"],
        keep_sessions=options["keep_sessions"],
        log_format=options["log_format"],
        log_file=options["log_file"],
    )


def _limits(options: dict[str, Any]) -> Limits:
    from http2tcp.server.limits import Limits

    limits = {
        "max_unauthenticated": options["max_unauthenticated"],
        "max_unauthenticated_per_address": options["max_unauthenticated_per_address"],
        "max_failures_per_minute": options["max_failures_per_minute"],
        "max_tunnels": options["max_tunnels"],
        "max_tunnels_per_token": options["max_tunnels_per_token"],
        "idle_timeout": options["idle_timeout"],
        "max_session": options["max_session"],
        "max_rate": options["max_rate"],
    }
    return Limits(**{name: limit for name, limit in limits.items() if limit is not None})


def _server_tls(options: dict[str, Any]) -> ServerTLS | None:
    from http2tcp.server.settings import ServerTLS

    if options["tls_cert"] is not None:
        return ServerTLS(certificate=options["tls_cert"], key=options["tls_key"])
    if options["tls_key"] is not None:
        raise SettingsError("--tls-key needs --tls-cert, the certificate that goes with it")
    return None


# --- the configuration file -------------------------------------------------------------------

# The file is the server's, and has tokens by their hashes alone.
_NO_KEYS = {"server", "config", "token", "verbose", "quiet"}


def _configured(ctx: click.Context, options: dict[str, Any]) -> tuple[dict[str, Any], Sequence[str | Token]]:
    """The options, with the file's in the place of those that nobody gave, and the tokens of both.

    Raises ConfigError or SettingsError.
    """
    # No rule at all is no policy; in the file, an empty list is one that allows nothing.
    options = options | {"allow": options["allow"] or None}
    if options["config"] is None:
        token = given_token(ctx, options)
        return options, [] if token is None else [token]
    from http2tcp.command.config_file import read_config

    config = read_config(options["config"], config_keys(ctx))
    values = {name: value for name, value in config.values.items() if ctx.get_parameter_source(name) is Source.DEFAULT}
    if token_source(ctx, options) is not None:
        values.pop("token_file", None)
    options |= values
    try:
        token = given_token(ctx, options)
    except SettingsError as error:
        if "token_file" not in values:
            raise
        raise ConfigError([f"{config.path}: token_file: {error}"]) from None
    _warn_of_expired(config.tokens, token)
    return options, config.tokens if token is None else [token, *config.tokens]


def refuse_log_file(ctx: click.Context, config: str, path: str | None) -> None:
    """Raise SettingsError or ConfigError where it cannot be written.

    Not at a reload, which may have to take a token away while a disk is full.
    """
    from http2tcp.server.service_log import check_log_file

    try:
        if path is not None:
            check_log_file(path)
    except SettingsError as error:
        if ctx.get_parameter_source("log_file") is not Source.DEFAULT:
            raise
        raise ConfigError([f"{config}: log_file: {error}"]) from None


def _warn_of_expired(tokens: Sequence[Token], other: str | None) -> None:
    """Warn of those that have expired. Raises SettingsError where the other token is one of them."""
    from http2tcp.server.policy import digest
    from http2tcp.server.policy_report import expiry

    now = time.time()
    for token in tokens:
        if other is not None and digest(other) == token.digest:
            raise SettingsError(
                f"the token of -t or --token-file is that of {token.name} in --config too: whose rules would count?"
            )
        if token.expires <= now:
            logger.warning("the token of %s %s: it opens nothing", token.name, expiry(token, now))


def config_keys(ctx: click.Context) -> dict[str, Key]:
    """What the file may say: every option of a server's that is no mode, no action and no secret."""
    return {
        str(param.name): _key(param, ctx)
        for param in ctx.command.params
        if isinstance(param, Option)
        and param.group != "Client"
        and param.allow_from_autoenv
        and param.name not in _NO_KEYS
    }


def _key(param: Option, ctx: click.Context) -> Key:
    from http2tcp.command.config_file import Key

    def parse(text: str) -> Any:
        try:
            return param.type.convert(text, None, None)
        except click.BadParameter as error:
            raise SettingsError(error.message.removesuffix(".")) from None

    if param.is_flag:
        return Key(parse, "flag")
    if getattr(param.type, "number", False):
        return Key(parse, "number", param.multiple)
    return Key(parse, "file" if param.make_metavar(ctx) == "FILE" else "text", param.multiple)


def show_new_token(name: str) -> None:
    """The lines go to stdout, which may be the file that they are for, and the token to stderr."""
    from http2tcp.command.config_file import new_token, parse_name

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
    # TOML is UTF-8, whatever the terminal is.
    click.echo(lines.encode(), nl=False)
