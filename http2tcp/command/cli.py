"""The command line: parses it, prints its help, finds the mode that the user chose, and runs that mode.

`server_settings` turns the options into a server's settings, and `client_settings` into a client's. `options` has the
table of all options.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from http2tcp.command import options
from http2tcp.command.options import ENV_PREFIX, GROUPS, Given, Option
from http2tcp.errors import SettingsError
from http2tcp.version import __version__

if TYPE_CHECKING:
    from http2tcp.client.settings import ClientSettings
    from http2tcp.net.preconnect import HeadStart

logger = logging.getLogger("http2tcp")

# The options that cannot be combined with --ssh-config.
_NOT_OF_SSH: tuple[Option[Any], ...] = (
    *(options.SERVER, options.CONFIG, options.NEW_TOKEN, options.AS, options.CHECK, options.JSON, options.DEMO),
)
# difflib's ratio from which a name counts as mistyped: one wrong letter in a short name, two in a longer one.
_RESEMBLES = 0.8

INTRODUCTION = """
Reach any TCP port through a web site that is already open.

With -s it serves tunnels behind nginx; with -c it opens one, as ssh's ProxyCommand or from a local port.
"""
EXAMPLES = (
    "http2tcp -s --token-file /etc/http2tcp/token",
    "http2tcp -c -e https://example.com/~http2tcp/ -d db:5432 -l 5432",
    "http2tcp -c -e https://example.com/~http2tcp/ -D 1080",
    "http2tcp --ssh-config box -e https://example.com/~http2tcp/ >> ~/.ssh/config",
    "http2tcp --demo",
)
_MORE = "All options, with their variables: http2tcp -s --help, http2tcp -c --help, man http2tcp."
_EXIT_STATUS = "Exit status: 0 done, 2 usage, 64 to 75 the hop that failed, 1 a bug."


# --- the parser -------------------------------------------------------------------------------

# Keys of click's `Context.meta`: the list of options to parse, and the mode whose help to show.
_PARAMETERS = "http2tcp.parameters"
_MODE = "http2tcp.mode"


class _Command(click.Command):
    """The command. It makes click parameters from the table of options, but only those that the mode needs.

    Every login starts a client. So if the command line begins with -c, the server's options are made only if one of
    them is given: that saves time.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found: list[click.Parameter] | None = ctx.meta.get(_PARAMETERS)
        return list(_parameters("any")) if found is None else found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in options.CLIENT.names:
            ctx.meta.update({_MODE: "client", _PARAMETERS: list(_parameters("client"))})
            try:
                return super().parse_args(ctx, list(args))
            except click.NoSuchOption:
                pass  # it may be a server's option, or unknown
        ctx.meta[_PARAMETERS] = list(_parameters("any"))
        # This first parse only finds which options are given. It checks no value and reads no variable.
        there, _, _ = self.make_parser(ctx).parse_args(list(args))
        ctx.meta[_MODE] = mode = _likely_mode(there.keys())
        ours = {"server", "client", "both"} if mode == "any" else {mode, "both"}
        # Accept an option of the other mode on the command line, but ignore it with a warning.
        ctx.meta[_PARAMETERS] = [_parameter(row) if row.mode in ours else _ignored(row) for row in options.rows()]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> int:
        return _run(ctx, Given(ctx))

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        mode = ctx.meta.get(_MODE, "any")
        if mode == "any":
            _short_help(formatter)
        else:
            _help_of(mode, formatter)


class _Option(click.Option):
    def __init__(self, row: Option[Any], **attributes: Any) -> None:
        super().__init__(row.names, **attributes)
        self.row = row

    def value_from_envvar(self, ctx: click.Context) -> Any:
        value = super().value_from_envvar(ctx)
        if self.multiple and value is not None and not value:
            # click treats an empty variable as unset. A variable of blanks was meant to hold something, such as a pin.
            raise SettingsError(f"{self.row.variable} holds blanks alone: it was probably not filled in")
        return value


@cache
def _parameters(mode: str) -> tuple[click.Parameter, ...]:
    """The command-line parameters of a client, or all parameters."""
    return tuple(_parameter(row) for row in (options.client_rows() if mode == "client" else options.rows()))


def _parameter(row: Option[Any]) -> click.Parameter:
    if row is options.HELP:
        return _Option(
            row, is_flag=True, is_eager=True, expose_value=False, callback=_show_help, allow_from_autoenv=False
        )
    if row is options.VERSION:
        return _Option(
            row, is_flag=True, is_eager=True, expose_value=False, callback=_show_version, allow_from_autoenv=False
        )
    attributes: dict[str, Any] = {"allow_from_autoenv": row.from_environment}
    if row.kind is None:
        return _Option(row, is_flag=True, **attributes)
    if row.optional:
        attributes |= {"is_flag": False, "flag_value": ""}
    return _Option(
        row,
        type=(str, row.kind) if row.named else row.kind,
        multiple=row.repeatable,
        default=None if row.repeatable else row.default,
        # Parse --ssh-config before the other options: `Kind.convert` checks their texts differently with it.
        is_eager=row is options.SSH_CONFIG,
        **attributes,
    )


