"""The command line: strings to settings, errors to exit codes. Nothing else."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
import time
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from http2tcp import __version__
from http2tcp.address import parse_destination, parse_endpoint, parse_host, parse_listen
from http2tcp.errors import AddressError, ConfigError, Http2tcpError, SettingsError, StdioFailed, TunnelError
from http2tcp.protocol.transport import Transport

if TYPE_CHECKING:
    from http2tcp.config import Key
    from http2tcp.forwards import Forward
    from http2tcp.limits import Limits
    from http2tcp.net.head_start import HeadStart
    from http2tcp.policy import Token
    from http2tcp.proxy_choice import Proxy
    from http2tcp.rules import Rule
    from http2tcp.settings import ClientSettings, ServerSettings, ServerTLS

logger = logging.getLogger("http2tcp")

ENV_PREFIX = "HTTP2TCP"
# A name of our own: a unit that runs ssh may have a `token` that is for somebody else.
_CREDENTIAL = "http2tcp.token"
_Source = click.core.ParameterSource
# What --ssh-config has no place for.
_NOT_OF_SSH = {
    "server": "-s",
    "config": "--config",
    "new_token": "--new-token",
    "as": "--as",
    "check": "--check",
    "json": "--json",
    "demo": "--demo",
}
# difflib's ratio: one letter of a short name, two of a longer one.
_RESEMBLES = 0.8
_MAX_SENTENCE = 1000
EXIT_BUG = 1
EXIT_USAGE = 2

_AUTO = "auto"
# What says where tokens may go.
_RULES = ("config", "allow", "deny")

EPILOG = """\b
Examples:
  http2tcp -s --token-file /etc/http2tcp/token
  http2tcp -s --config /etc/http2tcp/http2tcp.toml
  http2tcp -c -e https://example.com/~http2tcp/ -d db:5432 -l 5432
  http2tcp --demo

\b
In ~/.ssh/config:
  ProxyCommand http2tcp -c -e https://example.com/~http2tcp/ -d %h:%p

Every option but --new-token, --as, --json, --ssh-config and the last four can come from the
environment: HTTP2TCP_TOKEN for --token, and so on.

