"""The server's settings, and the checks that they can work. The command line or another program makes them. Frozen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from http2tcp.address import Address, TCPAddress, UnixAddress
from http2tcp.errors import AddressError, SettingsError
from http2tcp.fields import check_field_name, check_token

if TYPE_CHECKING:
    from http2tcp.address import IPNetwork
    from http2tcp.server.limits import Limits
    from http2tcp.server.policy import Token
    from http2tcp.server.rules import Rule


# The default of the original http2tcp.
_DEFAULT_LISTEN = TCPAddress("127.0.0.1", 12345)
DEFAULT_FORWARDED_HEADER = "X-Forwarded-For"


# An origin: a scheme, a host, and a port if it is not the scheme's default. All in lower case, and no path.
_ORIGIN = r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """The files (PEM) for https on a server without a front end. The server reads them at its start and at reloads."""

    #: The server's certificate first, then the certificates that lead to its authority.
    certificate: str
    #: The file of the private key. None: the key is in the file of the certificate.
    key: str | None = None


# Metadata of a field that a reload cannot change.
_AT_RESTART = {"restart": True}


def _option(name: str) -> dict[str, str]:
    # Metadata of a field whose option has another name than the field: see `option_of`.
    return {"option": name}


# The windows that clients accept, in bytes. A client ends a tunnel with any other window, as a breach of the protocol.
_LEAST_WINDOW = 256 * 1024
_MOST_WINDOW = 64 * 1024 * 1024
#: The form of `node`, the name of one server among several. A pod's name has this form.
NODE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """A server's settings. Times are in seconds. Raises SettingsError if no server could run with them."""

    #: Where to listen: one address, or several. Empty: where the service manager listens, or else 127.0.0.1:12345.
    listen: Address | Sequence[Address] = field(default=(), metadata=_AT_RESTART)
    #: The tokens that open tunnels. Each is the token itself, or a `Token`, which has its hash. Without any token,
    #: every client can reach `destination`, and nothing else.
    tokens: Sequence[str | Token] = field(default=(), repr=False)
    #: Where a tunnel goes when the client names no destination.
    destination: Address | None = None
    #: What tokens without rules of their own may reach. None: everything but link-local and metadata addresses.
    allow: Sequence[Rule] | None = None
    #: What no token may reach, even if another rule allows it.
    deny: Sequence[Rule] = ()
    #: Answer requests for this path only. None: for every path.
    path: str | None = None
    #: The sites whose web pages may open tunnels, as browsers name them: `https://example.com`.
    allow_origins: Sequence[str] = field(default=(), metadata=_option("allow-origin"))
    #: Accept CONNECT requests, too. `path` does not apply to them.
    connect: bool = False
    #: The front ends whose word about the client's address is believed. `unix`: all peers on a Unix socket.
    trusted_proxies: Sequence[IPNetwork | Literal["unix"]] = field(default=(), metadata=_option("trusted-proxy"))
    #: The one header field in which trusted proxies name the client.
    forwarded_header: str = DEFAULT_FORWARDED_HEADER
    #: Expect a PROXY protocol header at the start of every connection.
    proxy_protocol: bool = False
    #: Serve https. None: plain http, for a front end.
    tls: ServerTLS | None = field(default=None, metadata=_option("tls-cert"))
    #: Where to serve metrics and health. None: nowhere.
    admin: Address | None = field(default=None, metadata=_AT_RESTART)
    #: The names that requests to `admin` on loopback may have in Host, besides localhost and the name in `admin`.
    admin_names: Sequence[str] = field(default=(), metadata=_option("admin-name"))
    #: How long a connection may take until the head of its request is complete.
    head_timeout: float = 10.0
    #: How long it may take to reach a target, including the look-up of its name.
    connect_timeout: float = 10.0
    #: How many tunnels and connections may be open, and for how long. None: the defaults of `Limits`.
    limits: Limits | None = None
    #: Send a keepalive after the server has sent nothing for this long, if the transport can.
    keepalive: float = 25.0
    #: How long sessions may go on after the server begins to drain.
    grace: float = 30.0
    #: How long the client of a resumable tunnel may be away. 0: no tunnel is resumable.
    resume: float = 3600.0
    #: How many bytes that the client has not acknowledged yet a resumable tunnel may keep.
    resume_window: int = 4 * 1024 * 1024
    #: How many such bytes all tunnels together may keep.
    resume_memory: int = 256 * 1024 * 1024
    #: How many tunnels may wait for their clients to come back.
    max_detached: int = 1000
    #: How many tunnels of one token may wait for their clients to come back.
    max_detached_per_token: int = 32
    #: The name of this server among several behind one front end. The ids of its sessions begin with it.
    node: str = ""
    #: Let open sessions go on when their token has expired or was removed.
    keep_sessions: bool = False
    #: The format of the log. For `http2tcp -s` only: `serve` ignores `log_format` and `log_file`, since the log belongs
    #: to the whole process.
    log_format: Literal["text", "json"] = field(default="text", metadata=_AT_RESTART)
    #: The file of the log. None: stderr.
    log_file: str | None = field(default=None, metadata=_AT_RESTART)

    def __post_init__(self) -> None:
        if isinstance(self.tokens, str):
            raise SettingsError("expected a sequence of tokens, not a string: each character would be a token")
        for token in self.tokens:
            if isinstance(token, str):
                check_token(token)
        if not self.tokens and self.destination is None:
            raise SettingsError(
                "a server needs a token (-t, --token-file, or [[token]] in --config), "
                "or a destination (-d), which everybody can reach then"
            )
        if self.path is not None:
            check_path(self.path)
        if isinstance(self.allow_origins, str):
            raise SettingsError("expected a sequence of origins, not a string: each character would be an origin")
        for origin in self.allow_origins:
            check_origin(origin)
        if isinstance(self.admin_names, str):
            raise SettingsError("expected a sequence of names, not a string: each character would be a name")
        for name in ("head_timeout", "connect_timeout", "keepalive"):
            if not getattr(self, name) > 0:  # this rejects nan, too
                raise SettingsError(f"{name}: expected seconds above 0, not {getattr(self, name)}")
        for name in ("grace", "resume"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name}: expected seconds from 0 on, not {getattr(self, name)}")
        if not _LEAST_WINDOW <= self.resume_window <= _MOST_WINDOW:
            raise SettingsError(f"resume_window: expected 256K to 64M, not {self.resume_window} bytes")
        if self.node and not NODE.fullmatch(self.node):
            raise SettingsError(
                f"node: expected a name of small letters, digits, dots and hyphens, as in a or pod-0, not {self.node!a}"
            )
        check_field_name(self.forwarded_header)
        if self.forwarded_header != DEFAULT_FORWARDED_HEADER and not self.trusted_proxies:
            raise SettingsError("--forwarded-header needs --trusted-proxy: anybody can send the field")
        if self.admin is not None and any(_overlap(self.admin, address) for address in self.addresses):
            raise SettingsError(
                f"--admin needs an address of its own: the server already listens for tunnels at {self.admin}"
            )

    @property
    def addresses(self) -> Sequence[Address]:
        """The addresses to listen on: those of `listen`, or the default."""
        return [self.listen] if isinstance(self.listen, TCPAddress | UnixAddress) else self.listen or [_DEFAULT_LISTEN]


