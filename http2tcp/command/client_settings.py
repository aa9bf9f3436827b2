"""Makes a client's settings from options and variables, and the block that `--ssh-config` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from http2tcp.command import options
from http2tcp.command.credentials import given_token, read_secret, token_source
from http2tcp.command.options import Given, Option
from http2tcp.errors import AddressError, SettingsError

if TYPE_CHECKING:
    from http2tcp.address import Endpoint
    from http2tcp.client.forwards import Forward
    from http2tcp.client.proxy_choice import Proxy
    from http2tcp.client.settings import ClientSettings


def client_settings(given: Given, secrets: tuple[str | None, Proxy | None] | None = None) -> ClientSettings:
    """Make a client's settings from the options. Raises SettingsError.

    `secrets`, a token and a proxy, replace the token and the proxy of the options.
    """
    from http2tcp.client.settings import DEFAULT_USER_AGENT, ClientSettings, TLSSettings

    endpoint = given[options.ENDPOINT]
    if endpoint is None:
        raise SettingsError("a client needs an endpoint (-e), as in -e https://example.com/~http2tcp/")
    token, proxy = secrets if secrets is not None else (given_token(given), _proxy(given, endpoint))
    return ClientSettings(
        endpoint=endpoint,
        destination=given[options.DESTINATION],
        forwards=_forwards(given),
        token=token,
        transport=given[options.TRANSPORT],
        user_agent=given[options.USER_AGENT] or DEFAULT_USER_AGENT,
        headers=tuple(field for fields in given[options.HEADER] for field in fields),
        proxy=proxy,
        fdpass=given[options.FDPASS],
        keepalive=given[options.KEEPALIVE],
        resume=_resume(given),
        read_token=lambda: given_token(given),
        tls=TLSSettings(
            ca_file=given[options.CA_FILE],
            client_cert=given[options.CLIENT_CERT],
            client_key=given[options.CLIENT_KEY],
            server_name=given[options.TLS_SERVER_NAME],
            pins=given[options.PIN_SHA256],
            verify=not given[options.INSECURE],
        ),
    )


def _resume(given: Given) -> float:
    """Return for how many seconds to try to bring a lost tunnel back. 0: tunnels are not resumable."""
    from http2tcp.client.settings import RESUME_OF_LISTENERS, RESUME_OF_STDIO

    if given[options.NO_RESUME] or given[options.FDPASS]:
        return 0.0
    return RESUME_OF_LISTENERS if _forwards(given) else RESUME_OF_STDIO


# The options that the block does not repeat: -c, which it has anyway, and --ssh-config. The options for the token and
# the proxy appear only if they are in effect: another option may have overridden them.
_NOT_IN_BLOCK: tuple[Option[Any], ...] = (
    *(options.CLIENT, options.SSH_CONFIG, options.TOKEN, options.TOKEN_FILE, options.PROXY, options.NO_PROXY),
)


def ssh_block(given: Given, name: str) -> str:
    """Return the block that --ssh-config prints for this host. It opens no file, not even the token's."""
    from http2tcp.client.proxy_choice import parse_proxy
    from http2tcp.command.ssh_config import Written, host_block, own_command, sample

    chosen = (token_source(given), _proxy_source(given))
    if options.TOKEN in chosen:
        raise SettingsError(
            "--ssh-config prints no secret: put the token into a file, and give it as --token-file FILE"
        )
    written = []
    for option in options.client_rows():
        if not given.anywhere(option) or (option in _NOT_IN_BLOCK and option not in chosen):
            continue
        for text in given.texts(option):
            if text is not False:
                is_file = option.kind is not None and option.kind.file
                written.append(Written(option.names[0], None if text is True else text, is_file))
    proxy, url = None, given[options.PROXY]
    if options.PROXY in chosen and url is not None and not url.startswith("@"):
        proxy = parse_proxy(sample(url), "--proxy")
    return host_block(name, written, client_settings(given, (None, proxy)), own_command())


def _forwards(given: Given) -> tuple[Forward, ...]:
    """Return the forwards of -l, -L and -D, in this order."""
    forwards = given[options.LOCAL_FORWARD] + given[options.DYNAMIC_FORWARD]
    listen = given[options.LISTEN]
    if not listen:
        return forwards
    if len(listen) > 1:
        raise SettingsError("a client's -l is one address, with -d for where it leads; -L says both, and is repeatable")
    from http2tcp.client.forwards import Forward

    return (Forward(listen[0], given[options.DESTINATION]), *forwards)


def _proxy(given: Given, endpoint: Endpoint) -> Proxy | None:
    """Return the proxy of --proxy (or HTTP2TCP_PROXY), or else the one of HTTPS_PROXY and the like; None: no proxy.

    The command line beats HTTP2TCP_PROXY and HTTP2TCP_NO_PROXY.
    """
    from http2tcp.client.settings import environment_proxy

    text = given[options.PROXY]
    if _proxy_source(given) is None:
        return environment_proxy(endpoint)
    if _proxy_source(given) is options.NO_PROXY or text is None:
        return None
    from http2tcp.client.proxy_choice import parse_proxy

    source = options.PROXY.long if given.on_command_line(options.PROXY) else options.PROXY.variable
    try:
        return parse_proxy(read_secret(text[1:], "proxy file").strip() if text.startswith("@") else text, source)
    except AddressError as error:
        raise SettingsError(f"{source}: {error}") from None


def _proxy_source(given: Given) -> Option[str | None] | Option[bool] | None:
    chosen = [option for option in (options.PROXY, options.NO_PROXY) if given[option] not in (None, False)]
    spoken = [option for option in chosen if given.on_command_line(option)] or chosen
    if len(spoken) > 1:
        raise SettingsError("--proxy and --no-proxy are at odds: the one names a proxy, the other wants none")
    return spoken[0] if spoken else None