Exit status: 0 done, 2 usage, 64 to 75 the hop that failed, 1 a bug.
"""


# --- strings to values ------------------------------------------------------------------------


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on
    """A value that one of our own parsers makes."""

    def __init__(self, name: str, parse: Callable[[str], Any], *, number: bool = False) -> None:
        self.name = name
        self._parse = parse
        #: Whether a number says it as well as a text does.
        self.number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        # While options are parsed, click has a mark of its own, and not None, for what was not given.
        if ctx is not None and isinstance(ctx.params.get("ssh_config"), str):
            from http2tcp.ssh_config import has_token, sample

            # The block repeats the text; what ssh will make of it is checked by a sample.
            ctx.meta.setdefault(_text_of(param), []).append(value)
            if (self is _HEADER and value.startswith("@")) or (self is _FILE and has_token(value)):
                return ()  # a file that ssh's user has; here it is not opened
            value = sample(value)
        try:
            return self._parse(value)
        except Http2tcpError as error:
            self.fail(str(error), param, ctx)

    # Repeatable options split their variable here: a header field holds blanks.
    envvar_list_splitter = "\n"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line.strip() for line in rv.split("\n") if line.strip()]


def _parse_header(text: str) -> tuple[tuple[str, str], ...]:
    """`Name: value`, or `@file` with one such line a line."""
    if not text.startswith("@"):
        return (_parse_field(text),)
    try:
        with open(text[1:], encoding="utf-8") as file:
            return tuple(_parse_field(line) for line in file.read().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the header file {text[1:]}: {_reason(error)}") from error


def _parse_field(line: str) -> tuple[str, str]:
    from http2tcp.settings import check_field

    # No message shows the line: it may hold a secret.
    name, colon, value = line.partition(":")
    name, value = name.strip(), value.strip()
    if not colon:
        raise SettingsError("expected 'Name: value', or @FILE with such lines")
    check_field(name, value)
    return name, value


def _parse_pin(text: str) -> bytes:
    """`sha256//BASE64` as curl writes it, the base64 alone, or 64 hexadecimal digits."""
    value = text.removeprefix("sha256//")
    try:
        digest = bytes.fromhex(value) if len(value) == 64 else b64decode(value, validate=True)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise SettingsError("expected the SHA-256 of a public key: sha256//BASE64, or 64 hexadecimal digits")
    return digest


def _parse_file(text: str) -> str:
    # It is not opened: a pipe can be read once only, and that is for who uses it.
    if not os.path.exists(text):
        raise SettingsError(f"{text!a}: no such file")
    if os.path.isdir(text) or not os.access(text, os.R_OK):
        raise SettingsError(f"{text!a}: cannot be read")
    return text


def _parse_origin(text: str) -> str:
    from http2tcp.settings import check_origin

    check_origin(text)
    return text


def _parse_trusted_proxy(text: str) -> Any:
    from http2tcp.settings import parse_trusted_proxy

    return parse_trusted_proxy(text)


def _parse_path(text: str) -> str:
    from http2tcp.settings import check_path

    check_path(text)
    return text


def _parse_rule(text: str) -> Rule:
    from http2tcp.rules import parse_rule

    return parse_rule(text)


def _parse_duration(text: str) -> float:
    from http2tcp.quantities import parse_duration

    return parse_duration(text)


def _parse_rate(text: str) -> float:
    from http2tcp.quantities import parse_rate

    return parse_rate(text)


def _parse_count(text: str) -> int:
    from http2tcp.quantities import parse_count

    return parse_count(text)


def _parse_transport(text: str) -> Transport | None:
    if text.lower() == _AUTO:
        return None
    transport = Transport.named(text)
    if transport is None:
        known = ", ".join(transport.value for transport in Transport)
        raise SettingsError(f"{text!a}: expected {_AUTO}, or one of {known}")
    return transport


def _parse_local_forward(text: str) -> Forward:
    from http2tcp.forwards import parse_local_forward

    return parse_local_forward(text)


def _parse_dynamic_forward(text: str) -> Forward:
    from http2tcp.forwards import parse_dynamic_forward

    return parse_dynamic_forward(text)


_DESTINATION = _Parsed("HOST:PORT", parse_destination)
_LISTEN = _Parsed("[HOST:]PORT", parse_listen)
_ENDPOINT = _Parsed("URL", parse_endpoint)
_TIME = _Parsed("TIME", _parse_duration, number=True)
_COUNT = _Parsed("N", _parse_count, number=True)
_FILE = _Parsed("FILE", _parse_file)
_HEADER = _Parsed("NAME: VALUE", _parse_header)


# --- the command ------------------------------------------------------------------------------


class _Option(click.Option):
    """An option that knows its group in the help."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group

    def value_from_envvar(self, ctx: click.Context) -> Any:
        value = super().value_from_envvar(ctx)
        if self.multiple and value is not None and not value:
            # click takes an empty variable for an unset one. One of blanks was meant to hold something, such as a pin.
            raise SettingsError(f"{_variable(self)} holds blanks alone: it was probably not filled in")
        return value


def _variable(param: click.Parameter) -> str:
    return f"{ENV_PREFIX}_{str(param.name).upper()}"