#: The fields that only a restart of the server can change.
RESTART = tuple(each.name for each in fields(ServerSettings) if "restart" in each.metadata)
_CALLED = {each.name: each.metadata["option"] for each in fields(ServerSettings) if "option" in each.metadata}


def option_of(name: str) -> str:
    """Return the name of the option for a field of `ServerSettings` or `Limits`, without the dashes in front."""
    called: str = _CALLED.get(name, name.replace("_", "-"))
    return called


def _overlap(one: Address, other: Address) -> bool:
    """Return whether two listeners cannot use both addresses.

    Names are not looked up: if two names lead to one address, the kernel will report it.
    """
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    return one.port == other.port != 0 and (one.host == other.host or "" in (one.host, other.host))


def check_path(text: str) -> None:
    """Raise SettingsError if no request can have this path."""
    if not text.startswith("/"):
        raise SettingsError(f"{text!a}: a path begins with /, as in /~http2tcp/")
    if "?" in text or "#" in text:
        raise SettingsError(f"{text!a}: a path ends before ? and #; a request's query is not compared")
    # The path is compared with the request's path in its escaped form. Clients and front ends do not escape the
    # characters that are safe here.
    as_sent = quote(text, safe="".join(map(chr, range(0x21, 0x7F))), errors="surrogateescape")
    if as_sent != text:
        raise SettingsError(f"{text!a}: no request has this path: expected it as it is sent, {as_sent}")


def check_origin(text: str) -> None:
    """Raise SettingsError if no browser sends this as Origin (RFC 6454, section 6.2), or if any page could have it."""
    if not re.fullmatch(_ORIGIN, text):
        # This rejects "null" as well: it is a sandboxed page's origin, and every page can open itself in a sandbox.
        raise SettingsError(f"{text!a}: expected an origin as browsers send it, such as https://example.com")


def parse_trusted_proxy(text: str) -> IPNetwork | Literal["unix"]:
    """Parse an address, a network in CIDR notation, or `unix`. Raises AddressError."""
    from http2tcp.address import parse_network

    try:
        return "unix" if text == "unix" else parse_network(text)
    except AddressError as error:
        raise AddressError(f"{error}; or unix, for connections by a Unix socket") from None
