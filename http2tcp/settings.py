"""What the server and the client are told, parsed and checked. Frozen; made by the command line or the API."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from http2tcp import __version__
from http2tcp.address import Address, Endpoint, TCPAddress, UnixAddress
from http2tcp.errors import AddressError, SettingsError
from http2tcp.fields import TOKEN_CHARACTERS, check_field_name, check_token
from http2tcp.protocol.transport import TOKEN_FIELD, Transport

if TYPE_CHECKING:
    from http2tcp.address import IPNetwork
    from http2tcp.forwards import Forward
    from http2tcp.limits import Limits
    from http2tcp.policy import Token
    from http2tcp.proxy_choice import Proxy
    from http2tcp.rules import Rule

# The original's own default.
_DEFAULT_LISTEN = TCPAddress("127.0.0.1", 12345)
DEFAULT_FORWARDED_HEADER = "X-Forwarded-For"
DEFAULT_USER_AGENT = f"http2tcp/{__version__}"

# Without one of them there is no proxy, and no module about proxies is loaded.
_PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")

logger = logging.getLogger(__name__)

# What the handshake itself says. To change one of these is to ask for something else than a tunnel.
_OWN_FIELDS = {"connection", "upgrade", "content-length", "transfer-encoding", TOKEN_FIELD.lower()}
_OWN_FIELDS |= {f"sec-websocket-{name}" for name in ("key", "version", "protocol", "extensions")}
# A scheme, a host, a port where it is not the scheme's own; in lower case, and nothing after it.
_ORIGIN = r"[a-z][a-z0-9+.-]*://[^/?#@\sA-Z]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """With what a server without a front end serves https: files in PEM, which are read when it starts."""

    #: The server's certificate first, then those that lead to its authority.
    certificate: str
    #: None: in the same file.
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The server's. Times are in seconds. Raises SettingsError where they cannot be served."""

    #: Where to listen: one address, or several. None: where the service manager does, or else 127.0.0.1:12345.
    listen: Address | Sequence[Address] = ()
    #: Any of them opens a tunnel: the token itself, or what is known of it. Without one, `destination` is all
    #: that can be reached.
    tokens: Sequence[str | Token] = field(default=(), repr=False)
    #: Where a tunnel goes when the client names no destination.
    destination: Address | None = None
    #: What the tokens without rules of their own may reach; None: everything but link-local and metadata addresses.
    allow: Sequence[Rule] | None = None
    #: What no token may reach, whatever else allows it.
    deny: Sequence[Rule] = ()
    #: Answer at this path only.
    path: str | None = None
    #: The web pages that may open tunnels, as browsers name them: `https://example.com`.
    allow_origins: Sequence[str] = ()
    #: Take CONNECT too, which has no path.
    connect: bool = False
    #: The front ends whose word counts for the client's address; `unix`: whoever comes by a Unix socket.
    trusted_proxies: Sequence[IPNetwork | Literal["unix"]] = ()
    #: The one header field in which they say it.
    forwarded_header: str = DEFAULT_FORWARDED_HEADER
    #: Every connection begins with a PROXY protocol header.
    proxy_protocol: bool = False
    #: Serve https. None: plain http, for a front end.
    tls: ServerTLS | None = None
    #: Where metrics and health are served; None: nowhere.
    admin: Address | None = None
    #: By which names it may be asked on loopback, beside localhost and the one in `admin`.
    admin_names: Sequence[str] = ()
    #: From the accepted connection to the end of its request's head.
    head_timeout: float = 10.0
    #: To reach a target, its name included.
    connect_timeout: float = 10.0
    #: How much at once, and for how long; None: as `Limits` has it.
    limits: Limits | None = None
    #: Break our own silence so often, where the transport has a way to.
    keepalive: float = 25.0
    #: How long sessions may go on after the server was told to drain.
    grace: float = 30.0
    #: Let the open sessions of a token that was taken away or has expired run on.
    keep_sessions: bool = False
    #: The log is the process's: these two are for `http2tcp -s`, and `serve` leaves them alone.
    log_format: Literal["text", "json"] = "text"
    #: None: stderr.
    log_file: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tokens, str):
            raise SettingsError("expected a sequence of tokens; of a string, each character would be one")
        for token in self.tokens:
            if isinstance(token, str):
                check_token(token)
        if not self.tokens and self.destination is None:
            raise SettingsError(
                "a server needs a token (-t, --token-file, or [[token]] in --config), "
                "or a destination (-d) that is then all that can be reached without one"
            )
        if self.path is not None:
            check_path(self.path)
        if isinstance(self.allow_origins, str):
            raise SettingsError("expected a sequence of origins; of a string, each character would be one")
        for origin in self.allow_origins:
            check_origin(origin)
        if isinstance(self.admin_names, str):
            raise SettingsError("expected a sequence of names; of a string, each character would be one")
        for name in ("head_timeout", "connect_timeout", "keepalive"):
            if not getattr(self, name) > 0:  # nor is nan
                raise SettingsError(f"{name}: expected seconds above 0, not {getattr(self, name)}")
        if not self.grace >= 0:
            raise SettingsError(f"grace: expected seconds from 0 on, not {self.grace}")
        check_field_name(self.forwarded_header)
        if self.forwarded_header != DEFAULT_FORWARDED_HEADER and not self.trusted_proxies:
            raise SettingsError("--forwarded-header needs --trusted-proxy: anybody can send the field")
        if self.admin is not None and any(_overlap(self.admin, address) for address in self.addresses):
            raise SettingsError(
                f"--admin needs an address of its own: at {self.admin} tunnels are served, for everybody who gets there"
            )

    @property
    def addresses(self) -> Sequence[Address]:
        """Where to listen."""
        return [self.listen] if isinstance(self.listen, TCPAddress | UnixAddress) else self.listen or [_DEFAULT_LISTEN]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """How the client verifies an https endpoint, and how it names itself there."""

    #: Authorities in PEM, in place of the system's.
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    #: The name to ask for and to verify, in place of the endpoint's host.
    server_name: str | None = None
    #: SHA-256 digests of public keys; the server's has to be one of them, on top of the verification.
    pins: Sequence[bytes] = ()
    #: False trusts any certificate.
    verify: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The client's. Times are in seconds. Raises SettingsError where they contradict each other."""

    endpoint: Endpoint
    #: Without one, the server's default destination.
    destination: Address | None = None
    #: Where to listen, and where that leads; without any, stdin and stdout are tunnelled.
    forwards: Sequence[Forward] = ()
    token: str | None = field(default=None, repr=False)
    #: None: the first that gets through.
    transport: Transport | None = None
    user_agent: str = DEFAULT_USER_AGENT
    #: Further header fields of the request.
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    tls: TLSSettings = TLSSettings()
    #: What to reach the endpoint through. `environment_proxy` finds the environment's.
    proxy: Proxy | None = None
    #: Hand the connection to ssh (ProxyUseFdpass) and leave.
    fdpass: bool = False
    #: Break our own silence so often, where the transport has a way to; None: promise nothing.
    keepalive: float | None = 25.0
    #: For the name and the TCP connection together.
    connect_timeout: float = 10.0
    #: For a proxy's name, its TCP connection, its TLS and its answer together.
    proxy_timeout: float = 10.0
    tls_timeout: float = 10.0
    #: For the answer; longer than the server's own limit for its dial.
    answer_timeout: float = 20.0

    def __post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token)
        if not self.user_agent.isprintable():
            raise SettingsError("the user agent holds a control character")
        for name, value in self.headers:
            check_field(name, value)
        if self.tls.client_key is not None and self.tls.client_cert is None:
            raise SettingsError("--client-key needs --client-cert, the certificate that goes with it")
        if self.fdpass and self.endpoint.tls:
            raise SettingsError("--fdpass needs an http endpoint: with https, the TLS session lives in this process")
        if self.fdpass and self.proxy is not None and self.proxy.tls:
            raise SettingsError(
                f"--fdpass cannot go through {self.proxy}: with https, the TLS session lives in this process"
            )
        if self.fdpass and self.transport is not None and not self.transport.raw:
            raise SettingsError(
                f"--fdpass needs a raw transport, such as tcp: ssh does not speak {self.transport.value}"
            )
        if self.fdpass and self.forwards:
            raise SettingsError("--fdpass hands ssh its one connection, and -l, -L and -D listen for others")
        # By SOCKS5 each connection names its own.
        wanted = [forward.destination for forward in self.forwards if not forward.socks] if self.forwards else [None]
        if self.destination is None and None in wanted and self.endpoint.needs_target:
            raise SettingsError("this endpoint's template needs a destination (-d)")
        destinations = [self.destination, *(forward.destination for forward in self.forwards)]
        if self.endpoint.needs_target and any(isinstance(each, UnixAddress) for each in destinations):
            raise SettingsError("this endpoint's template has no place for a Unix socket: it names a host and a port")