class _Command(click.Command):
    """A command whose help is grouped."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {"Server": [], "Client": [], "Both": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups[getattr(param, "group", "Both")].append(record)
        # In a narrow pane the texts keep their width, and long names have a line to themselves.
        names = max(10, min(34, formatter.width - 44))
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=names)


def _server(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, cls=_Option, group="Server", **attributes)


def _client(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, cls=_Option, group="Client", **attributes)


def _both(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, cls=_Option, group="Both", **attributes)


@click.command(
    cls=_Command,
    epilog=EPILOG,
    options_metavar="-s | -c [OPTIONS]",
    context_settings={"auto_envvar_prefix": ENV_PREFIX, "max_content_width": 100, "allow_extra_args": True},
)
@_server("-s", "--server", is_flag=True, help="Serve tunnels, behind a front end such as nginx.")
@_server(
    "--config",
    metavar="FILE",
    help="Read named tokens, and the options that are given nowhere else, from this TOML file.",
)
@_server(
    "--allow",
    type=_Parsed("RULE", _parse_rule),
    multiple=True,
    help="Let tokens go only there: NAME:PORT, *.NAME:PORT, NETWORK:PORT, unix:/PATH.  [repeatable]",
)
@_server(
    "--deny",
    type=_Parsed("RULE", _parse_rule),
    multiple=True,
    help="Let no token go there, whatever allows it.  [repeatable]",
)
@_server("--path", type=_Parsed("/PATH", _parse_path), help="Answer at this path only.")
@_server(
    "--allow-origin",
    type=_Parsed("ORIGIN", _parse_origin),
    multiple=True,
    help="Let this site's web pages open tunnels, as in https://example.com.  [repeatable]",
)
@_server("--connect", is_flag=True, help="Take CONNECT too, for nc -X connect, corkscrew or curl -p.")
@_server("--tls-cert", type=_FILE, help="Serve https, without a front end, by this certificate and its chain (PEM).")
@_server("--tls-key", type=_FILE, help="Its key, where it is not in the same file.")
@_server("--admin", type=_LISTEN, help="Tell /metrics, /healthz and /readyz here; never to the world.")
@_server(
    "--trusted-proxy",
    type=_Parsed("NETWORK", _parse_trusted_proxy),
    multiple=True,
    help="Believe these front ends when they name the client; unix: who comes by a Unix socket.  [repeatable]",
)
@_server(
    "--forwarded-header",
    metavar="NAME",
    default="X-Forwarded-For",
    help="The one header in which they do.  [default: X-Forwarded-For]",
)
@_server(
    "--proxy-protocol",
    is_flag=True,
    help="Every connection begins with a PROXY header (v1 or v2) that names the client.",
)
@_server("--head-timeout", type=_TIME, default=10, help="How long a request may take to arrive.  [default: 10]")
@_server("--connect-timeout", type=_TIME, default=10, help="How long reaching a target may take.  [default: 10]")
@_server("--grace", type=_TIME, default=30, help="How long open tunnels may go on after SIGTERM.  [default: 30]")
@_server("--max-tunnels", type=_COUNT, help="At most so many tunnels at once.  [default: as many as descriptors allow]")
@_server(
    "--max-tunnels-per-token", type=_COUNT, help="At most so many tunnels at once by one token.  [default: no limit]"
)
@_server(
    "--max-unauthenticated", type=_COUNT, help="At most so many connections without an accepted token.  [default: 4096]"
)
@_server("--max-unauthenticated-per-address", type=_COUNT, help="Of these, from one address.  [default: 64]")
@_server("--max-failures-per-minute", type=_COUNT, help="Wrong tokens from one address before 429.  [default: 10]")
@_server("--idle-timeout", type=_TIME, help="End tunnels that are silent both ways for this long.  [default: never]")
@_server("--max-session", type=_TIME, help="End tunnels that have lasted this long.  [default: never]")
@_server(
    "--max-rate",
    type=_Parsed("BYTES", _parse_rate, number=True),
    help="A tunnel's bytes a second each way, as in 10M.  [default: no limit]",
)
@_server("--keep-sessions", is_flag=True, help="Let open tunnels go on when their token expires or is taken away.")
@_server(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="text, or json: one object a line.  [default: text]",
)
@_server("--log-file", metavar="FILE", help="Log to this file and not to stderr; it may be rotated.")
@_server(
    "--new-token",
    metavar="[NAME]",
    is_flag=False,
    flag_value="",
    allow_from_autoenv=False,
    help="Print a new token and the lines of --config that let it in, and end.",
)
@_server(
    "--as",
    metavar="NAME HOST:PORT",
    type=(str, _DESTINATION),
    allow_from_autoenv=False,
    help="With --check: say whether that token may go there, and why.",
)
@_client("-c", "--client", is_flag=True, help="Open a tunnel, for stdin and stdout or from -l, -L or -D.")
@_client("-e", "--endpoint", type=_ENDPOINT, help="The server's location, as in https://example.com/~http2tcp/.")
@_client(
    "--transport",
    type=_Parsed("NAME", _parse_transport),
    default=_AUTO,
    help="auto (the first that gets through), connect-tcp, tcp, http2tcp/1.0, or websocket.  [default: auto]",
)
@_client(
    "-H",
    "--header",
    type=_HEADER,
    multiple=True,
    help="Add a header field; @FILE reads lines.  [repeatable]",
)
@_client("--user-agent", metavar="TEXT", help=f"[default: http2tcp/{__version__}]")
@_client("--ca-file", type=_FILE, help="Verify against these authorities (PEM), not the system's.")
@_client("--client-cert", type=_FILE, help="This client's certificate (PEM).")
@_client("--client-key", type=_FILE, help="Its key, where it is not in the same file.")
@_client(
    "--tls-server-name", type=_Parsed("NAME", parse_host), help="Ask for this name and verify it, not the endpoint's."
)
@_client(
    "--pin-sha256",
    type=_Parsed("HASH", _parse_pin),
    multiple=True,
    help="The site's public key has to be this one too.  [repeatable]",
)
@_client(
    "-L",
    "--local-forward",
    type=_Parsed("[BIND:]PORT:HOST:HOSTPORT", _parse_local_forward),
    multiple=True,
    help="Listen, and tunnel each connection there, as ssh -L does.  [repeatable]",
)
@_client(
    "-D",
    "--dynamic-forward",
    type=_Parsed("[BIND:]PORT", _parse_dynamic_forward),
    multiple=True,
    help="Listen as a SOCKS5 proxy; the server looks names up.  [repeatable]",
)
@_client("--proxy", metavar="URL", help="Go through this http, https, socks5 or socks5h proxy; @FILE reads it.")
@_client("--no-proxy", is_flag=True, help="Go through no proxy, whatever HTTPS_PROXY and its like say.")
@_client("--fdpass", is_flag=True, help="For ssh's ProxyUseFdpass: hand it the connection and leave. http only.")
@_client("--insecure", is_flag=True, help="Trust any certificate.")
@_client("--json", is_flag=True, allow_from_autoenv=False, help="With --check: one JSON document.")
@_client(
    "--ssh-config",
    metavar="NAME",
    is_eager=True,
    allow_from_autoenv=False,
    help="Print these options as a block, Host NAME, for ~/.ssh/config, and end.",
)
@_both("-t", "--token", metavar="TOKEN", help="The shared secret. It shows in ps; a file does not.")
@_both("--token-file", metavar="FILE", help="Read the token from a file's first line.")
@_both(
    "-d",
    "--destination",
    type=_DESTINATION,
    help="Where to go. Server: where to go if the client names nothing; without a token, all that is reachable.",
)
@_both(
    "-l",
    "--listen",
    type=_LISTEN,
    multiple=True,
    help="Where to listen. Server: 127.0.0.1:12345 by default; repeatable. Client: in place of stdin and stdout.",
)
@_both("--keepalive", type=_TIME, default=25, help="Break silence this often, except on raw transports.  [default: 25]")
@_both("-v", "--verbose", is_flag=True, help="Say more.")
@_both("-q", "--quiet", is_flag=True, help="Say errors only.")
@_both(
    "--check",
    is_flag=True,
    allow_from_autoenv=False,
    help="Client: say how far each hop of the way works. Server: show its policy. And end.",
)
@_both("--demo", is_flag=True, allow_from_autoenv=False, help="Serve, tunnel and check on loopback, and end.")
@click.version_option(__version__, message="http2tcp %(version)s", allow_from_autoenv=False)
@click.help_option("-h", "--help", allow_from_autoenv=False)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> int:
    """Reach any TCP port through a web site that is already open.

    With -s it serves tunnels behind nginx; with -c it opens one, as ssh's ProxyCommand or from a local port.
    """
    from http2tcp.log import start_logging

    if ctx.args:
        # No message shows them: where quotes are forgotten, they are a piece of a secret.
        raise SettingsError("expected options alone, but one word belongs to none: are quotes missing around a value?")
    mode = _mode(ctx, options)
    if mode == "new-token":
        _show_new_token(options["new_token"])
        return 0
    if mode == "ssh-config":
        start_logging(logging.WARNING)
        _warn_of_mistyped_variables(ctx)
        # As bytes: the name of a file need not be UTF-8.
        click.echo(os.fsencode(_host_block(ctx, options)), nl=False)
        return 0
    _refuse_misplaced(ctx, options, mode)
    normal = logging.WARNING if mode == "demo" else logging.INFO
    level = logging.ERROR if options["quiet"] else logging.DEBUG if options["verbose"] else normal
    start_logging(level, hold_back=mode == "server" and not options["check"])
    if mode != "demo":
        _warn_of_mistyped_variables(ctx)
    match mode:
        case "demo":
            from http2tcp.demo import run_demo

            return run_demo()
        case "server":
            from http2tcp.process import run_server, run_server_check

            served = _server_settings(ctx, options)
            _check_log_file(ctx, options["config"], served.log_file)
            if options["check"]:
                return run_server_check(served, options["as"], quiet=options["quiet"])
            return run_server(served, lambda: _server_settings(ctx, options))
        case _:
            settings = _client_settings(ctx, options)
            if options["check"]:
                from http2tcp.process import run_check

                return run_check(settings, as_json=options["json"], quiet=options["quiet"])
            head_start = None if settings.forwards else _head_start(settings)
            from http2tcp.process import run_client

            return run_client(settings, head_start)


def _warn_of_mistyped_variables(ctx: click.Context) -> None:
    known = {_variable(param) for param in ctx.command.params}
    for name in os.environ:
        # Kubernetes sets HTTP2TCP_PORT and its like for a Service of that name: what resembles nothing is others'.
        if name.startswith(f"{ENV_PREFIX}_") and name not in known and name.isprintable():
            from difflib import get_close_matches

            options = [param for param in ctx.command.params if isinstance(param, _Option) and param.allow_from_autoenv]
            meant = {_variable(param).removeprefix(ENV_PREFIX): _variable(param) for param in options}
            for near in get_close_matches(name.removeprefix(ENV_PREFIX), meant, 1, _RESEMBLES):
                logger.warning("the variable %s means nothing here: is it %s?", name, meant[near])


def _refuse_misplaced(ctx: click.Context, options: dict[str, Any], mode: str) -> None:
    """Options that say something to another mode alone."""
    if options["check"] and mode not in ("client", "server"):
        raise SettingsError("--check needs -c and the options of that client, or -s and those of that server")
    if options["json"] and not (options["check"] and mode == "client"):
        raise SettingsError("--json is the form of a client's report, and needs -c --check")
    if options["as"] is not None and not (options["check"] and mode == "server"):
        raise SettingsError("--as asks about a server's policy: expected -s --check --as NAME HOST:PORT")
    if mode == "client" and _on_command_line(ctx, "config"):
        raise SettingsError("--config is a server's: a client has options and variables")


def _head_start(settings: ClientSettings) -> HeadStart | None:
    """The way to the endpoint is begun before trio is imported, which takes as long as a round trip."""
    if settings.proxy is not None:
        return None
    from http2tcp.net.head_start import HeadStart

    return HeadStart(settings.endpoint.host, settings.endpoint.port)


def _mode(ctx: click.Context, options: dict[str, Any]) -> str:
    if options["ssh_config"] is not None:
        for name, option in _NOT_OF_SSH.items():
            if _on_command_line(ctx, name):
                raise SettingsError(
                    f"--ssh-config prints the options of a client for ssh: expected it without {option}"
                )
        return "ssh-config"
    if options["new_token"] is not None:
        return "new-token"
    if options["demo"]:
        return "demo"
    chosen = [mode for mode in ("server", "client") if options[mode]]
    # A mode on the command line beats one in the environment.
    spoken = [mode for mode in chosen if _on_command_line(ctx, mode)] or chosen
    if len(spoken) != 1:
        raise SettingsError(
            "expected either -s to serve or -c to be a client (-h lists the options, --demo shows a tunnel)"
        )
    return spoken[0]


def _server_settings(ctx: click.Context, options: dict[str, Any]) -> ServerSettings:
    from http2tcp.settings import ServerSettings

    for name in _RULES:
        variable = f"{ENV_PREFIX}_{name.upper()}"
        if os.environ.get(variable) == "" and not _on_command_line(ctx, name):
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
    from http2tcp.limits import Limits

    limits = {
        "unauthenticated": options["max_unauthenticated"],
        "unauthenticated_per_address": options["max_unauthenticated_per_address"],
        "failures_per_minute": options["max_failures_per_minute"],
        "tunnels": options["max_tunnels"],
        "tunnels_per_token": options["max_tunnels_per_token"],
        "idle_timeout": options["idle_timeout"],
        "max_session": options["max_session"],
        "max_rate": options["max_rate"],
    }
    return Limits(**{name: limit for name, limit in limits.items() if limit is not None})


def _server_tls(options: dict[str, Any]) -> ServerTLS | None:
    from http2tcp.settings import ServerTLS

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
        token = _token(ctx, options)
        return options, [] if token is None else [token]
    from http2tcp.config import read_config

    config = read_config(options["config"], config_keys(ctx))
    values = {name: value for name, value in config.values.items() if ctx.get_parameter_source(name) is _Source.DEFAULT}
    if _token_source(ctx, options) is not None:
        values.pop("token_file", None)
    options |= values
    try:
        token = _token(ctx, options)
    except SettingsError as error:
        if "token_file" not in values:
            raise
        raise ConfigError([f"{config.path}: token_file: {error}"]) from None
    _look_at(config.tokens, token)
    return options, config.tokens if token is None else [token, *config.tokens]


def _check_log_file(ctx: click.Context, config: str, path: str | None) -> None:
    """Not at a reload, which may have to take a token away while a disk is full. Raises SettingsError."""
    from http2tcp.service_log import check_log_file

    try:
        if path is not None:
            check_log_file(path)
    except SettingsError as error:
        if ctx.get_parameter_source("log_file") is not _Source.DEFAULT:
            raise
        raise ConfigError([f"{config}: log_file: {error}"]) from None


def _look_at(tokens: Sequence[Token], other: str | None) -> None:
    """Warn of those that have expired. Raises SettingsError where the other token is one of them."""
    from http2tcp.policy import digest
    from http2tcp.policy_report import expiry

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
        if isinstance(param, _Option)
        and param.group != "Client"
        and param.allow_from_autoenv
        and param.name not in _NO_KEYS
    }


def _key(param: _Option, ctx: click.Context) -> Key:
    from http2tcp.config import Key

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


def _show_new_token(name: str) -> None:
    """The lines go to stdout, which may be the file that they are for, and the token to stderr."""
    from http2tcp.config import new_token, parse_name

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


# --- the client's settings --------------------------------------------------------------------


def _client_settings(
    ctx: click.Context, options: dict[str, Any], secrets: tuple[str | None, Proxy | None] | None = None
) -> ClientSettings:
    """`secrets` are a token and a proxy in the place of those that the options name."""
    from http2tcp.settings import DEFAULT_USER_AGENT, ClientSettings, TLSSettings

    if options["endpoint"] is None:
        raise SettingsError("a client needs an endpoint (-e), as in -e https://example.com/~http2tcp/")
    token, proxy = secrets if secrets is not None else (_token(ctx, options), _proxy(ctx, options))
    return ClientSettings(
        endpoint=options["endpoint"],
        destination=options["destination"],
        forwards=_forwards(options),
        token=token,
        transport=options["transport"],
        user_agent=options["user_agent"] or DEFAULT_USER_AGENT,
        headers=tuple(field for fields in options["header"] for field in fields),
        proxy=proxy,
        fdpass=options["fdpass"],
        keepalive=options["keepalive"],
        tls=TLSSettings(
            ca_file=options["ca_file"],
            client_cert=options["client_cert"],
            client_key=options["client_key"],
            server_name=options["tls_server_name"],
            pins=options["pin_sha256"],
            verify=not options["insecure"],
        ),
    )


def _host_block(ctx: click.Context, options: dict[str, Any]) -> str:
    """What --ssh-config prints. Neither the token's file nor any other is opened."""
    from http2tcp.proxy_choice import parse_proxy
    from http2tcp.ssh_config import Written, host_block, own_command, sample

    chosen = {_token_source(ctx, options), _proxy_source(ctx, options)}
    if "token" in chosen:
        raise SettingsError(
            "--ssh-config prints no secret: put the token into a file, and give it as --token-file FILE"
        )
    left_out = {"client", "ssh_config", "token", "token_file", "proxy", "no_proxy"} - chosen
    written = []
    for param in ctx.command.params:
        name = param.name or ""
        spoken = ctx.get_parameter_source(name) in (_Source.COMMANDLINE, _Source.ENVIRONMENT)
        if not spoken or name in left_out or getattr(param, "group", "Both") == "Server":
            continue
        for text in ctx.meta.get(_text_of(param), [options[name]]):
            if text is not False:
                file = param.make_metavar(ctx) == "FILE"
                written.append(Written(param.opts[0], None if text is True else text, file))
    proxy = None
    if "proxy" in chosen and not options["proxy"].startswith("@"):
        proxy = parse_proxy(sample(options["proxy"]), "--proxy")
    settings = _client_settings(ctx, options, (None, proxy))
    return host_block(options["ssh_config"], written, settings, own_command())


