"""What `-c` is given: options and variables, as a client's settings. And the block that `--ssh-config` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from http2tcp.command.credentials import given_token, read_secret, token_source
from http2tcp.command.values import ENV_PREFIX, Source, on_command_line, text_of
from http2tcp.errors import AddressError, SettingsError

if TYPE_CHECKING:
    from http2tcp.client.forwards import Forward
    from http2tcp.client.proxy_choice import Proxy
    from http2tcp.client.settings import ClientSettings


def client_settings(
    ctx: click.Context, options: dict[str, Any], secrets: tuple[str | None, Proxy | None] | None = None
) -> ClientSettings:
    """What the options come to. Raises SettingsError.

    `secrets` are a token and a proxy in the place of those that the options name.
    """
    from http2tcp.client.settings import DEFAULT_USER_AGENT, ClientSettings, TLSSettings

    if options["endpoint"] is None:
        raise SettingsError("a client needs an endpoint (-e), as in -e https://example.com/~http2tcp/")
    token, proxy = secrets if secrets is not None else (given_token(ctx, options), _proxy(ctx, options))
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


def ssh_block(ctx: click.Context, options: dict[str, Any]) -> str:
    """What --ssh-config prints. Neither the token's file nor any other is opened."""
    from http2tcp.client.proxy_choice import parse_proxy
    from http2tcp.command.ssh_config import Written, host_block, own_command, sample

    chosen = {token_source(ctx, options), _proxy_source(ctx, options)}
    if "token" in chosen:
        raise SettingsError(
            "--ssh-config prints no secret: put the token into a file, and give it as --token-file FILE"
        )
    left_out = {"client", "ssh_config", "token", "token_file", "proxy", "no_proxy"} - chosen
    written = []
    for param in ctx.command.params:
        name = param.name or ""
        spoken = ctx.get_parameter_source(name) in (Source.COMMANDLINE, Source.ENVIRONMENT)
        if not spoken or name in left_out or getattr(param, "group", "Both") == "Server":
            continue
        for text in ctx.meta.get(text_of(param), [options[name]]):
            if text is not False:
                file = param.make_metavar(ctx) == "FILE"
                written.append(Written(param.opts[0], None if text is True else text, file))
    proxy = None
    if "proxy" in chosen and not options["proxy"].startswith("@"):
        proxy = parse_proxy(sample(options["proxy"]), "--proxy")
    settings = client_settings(ctx, options, (None, proxy))
    return host_block(options["ssh_config"], written, settings, own_command())


def _forwards(options: dict[str, Any]) -> tuple[Forward, ...]:
    """What -l, -L and -D ask for, in this order."""
    forwards: tuple[Forward, ...] = options["local_forward"] + options["dynamic_forward"]
    if not options["listen"]:
        return forwards
    if len(options["listen"]) > 1:
        raise SettingsError("a client's -l is one address, with -d for where it leads; -L says both, and is repeatable")
    from http2tcp.client.forwards import Forward

    return (Forward(options["listen"][0], options["destination"]), *forwards)


def _proxy(ctx: click.Context, options: dict[str, Any]) -> Proxy | None:
    """The proxy that an option names, or else the environment; the command line beats our own variables."""
    from http2tcp.client.settings import environment_proxy

    chosen = _proxy_source(ctx, options)
    if chosen is None:
        return environment_proxy(options["endpoint"])
    if chosen == "no_proxy":
        return None
    from http2tcp.client.proxy_choice import parse_proxy

    source = "--proxy" if on_command_line(ctx, "proxy") else f"{ENV_PREFIX}_PROXY"
    text = options["proxy"]
    try:
        return parse_proxy(read_secret(text[1:], "proxy file").strip() if text.startswith("@") else text, source)
    except AddressError as error:
        raise SettingsError(f"{source}: {error}") from None


def _proxy_source(ctx: click.Context, options: dict[str, Any]) -> str | None:
    chosen = [name for name in ("proxy", "no_proxy") if options[name] not in (None, False)]
    spoken = [name for name in chosen if on_command_line(ctx, name)] or chosen
    if len(spoken) > 1:
        raise SettingsError("--proxy and --no-proxy are at odds: the one names a proxy, the other wants none")
    return spoken[0] if spoken else None
