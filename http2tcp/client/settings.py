"""The client's settings, checked and frozen. The command line or a Python program makes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from http2tcp.address import Address, Endpoint, UnixAddress
from http2tcp.errors import SettingsError
from http2tcp.fields import TOKEN_CHARACTERS, check_token
from http2tcp.protocol.transport import TOKEN_FIELD, Transport
from http2tcp.version import __version__

if TYPE_CHECKING:
    from http2tcp.client.forwards import Forward
    from http2tcp.client.proxy_choice import Proxy

DEFAULT_USER_AGENT = f"http2tcp/{__version__}"

# Unless one of these is set, there is no proxy, and no module about proxies is loaded.
_PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")

logger = logging.getLogger("http2tcp.client")

# The header fields that the handshake sets. With other values, the request would no longer ask for a tunnel.
_OWN_FIELDS = {"connection", "upgrade", "content-length", "transfer-encoding", TOKEN_FIELD.lower()}
_OWN_FIELDS |= {f"sec-websocket-{name}" for name in ("key", "version", "protocol", "extensions")}


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """How the client verifies an https endpoint, and which certificate it shows there."""

    #: A file of certificate authorities (PEM), used in place of the system's.
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    #: The name to send (SNI) and to verify, in place of the endpoint's host.
    server_name: str | None = None
    #: SHA-256 digests of public keys. If not empty, the server's key must match one of them, and its certificate must
    #: still be valid.
    pins: Sequence[bytes] = ()
    #: False: trust any certificate.
    verify: bool = True


#: For how many seconds the client tries to bring a lost tunnel back. STDIO: a tunnel on stdin and stdout, which is a
#: login. LISTENERS: a tunnel of a local listener, whose program can connect again. PROGRAMS: a tunnel of `open_tunnel`.
RESUME_OF_STDIO = 900.0
RESUME_OF_LISTENERS = 60.0
RESUME_OF_PROGRAMS = 60.0
#: Seconds between the keepalives that the client sends.
DEFAULT_KEEPALIVE = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """A client's settings. Times are in seconds. Raises SettingsError if they contradict each other."""

    endpoint: Endpoint
    #: The target. None: the server's default destination.
    destination: Address | None = None
    #: Where to listen, and where the connections lead. Empty: tunnel stdin and stdout.
    forwards: Sequence[Forward] = ()
    token: str | None = field(default=None, repr=False)
    #: The transport to use. None: the first that gets through.
    transport: Transport | None = None
    user_agent: str = DEFAULT_USER_AGENT
    #: Header fields to add to the request.
    headers: Sequence[tuple[str, str]] = field(default=(), repr=False)
    tls: TLSSettings = TLSSettings()
    #: The proxy on the way to the endpoint. `environment_proxy` finds the one that the environment names.
    proxy: Proxy | None = None
    #: Hand the connection to ssh (ProxyUseFdpass) and exit.
    fdpass: bool = False
    #: Send a keepalive after sending nothing for this long, if the transport can. None: do not announce a keepalive.
    keepalive: float | None = 25.0
    #: For how many seconds to try to bring a tunnel back that lost its connection. 0: tunnels are not resumable.
    resume: float = 0.0
    #: How many bytes sent to the server the client keeps, to send them again, until the server acknowledges them.
    resume_window: int = 4 * 1024 * 1024
    #: Reads the token again when a tunnel resumes, which may be long after it was opened. Raises SettingsError.
    read_token: Callable[[], str | None] | None = field(default=None, repr=False, compare=False)
    #: The limit for looking the endpoint's name up and connecting to it, together.
    connect_timeout: float = 10.0
    #: The limit for the proxy's name look-up, TCP connection, TLS handshake and answer, together.
    proxy_timeout: float = 10.0
    tls_timeout: float = 10.0
    #: The limit for the server's answer. It is longer than the server's own limit for reaching the target.
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
        # Skip the SOCKS5 forwards: each of their connections names its own destination.
        wanted = [forward.destination for forward in self.forwards if not forward.socks] if self.forwards else [None]
        if self.destination is None and None in wanted and self.endpoint.needs_target:
            raise SettingsError("this endpoint's template needs a destination (-d)")
        destinations = [self.destination, *(forward.destination for forward in self.forwards)]
        if self.endpoint.needs_target and any(isinstance(each, UnixAddress) for each in destinations):
            raise SettingsError("this endpoint's template has no place for a Unix socket: it names a host and a port")


def environment_proxy(endpoint: Endpoint) -> Proxy | None:
    """Return the proxy that HTTPS_PROXY or a similar variable names for an endpoint. Raises AddressError."""
    if not any(name in os.environ for name in _PROXY_VARIABLES):
        return None
    from http2tcp.client.proxy_choice import choose

    proxy, why = choose(endpoint, os.environ)
    if proxy is None:
        logger.debug("no proxy: %s", why)
    return proxy


def check_field(name: str, value: str) -> None:
    """Raise SettingsError for a header field that cannot be sent, or that http2tcp sets itself."""
    if not name or not TOKEN_CHARACTERS.issuperset(name):
        raise SettingsError("a header field is expected as 'Name: value'")
    if not value.replace("\t", "").isprintable():
        raise SettingsError(f"the value of {name} holds a control character")
    if name.lower() in _OWN_FIELDS:
        raise SettingsError(f"{name} is set by http2tcp itself")