def _text_of(param: click.Parameter | None) -> str:
    """Where an option's text is kept for --ssh-config."""
    return f"http2tcp.{param.name if param is not None else None}"


def _forwards(options: dict[str, Any]) -> tuple[Forward, ...]:
    """What -l, -L and -D ask for, in this order."""
    forwards: tuple[Forward, ...] = options["local_forward"] + options["dynamic_forward"]
    if not options["listen"]:
        return forwards
    if len(options["listen"]) > 1:
        raise SettingsError("a client's -l is one address, with -d for where it leads; -L says both, and is repeatable")
    from http2tcp.forwards import Forward

    return (Forward(options["listen"][0], options["destination"]), *forwards)


def _proxy(ctx: click.Context, options: dict[str, Any]) -> Proxy | None:
    """The proxy that an option names, or else the environment; the command line beats our own variables."""
    from http2tcp.settings import environment_proxy

    chosen = _proxy_source(ctx, options)
    if chosen is None:
        return environment_proxy(options["endpoint"])
    if chosen == "no_proxy":
        return None
    from http2tcp.proxy_choice import parse_proxy

    source = "--proxy" if _on_command_line(ctx, "proxy") else f"{ENV_PREFIX}_PROXY"
    text = options["proxy"]
    try:
        return parse_proxy(_read_secret(text[1:], "proxy file").strip() if text.startswith("@") else text, source)
    except AddressError as error:
        raise SettingsError(f"{source}: {error}") from None


