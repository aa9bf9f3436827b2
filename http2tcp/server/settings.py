"""The server's settings, checked. Frozen; the command line or a program makes them."""

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


# The original's own default.
_DEFAULT_LISTEN = TCPAddress("127.0.0.1", 12345)
DEFAULT_FORWARDED_HEADER = "X-Forwarded-For"


# A scheme, a host, a port where it is not the scheme's own; in lower case, and nothing after it.
_ORIGIN = r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """The files (PEM) with which a server without a front end serves https. They are read when it starts."""

    #: The server's certificate first, then the certificates that lead to its authority.
    certificate: str
    #: None: in the same file.
    key: str | None = None


# Marks of fields: a reload cannot change this one; this one's option has another name (see `option_of`).
_AT_RESTART = {"restart": True}


def _option(name: str) -> dict[str, str]:
    return {"option": name}


# What clients take for a window: one outside of this ends every tunnel as a breach of the protocol.
_LEAST_WINDOW = 256 * 1024
_MOST_WINDOW = 64 * 1024 * 1024
#: The name of a server among several, which begins the ids of its sessions. A pod's name is one.
NODE = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """A server's settings. Times are in seconds. Raises SettingsError if no server could run with them."""

    #: Where to listen: one address, or several. Empty: where the service manager listens, or else 127.0.0.1:12345.
    listen: Address | Sequence[Address] = field(default=(), metadata=_AT_RESTART)
    #: Any of them opens a tunnel: a token itself, or a `Token`, which has its hash. Without a token, everybody can
    #: reach `destination`, and nothing else.
    tokens: Sequence[str | Token] = field(default=(), repr=False)
    #: Where a tunnel goes when the client names no destination.
    destination: Address | None = None
    #: What tokens without rules of their own may reach. None: everything but link-local and metadata addresses.
    allow: Sequence[Rule] | None = None
    #: What no token may reach, whatever else allows it.
    deny: Sequence[Rule] = ()
    #: Answer at this path only.
    path: str | None = None
    #: The sites whose web pages may open tunnels, as browsers name them: `https://example.com`.
    allow_origins: Sequence[str] = field(default=(), metadata=_option("allow-origin"))
    #: Take CONNECT requests, too. `path` does not apply to them.
    connect: bool = False
    #: The front ends that are believed about the client's address. `unix`: all connections by a Unix socket.
    trusted_proxies: Sequence[IPNetwork | Literal["unix"]] = field(default=(), metadata=_option("trusted-proxy"))
    #: The one header field in which trusted proxies name the client.
    forwarded_header: str = DEFAULT_FORWARDED_HEADER
    #: Every connection begins with a PROXY protocol header.
    proxy_protocol: bool = False
    #: Serve https. None: plain http, for a front end.
    tls: ServerTLS | None = field(default=None, metadata=_option("tls-cert"))
    #: Where to serve metrics and health. None: nowhere.
    admin: Address | None = field(default=None, metadata=_AT_RESTART)
    #: The host names that `admin` answers to on loopback, beside localhost and the name in `admin`.
    admin_names: Sequence[str] = field(default=(), metadata=_option("admin-name"))
    #: The time from the accepted connection to the end of its request's head.
    head_timeout: float = 10.0
    #: The time to reach a target, the look-up of its name included.
    connect_timeout: float = 10.0
    #: How much at once, and for how long. None: the defaults of `Limits`.
    limits: Limits | None = None
    #: Send something after this much silence of our own, if the transport can.
    keepalive: float = 25.0
    #: How long sessions may go on after the server was told to stop.
    grace: float = 30.0
    #: How long a client of a resumable tunnel may be away at most; 0: no tunnel is resumable.
    resume: float = 3600.0
    #: How many bytes a tunnel keeps toward its client until that has acknowledged them.
    resume_window: int = 4 * 1024 * 1024
    #: How many bytes all tunnels may keep together.
    resume_memory: int = 256 * 1024 * 1024
    #: How many tunnels may wait for their clients.
    max_detached: int = 1000
    #: Of these, how many of one token.
    max_detached_per_token: int = 32
    #: The name of this server among several behind one front end: the ids of its sessions begin with it.
    node: str = ""
    #: Let open sessions go on when their token has expired or was taken away.
    keep_sessions: bool = False
    #: For `http2tcp -s` only: `serve` ignores these two, since the log belongs to the whole process.
    log_format: Literal["text", "json"] = field(default="text", metadata=_AT_RESTART)
    #: None: stderr.
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
            if not getattr(self, name) > 0:  # nor is nan
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
        """Where to listen."""
        return [self.listen] if isinstance(self.listen, TCPAddress | UnixAddress) else self.listen or [_DEFAULT_LISTEN]


#: The fields that only a new process can change.
RESTART = tuple(each.name for each in fields(ServerSettings) if "restart" in each.metadata)
_CALLED = {each.name: each.metadata["option"] for each in fields(ServerSettings) if "option" in each.metadata}


def option_of(name: str) -> str:
    """How the command line calls a field of `ServerSettings` or `Limits`, without its dashes in front."""
    called: str = _CALLED.get(name, name.replace("_", "-"))
    return called


def _overlap(one: Address, other: Address) -> bool:
    """Whether two listeners cannot use both addresses. If two names lead to one address, the kernel will say so."""
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    return one.port == other.port != 0 and (one.host == other.host or "" in (one.host, other.host))


def check_path(text: str) -> None:
    """Raise SettingsError for a path that no request can have."""
    if not text.startswith("/"):
        raise SettingsError(f"{text!a}: a path begins with /, as in /~http2tcp/")
    if "?" in text or "#" in text:
        raise SettingsError(f"{text!a}: a path ends before ? and #; a request's query is not compared")
    # The path is compared as a request has it, and clients and front ends leave these characters as they are.
    as_sent = quote(text, safe="".join(map(chr, range(0x21, 0x7F))), errors="surrogateescape")
    if as_sent != text:
        raise SettingsError(f"{text!a}: no request has this path: expected it as it is sent, {as_sent}")


def check_origin(text: str) -> None:
    """Raise SettingsError if no browser sends this as Origin (RFC 6454, section 6.2), or if any page could."""
    if not re.fullmatch(_ORIGIN, text):
        # "null" is the origin of a sandboxed page, and every page can open itself in a sandbox.
        raise SettingsError(f"{text!a}: expected an origin as browsers send it, such as https://example.com")


def parse_trusted_proxy(text: str) -> IPNetwork | Literal["unix"]:
    """An address, a network in CIDR notation, or `unix`. Raises AddressError."""
    from http2tcp.address import parse_network

    try:
        return "unix" if text == "unix" else parse_network(text)
    except AddressError as error:
        raise AddressError(f"{error}; or unix, for connections by a Unix socket") from None