def _ignored(row: Option[Any]) -> click.Parameter:
    """Make a parameter that takes as many words as the option, but checks none of them and reads no variable."""
    attributes: dict[str, Any] = {"allow_from_autoenv": False, "expose_value": False}
    if row.kind is None:
        return _Option(row, is_flag=True, **attributes)
    if row.optional:
        attributes |= {"is_flag": False, "flag_value": ""}
    return _Option(row, type=click.UNPROCESSED, nargs=1 + row.named, multiple=row.repeatable, **attributes)


def _show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"http2tcp {__version__}", color=ctx.color)
        ctx.exit()


# --- the help ---------------------------------------------------------------------------------


def _short_help(formatter: click.HelpFormatter) -> None:
    formatter.write_usage("http2tcp", "-s | -c [OPTIONS]")
    formatter.write_paragraph()
    formatter.write_text(INTRODUCTION.strip())
    with formatter.section("Examples"):
        for example in EXAMPLES:
            # Never wrap an example: the user will copy it.
            formatter.write(f"  {example}\n")
    with formatter.section("What most people use"):
        _write_rows(formatter, [row for row in options.rows() if row.common or row is options.HELP], short=True)
    formatter.write_paragraph()
    formatter.write_text(_MORE)
    formatter.write_text(_EXIT_STATUS)


def _help_of(mode: str, formatter: click.HelpFormatter) -> None:
    flag, purpose = {"server": ("-s", options.SERVER.help), "client": ("-c", options.CLIENT.help)}[mode]
    formatter.write_usage("http2tcp", f"{flag} [OPTIONS]")
    formatter.write_paragraph()
    formatter.write_text(purpose)
    table = [row for row in options.rows() if row.mode in (mode, "both")]
    for group in GROUPS:
        rows = [row for row in table if row.group == group]
        if rows:
            with formatter.section(group):
                _write_rows(formatter, rows)
    formatter.write_paragraph()
    without = [row.long for row in table if not row.from_environment]
    formatter.write_text(
        f"Every option but {', '.join(without[:-1])} and {without[-1]} can come from the environment: "
        f"{options.TOKEN_FILE.variable} for {options.TOKEN_FILE.long}, and so on."
    )
    formatter.write_paragraph()
    formatter.write_text(_EXIT_STATUS)


def _write_rows(formatter: click.HelpFormatter, rows: Sequence[Option[Any]], *, short: bool = False) -> None:
    # On a narrow terminal, keep the texts wide; then a long name has a line to itself.
    names = max(10, min(34, formatter.width - 44))
    formatter.write_dl([(_spelling(row), row.summary if short else row.help_text) for row in rows], col_max=names)


def _spelling(row: Option[Any]) -> str:
    return ", ".join(row.names) + (f" {row.value}" if row.value else "")


# --- the command ------------------------------------------------------------------------------

# `help=`, not a docstring: PYTHONOPTIMIZE=2 removes docstrings.
command = _Command(
    "http2tcp",
    help=INTRODUCTION,
    add_help_option=False,
    options_metavar="-s | -c [OPTIONS]",
    context_settings={"auto_envvar_prefix": ENV_PREFIX, "max_content_width": 100, "allow_extra_args": True},
)


def _run(ctx: click.Context, given: Given) -> int:
    from http2tcp.log import start_logging

    if ctx.args:
        raise SettingsError(_unexpected(ctx.args[0]))
    mode = _mode(given)
    if mode == "new-token":
        from http2tcp.command.server_settings import show_new_token

        show_new_token(given[options.NEW_TOKEN] or "")
        return 0
    name = given[options.SSH_CONFIG]
    if name is not None:
        start_logging(logging.WARNING)
        _warn_of_mistyped_variables()
        _warn_of_other_mode(ctx, given, "client")
        from http2tcp.command.client_settings import ssh_block

        # Print bytes: a file name in the block need not be UTF-8.
        click.echo(os.fsencode(ssh_block(given, name)), nl=False)
        return 0
    check, quiet = given[options.CHECK], given[options.QUIET]
    _refuse_misplaced(given, mode)
    normal = logging.WARNING if mode == "demo" else logging.INFO
    level = logging.ERROR if quiet else logging.DEBUG if given[options.VERBOSE] else normal
    start_logging(level, hold_back=mode == "server" and not check)
    from http2tcp.net.descriptors import allow_many, require

    if mode == "server":
        allow_many()
    require()
    if mode != "demo":
        _warn_of_mistyped_variables()
        _warn_of_other_mode(ctx, given, mode)
    match mode:
        case "demo":
            from http2tcp.command.demo import run_demo

            return run_demo()
        case "server":
            from http2tcp.command.process import run_server, run_server_check
            from http2tcp.command.server_settings import refuse_log_file, server_settings

            served = server_settings(given)
            refuse_log_file(given, served.log_file)
            if check:
                return run_server_check(served, given[options.AS], quiet=quiet)
            return run_server(served, lambda: server_settings(given))
        case _:
            from http2tcp.command.client_settings import client_settings

            settings = client_settings(given)
            if check:
                from http2tcp.command.process import run_check

                return run_check(settings, as_json=given[options.JSON], quiet=quiet)
            head_start = None if settings.forwards else _head_start(settings)
            from http2tcp.command.process import run_client

            return run_client(settings, head_start)