def _proxy_source(ctx: click.Context, options: dict[str, Any]) -> str | None:
    chosen = [name for name in ("proxy", "no_proxy") if options[name] not in (None, False)]
    spoken = [name for name in chosen if _on_command_line(ctx, name)] or chosen
    if len(spoken) > 1:
        raise SettingsError("--proxy and --no-proxy are at odds: the one names a proxy, the other wants none")
    return spoken[0] if spoken else None


# --- the token --------------------------------------------------------------------------------


def _token(ctx: click.Context, options: dict[str, Any]) -> str | None:
    """The one token that was given, by value or by file, or else the service manager's.

    The command line beats the environment.
    """
    from http2tcp.settings import check_token

    source = _token_source(ctx, options)
    if source is None:
        return _credential()
    # click takes a variable that is set but empty for one that is unset; an empty secret is a mistake.
    text = options[source] or ""
    token = (_read_secret(text, "token file") if source == "token_file" else text).strip()
    check_token(token)
    return token


def _credential() -> str | None:
    """The token that a unit hands to its service by LoadCredential= and the like: systemd.exec(5)."""
    from http2tcp.settings import check_token

    path = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", ""), _CREDENTIAL)
    if not os.path.isabs(path) or not os.path.exists(path):
        return None
    token = _read_secret(path, "credential").strip()
    check_token(token)
    return token