def _overlap(one: Address, other: Address) -> bool:
    """Whether two listeners cannot have both. Of names that lead to one address, the kernel will tell."""
    if isinstance(one, UnixAddress) or isinstance(other, UnixAddress):
        return one == other
    return one.port == other.port != 0 and (one.host == other.host or "" in (one.host, other.host))


def environment_proxy(endpoint: Endpoint) -> Proxy | None:
    """The proxy that HTTPS_PROXY and its like name for an endpoint. Raises AddressError."""
    if not any(name in os.environ for name in _PROXY_VARIABLES):
        return None
    from http2tcp.proxy_choice import choose

    proxy, why = choose(endpoint, os.environ)
    if proxy is None:
        logger.debug("no proxy: %s", why)
    return proxy


def check_path(text: str) -> None:
    """Raises SettingsError for what no request asks for."""
    if not text.startswith("/"):
        raise SettingsError(f"{text!a}: a path begins with /, as in /~http2tcp/")
    if "?" in text or "#" in text:
        raise SettingsError(f"{text!a}: a path ends before ? and #; a request's query is not compared")
    # Compared as it comes, and clients and front ends leave these as they are.
    as_sent = quote(text, safe="".join(map(chr, range(0x21, 0x7F))), errors="surrogateescape")
    if as_sent != text:
        raise SettingsError(f"{text!a}: no request says it so: expected it as it is sent, {as_sent}")


def check_origin(text: str) -> None:
    """Raises SettingsError for what no browser sends as an Origin (RFC 6454, section 6.2), or every page can."""
    if not re.fullmatch(_ORIGIN, text):
        # "null" is what a page sends that hides its own: that is every page that wants to.
        raise SettingsError(f"{text!a}: expected an origin as browsers send it, such as https://example.com")


def parse_trusted_proxy(text: str) -> IPNetwork | Literal["unix"]:
    """An address, a network in CIDR notation, or `unix`. Raises AddressError."""
    from http2tcp.address import parse_network

    try:
        return "unix" if text == "unix" else parse_network(text)
    except AddressError as error:
        raise AddressError(f"{error}; or unix, for who comes by a Unix socket") from None


def check_field(name: str, value: str) -> None:
    """Raises SettingsError for a header field that cannot be sent, or is not the user's to set."""
    if not name or not TOKEN_CHARACTERS.issuperset(name):
        raise SettingsError("a header field is expected as 'Name: value'")
    if not value.replace("\t", "").isprintable():
        raise SettingsError(f"the value of {name} holds a control character")
    if name.lower() in _OWN_FIELDS:
        raise SettingsError(f"{name} is set by http2tcp itself")