def _head_start(settings: ClientSettings) -> HeadStart | None:
    """Begin to connect to the endpoint before trio is imported: the import takes as long as a round trip."""
    if settings.proxy is not None:
        return None
    from http2tcp.net.preconnect import HeadStart

    return HeadStart(settings.endpoint.host, settings.endpoint.port)


# --- the mode ---------------------------------------------------------------------------------

# The values of a flag's variable that click reads as true.
_TRUE = {"1", "true", "t", "yes", "y", "on"}


def _likely_mode(there: Collection[str]) -> str:
    """Return the mode that the command line, or else a variable, chooses; `any` if neither chooses exactly one."""
    if options.SSH_CONFIG.key in there:
        return "client"
    if options.NEW_TOKEN.key in there or options.DEMO.key in there:
        return "any"
    modes = (options.SERVER, options.CLIENT)
    chosen = [mode.key for mode in modes if mode.key in there] or [
        mode.key for mode in modes if os.environ.get(mode.variable, "").strip().lower() in _TRUE
    ]
    return chosen[0] if len(chosen) == 1 else "any"


def _mode(given: Given) -> str:
    if given[options.SSH_CONFIG] is not None:
        for option in _NOT_OF_SSH:
            if given.on_command_line(option):
                raise SettingsError(
                    f"--ssh-config prints the options of a client for ssh: expected it without {option.names[0]}"
                )
        return "ssh-config"
    if given[options.NEW_TOKEN] is not None:
        return "new-token"
    if given[options.DEMO]:
        return "demo"
    chosen = [option for option in (options.SERVER, options.CLIENT) if given[option]]
    # A mode on the command line beats one in the environment.
    spoken = [option for option in chosen if given.on_command_line(option)] or chosen
    if len(spoken) != 1:
        raise SettingsError(
            "expected either -s to serve or -c to be a client (-h lists the options, --demo shows a tunnel)"
        )
    return spoken[0].key


# --- misplaced and mistyped options -----------------------------------------------------------


def _unexpected(word: str) -> str:
    for row in options.rows():
        if word in (row.key, row.long.removeprefix("--")):
            return f"unexpected argument: {word!a}; is {row.long} meant?"
    # Do not show any other word: if the user forgot quotes, it may be a piece of a secret.
    return "unexpected argument: are quotes missing around a value?"


def _refuse_misplaced(given: Given, mode: str) -> None:
    """Raise SettingsError for options that only have a meaning in another mode."""
    check = given[options.CHECK]
    if check and mode not in ("client", "server"):
        raise SettingsError("--check needs -c and the options of that client, or -s and those of that server")
    if given.on_command_line(options.JSON) and not (check and mode == "client"):
        raise SettingsError("--json is the form of a client's report, and needs -c --check")
    if given.on_command_line(options.AS) and not (check and mode == "server"):
        raise SettingsError("--as asks about a server's policy: expected -s --check --as NAME HOST:PORT")
    if mode == "client" and given.on_command_line(options.CONFIG):
        raise SettingsError("--config is a server's: a client has options and variables")


def _warn_of_other_mode(ctx: click.Context, given: Given, mode: str) -> None:
    names = [
        param.row.long
        for param in ctx.command.get_params(ctx)
        if isinstance(param, _Option) and param.row.mode not in (mode, "both") and given.on_command_line(param.row)
    ]
    if names:
        other = "server" if mode == "client" else "client"
        logger.warning(
            "a %s ignores %s, which only a %s has; the next release will refuse this", mode, " and ".join(names), other
        )


def _warn_of_mistyped_variables() -> None:
    given = {name for name in os.environ if name.startswith(f"{ENV_PREFIX}_") and name.isprintable()}
    # A client usually has only a few client's variables. Stop here then, without loading the limits' rows: logins are
    # frequent.
    if not given.difference(row.variable for row in options.client_rows()):
        return
    rows = options.rows()
    known = {row.variable for row in rows}
    meant = {row.variable.removeprefix(ENV_PREFIX): row.variable for row in rows if row.from_environment}
    for name in sorted(given - known):
        # Ignore a variable that resembles none of ours. Kubernetes, for example, sets HTTP2TCP_PORT and similar ones
        # for a Service called http2tcp.
        from difflib import get_close_matches

        for near in get_close_matches(name.removeprefix(ENV_PREFIX), meant, 1, _RESEMBLES):
            logger.warning("the variable %s means nothing here: is it %s?", name, meant[near])