def _token_source(ctx: click.Context, options: dict[str, Any]) -> str | None:
    sources = [name for name in ("token", "token_file") if _given(name, options)]
    spoken = [name for name in sources if _on_command_line(ctx, name)] or sources
    if len(spoken) > 1:
        raise SettingsError("expected one token: either by value (-t) or by file (--token-file)")
    return spoken[0] if spoken else None


def _given(name: str, options: dict[str, Any]) -> bool:
    return options[name] is not None or f"{ENV_PREFIX}_{name.upper()}" in os.environ


def _on_command_line(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is _Source.COMMANDLINE


def _read_secret(path: str, what: str) -> str:
    """A file's first line."""
    if not path:
        raise SettingsError(f"the {what} has no name")
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IROTH:
                logger.warning("%s can be read by everybody on this machine: chmod o-r it", path)
            return file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the {what} {path}: {_reason(error)}") from error


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else (error.strerror or "failed").lower()


# --- errors to exit codes ---------------------------------------------------------------------


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. One line on stderr says what went wrong."""
    status = _run(arguments)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # The interpreter would try again at its end, and complain.
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
        return 0  # click's word for EPIPE: whoever read our output has seen enough
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return _complain(
                f"{StdioFailed.hop}: cannot write to stdout: no space left on device", StdioFailed.exit_code
            )
        logger.exception("this is a bug in http2tcp; please report it with these lines")
        return EXIT_BUG


def _sentence(error: click.ClickException) -> str:
    """A mistake that click found, as our own are told: first what is wrong, an option or its variable."""
    words = error.format_message()
    words = words[0].lower() + words[1:]
    if isinstance(error, click.BadParameter) and error.param is not None and error.ctx is not None:
        param = error.param
        from_variable = error.ctx.get_parameter_source(str(param.name)) is _Source.ENVIRONMENT
        words = error.message
        if isinstance(param.type, click.types.BoolParamType):
            # A flag on the command line has no value; click lists eleven, the first of them empty.
            words = f"{os.environ.get(_variable(param), '')!a}: expected 1 or 0, true or false, yes or no, on or off"
        words = f"{_variable(param) if from_variable else param.opts[0]}: {words}"
    return " ".join(words.split()).removesuffix(".")


def _complain(sentence: str, exit_code: int) -> int:
    from http2tcp.log import flush, mark, stderr_is_journal

    flush()
    if len(sentence) > _MAX_SENTENCE:
        # A file that was given in the place of its name, for instance. What was expected stands at the end.
        half = _MAX_SENTENCE // 2
        sentence = f"{sentence[:half]} ... {sentence[-half:]}"
    words = f"http2tcp: {sentence}"
    try:
        # None where it was closed when we began; print would take stdout instead.
        if sys.stderr is not None:
            # ssh may have made the terminal raw, where a line's end alone does not lead back to the margin.
            end = "\r\n" if sys.stderr.isatty() else "\n"
            print(mark(words, logging.ERROR) if stderr_is_journal() else words, file=sys.stderr, end=end)
    except OSError:
        pass  # nobody listens, but the exit status still tells
    return exit_code
