"""The command line: the options, which mode they choose, and errors to exit codes.

What the options come to is a server's settings (`server_command`) or a client's (`client_command`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from http2tcp.command.values import (
    AUTO,
    BYTES,
    COUNT,
    DESTINATION,
    DYNAMIC_FORWARD,
    ENDPOINT,
    ENV_PREFIX,
    FIELD_NAME,
    FILE,
    HEADER,
    KEEPALIVE,
    LISTEN,
    LOCAL_FORWARD,
    NETWORK,
    ORIGIN,
    PATH,
    PIN,
    RULE,
    SERVER_NAME,
    TIME,
    TRANSPORT,
    Option,
    on_command_line,
    variable,
)
from http2tcp.errors import SettingsError
from http2tcp.version import __version__

if TYPE_CHECKING:
    from http2tcp.client.settings import ClientSettings
    from http2tcp.net.preconnect import HeadStart

logger = logging.getLogger("http2tcp")

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

INTRODUCTION = """
Reach any TCP port through a web site that is already open.

With -s it serves tunnels behind nginx; with -c it opens one, as ssh's ProxyCommand or from a local port.
"""
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


# --- the command ------------------------------------------------------------------------------


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
    return click.option(*names, cls=Option, group="Server", **attributes)


def _client(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, cls=Option, group="Client", **attributes)


def _both(*names: str, **attributes: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, cls=Option, group="Both", **attributes)


@click.command(
    cls=_Command,
    help=INTRODUCTION,
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
    type=RULE,
    multiple=True,
    help="Let tokens go only there: NAME:PORT, *.NAME:PORT, NETWORK:PORT, unix:/PATH.  [repeatable]",
)
@_server(
    "--deny",
    type=RULE,
    multiple=True,
    help="Let no token go there, whatever allows it.  [repeatable]",
)
@_server("--path", type=PATH, help="Answer at this path only.")
@_server(
    "--allow-origin",
    type=ORIGIN,
    multiple=True,
    help="Let this site's web pages open tunnels, as in https://example.com.  [repeatable]",
)
@_server("--connect", is_flag=True, help="Take CONNECT too, for nc -X connect, corkscrew or curl -p.")
@_server("--tls-cert", type=FILE, help="Serve https, without a front end, by this certificate and its chain (PEM).")
@_server("--tls-key", type=FILE, help="Its key, where it is not in the same file.")
@_server("--admin", type=LISTEN, help="Tell /metrics, /healthz and /readyz here; never to the world.")
@_server(
    "--admin-name",
    type=SERVER_NAME,
    multiple=True,
    help="A name by which --admin may be asked on loopback, beside localhost.  [repeatable]",
)
@_server(
    "--trusted-proxy",
    type=NETWORK,
    multiple=True,
    help="Believe these front ends when they name the client; unix: who comes by a Unix socket.  [repeatable]",
)
@_server(
    "--forwarded-header",
    type=FIELD_NAME,
    default="X-Forwarded-For",
    help="The one header in which they do.  [default: X-Forwarded-For]",
)
@_server(
    "--proxy-protocol",
    is_flag=True,
    help="Every connection begins with a PROXY header (v1 or v2) that names the client.",
)
@_server("--head-timeout", type=TIME, default=10, help="How long a request may take to arrive.  [default: 10]")
@_server("--connect-timeout", type=TIME, default=10, help="How long reaching a target may take.  [default: 10]")
@_server("--grace", type=TIME, default=30, help="How long open tunnels may go on after SIGTERM.  [default: 30]")
@_server("--max-tunnels", type=COUNT, help="At most so many tunnels at once.  [default: as many as descriptors allow]")
@_server(
    "--max-tunnels-per-token",
    type=COUNT,
    help="At most so many tunnels at once by one token.  [default: all; of several tokens, all but an eighth]",
)
@_server(
    "--max-unauthenticated", type=COUNT, help="At most so many connections without an accepted token.  [default: 4096]"
)
@_server("--max-unauthenticated-per-address", type=COUNT, help="Of these, from one address.  [default: 64]")
@_server("--max-failures-per-minute", type=COUNT, help="Wrong tokens from one address before 429.  [default: 10]")
@_server("--idle-timeout", type=TIME, help="End tunnels that are silent both ways for this long.  [default: never]")
@_server("--max-session", type=TIME, help="End tunnels that have lasted this long.  [default: never]")
@_server(
    "--max-rate",
    type=BYTES,
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
    type=(str, DESTINATION),
    allow_from_autoenv=False,
    help="With --check: say whether that token may go there, and why.",
)
@_client("-c", "--client", is_flag=True, help="Open a tunnel, for stdin and stdout or from -l, -L or -D.")
@_client("-e", "--endpoint", type=ENDPOINT, help="The server's location, as in https://example.com/~http2tcp/.")
@_client(
    "--transport",
    type=TRANSPORT,
    default=AUTO,
    help="auto (the first that gets through), connect-tcp, tcp, http2tcp/1.0, or websocket.  [default: auto]",
)
@_client(
    "-H",
    "--header",
    type=HEADER,
    multiple=True,
    help="Add a header field; @FILE reads lines.  [repeatable]",
)
@_client("--user-agent", metavar="TEXT", help=f"[default: http2tcp/{__version__}]")
@_client("--ca-file", type=FILE, help="Verify against these authorities (PEM), not the system's.")
@_client("--client-cert", type=FILE, help="This client's certificate (PEM).")
@_client("--client-key", type=FILE, help="Its key, where it is not in the same file.")
@_client("--tls-server-name", type=SERVER_NAME, help="Ask for this name and verify it, not the endpoint's.")
@_client(
    "--pin-sha256",
    type=PIN,
    multiple=True,
    help="The site's public key has to be this one too.  [repeatable]",
)
@_client(
    "-L",
    "--local-forward",
    type=LOCAL_FORWARD,
    multiple=True,
    help="Listen, and tunnel each connection there, as ssh -L does.  [repeatable]",
)
@_client(
    "-D",
    "--dynamic-forward",
    type=DYNAMIC_FORWARD,
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
    type=DESTINATION,
    help="Where to go. Server: where to go if the client names nothing; without a token, all that is reachable.",
)
@_both(
    "-l",
    "--listen",
    type=LISTEN,
    multiple=True,
    help="Where to listen. Server: 127.0.0.1:12345 by default; repeatable. Client: in place of stdin and stdout.",
)
@_both(
    "--keepalive", type=KEEPALIVE, default=25, help="Break silence this often, except on raw transports.  [default: 25]"
)
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
    """The command; its help is no docstring, since PYTHONOPTIMIZE=2 takes these away."""
    from http2tcp.log import start_logging

    if ctx.args:
        # No message shows them: where quotes are forgotten, they are a piece of a secret.
        raise SettingsError("expected options alone, but one word belongs to none: are quotes missing around a value?")
    mode = _mode(ctx, options)
    if mode == "new-token":
        from http2tcp.command.server_settings import show_new_token

        show_new_token(options["new_token"])
        return 0
    if mode == "ssh-config":
        start_logging(logging.WARNING)
        _warn_of_mistyped_variables(ctx)
        from http2tcp.command.client_settings import ssh_block

        # As bytes: the name of a file need not be UTF-8.
        click.echo(os.fsencode(ssh_block(ctx, options)), nl=False)
        return 0
    _refuse_misplaced(ctx, options, mode)
    normal = logging.WARNING if mode == "demo" else logging.INFO
    level = logging.ERROR if options["quiet"] else logging.DEBUG if options["verbose"] else normal
    start_logging(level, hold_back=mode == "server" and not options["check"])
    from http2tcp.net.descriptors import allow_many, require

    if mode == "server":
        allow_many()
    require()
    if mode != "demo":
        _warn_of_mistyped_variables(ctx)
    match mode:
        case "demo":
            from http2tcp.command.demo import run_demo

            return run_demo()
        case "server":
            from http2tcp.command.process import run_server, run_server_check
            from http2tcp.command.server_settings import refuse_log_file, server_settings

            served = server_settings(ctx, options)
            refuse_log_file(ctx, options["config"], served.log_file)
            if options["check"]:
                return run_server_check(served, options["as"], quiet=options["quiet"])
            return run_server(served, lambda: server_settings(ctx, options))
        case _:
            from http2tcp.command.client_settings import client_settings

            settings = client_settings(ctx, options)
            if options["check"]:
                from http2tcp.command.process import run_check

                return run_check(settings, as_json=options["json"], quiet=options["quiet"])
            head_start = None if settings.forwards else _head_start(settings)
            from http2tcp.command.process import run_client

            return run_client(settings, head_start)


def _warn_of_mistyped_variables(ctx: click.Context) -> None:
    known = {variable(param) for param in ctx.command.params}
    for name in os.environ:
        # Kubernetes sets HTTP2TCP_PORT and its like for a Service of that name: what resembles nothing is others'.
        if name.startswith(f"{ENV_PREFIX}_") and name not in known and name.isprintable():
            from difflib import get_close_matches

            options = [param for param in ctx.command.params if isinstance(param, Option) and param.allow_from_autoenv]
            meant = {variable(param).removeprefix(ENV_PREFIX): variable(param) for param in options}
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
    if mode == "client" and on_command_line(ctx, "config"):
        raise SettingsError("--config is a server's: a client has options and variables")


def _head_start(settings: ClientSettings) -> HeadStart | None:
    """The way to the endpoint is begun before trio is imported, which takes as long as a round trip."""
    if settings.proxy is not None:
        return None
    from http2tcp.net.preconnect import HeadStart

    return HeadStart(settings.endpoint.host, settings.endpoint.port)


def _mode(ctx: click.Context, options: dict[str, Any]) -> str:
    if options["ssh_config"] is not None:
        for name, option in _NOT_OF_SSH.items():
            if on_command_line(ctx, name):
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
    spoken = [mode for mode in chosen if on_command_line(ctx, mode)] or chosen
    if len(spoken) != 1:
        raise SettingsError(
            "expected either -s to serve or -c to be a client (-h lists the options, --demo shows a tunnel)"
        )
    return spoken[0]


# --- errors to exit codes ---------------------------------------------------------------------
