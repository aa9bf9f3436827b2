"""Any TCP port, ssh first, through the HTTPS site that is already open.

    import trio, http2tcp

    async def main():
        async with await http2tcp.open_tunnel("https://example.com/~http2tcp/", "localhost:22", token="…") as tunnel:
            print(await tunnel.receive_some())

    trio.run(main)

The command line is built on `open_tunnel` and `serve`. Each name below is imported when it is first used: a client
that starts at every ssh login must not spend time on loading the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from http2tcp.version import __version__

if TYPE_CHECKING:
    from http2tcp.address import parse_destination, parse_endpoint, parse_listen
    from http2tcp.client.connector import open_tunnel
    from http2tcp.client.settings import ClientSettings, TLSSettings
    from http2tcp.errors import (
        AddressError,
        ConnectFailed,
        CredentialsRefused,
        DestinationForbidden,
        FrontEndFailed,
        Http2tcpError,
        ListenError,
        OriginalServer,
        ProxyFailed,
        ResolveFailed,
        ServerRefused,
        SettingsError,
        TargetFailed,
        TLSFailed,
        TunnelError,
        UpgradeNotPassed,
    )
    from http2tcp.net.streams import HalfCloseUnsupported
    from http2tcp.protocol.transport import Transport
    from http2tcp.server.limits import Limits
    from http2tcp.server.policy import Token
    from http2tcp.server.rules import Rule, parse_rule
    from http2tcp.server.server import serve
    from http2tcp.server.settings import ServerSettings, ServerTLS

__all__ = [
    "AddressError",
    "ClientSettings",
    "ConnectFailed",
    "CredentialsRefused",
    "DestinationForbidden",
    "FrontEndFailed",
    "HalfCloseUnsupported",
    "Http2tcpError",
    "Limits",
    "ListenError",
    "OriginalServer",
    "ProxyFailed",
    "ResolveFailed",
    "Rule",
    "ServerRefused",
    "ServerSettings",
    "ServerTLS",
    "SettingsError",
    "TLSFailed",
    "TLSSettings",
    "TargetFailed",
    "Token",
    "Transport",
    "TunnelError",
    "UpgradeNotPassed",
    "__version__",
    "open_tunnel",
    "parse_destination",
    "parse_endpoint",
    "parse_listen",
    "parse_rule",
    "serve",
]

_HOMES = {
    "open_tunnel": "client.connector",
    "serve": "server.server",
    "ServerSettings": "server.settings",
    "ServerTLS": "server.settings",
    "Limits": "server.limits",
    "Token": "server.policy",
    "Rule": "server.rules",
    "parse_rule": "server.rules",
    "ClientSettings": "client.settings",
    "TLSSettings": "client.settings",
    "Transport": "protocol.transport",
    "AddressError": "errors",
    "ConnectFailed": "errors",
    "CredentialsRefused": "errors",
    "DestinationForbidden": "errors",
    "FrontEndFailed": "errors",
    "HalfCloseUnsupported": "net.streams",
    "Http2tcpError": "errors",
    "ListenError": "errors",
    "OriginalServer": "errors",
    "ProxyFailed": "errors",
    "ResolveFailed": "errors",
    "ServerRefused": "errors",
    "SettingsError": "errors",
    "TLSFailed": "errors",
    "TargetFailed": "errors",
    "TunnelError": "errors",
    "UpgradeNotPassed": "errors",
    "parse_destination": "address",
    "parse_endpoint": "address",
    "parse_listen": "address",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
