"""Addresses and endpoints: parsed once, at the edge. Pure.

Nothing below the command line, the configuration file and the request head ever splits on a colon
again: they all pass `TCPAddress`, `UnixAddress` or `Endpoint` on. Every parser here raises
`AddressError`, whose text is a sentence that says what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

from http2tcp.errors import AddressError

# RFC 1035, section 2.3.4 gives 255 octets on the wire, which is 253 characters of text.
MAX_HOST = 253
# struct sockaddr_un: 108 bytes on Linux, the terminating zero included.
MAX_UNIX_PATH = 107

# Underscores are not allowed in host names, but names with them resolve and are in use.
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?", re.ASCII)
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)
# An IPv6 zone: an interface's name or number, as in fe80::1%eth0. Linux allows 15 characters.
_SCOPE = re.compile(r"[a-zA-Z0-9_.-]{1,32}", re.ASCII)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_CONTROL_OR_BLANK = re.compile(r"[\x00-\x20\x7f]")
# RFC 9298, section 2 allows RFC 6570 up to level 3, without `+` and `#`; `.` makes no sense here.
_EXPRESSION = re.compile(r"\{([?&/;]?)([A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*)\}", re.ASCII)
# The escapes of the unreserved characters (RFC 3986, section 2.3): - . _ ~, digits and letters.
_UNRESERVED = re.compile(r"%(2[DEde]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")
_UNIX = "unix:"


class TCPAddress(NamedTuple):
    """A host (a lower-case name, or an IP address without brackets; empty: every interface) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(NamedTuple):
    """The absolute path of a Unix stream socket."""

    path: str

    def __str__(self) -> str:
        return _UNIX + self.path


Address = TCPAddress | UnixAddress


def parse_destination(text: str) -> Address:
    """Parse `host:port`, `[v6]:port`, `v6:port` as ssh's %h:%p writes it, `:port` (localhost), or `unix:/path`."""
    if text.startswith(_UNIX):
        return _parse_unix(text)
    host, port = _split(text, "HOST:PORT, [IPv6]:PORT or unix:/PATH")
    if port == 0:
        raise AddressError(f"{text!a}: expected a port from 1 to 65535")
    return TCPAddress(host or "localhost", port)


def parse_target(host: str, port: str) -> TCPAddress:
    """Make an address of the two variables of a connect-tcp template. An IPv6 host has no brackets."""
    if not _PORT.fullmatch(port):
        raise AddressError(f"{port!a}: expected a port from 1 to 65535")
    return target_address(host, int(port))


def target_address(host: str, port: int) -> TCPAddress:
    """Make an address of a host and a port that arrived separately, as in SOCKS5. An empty host is an error."""
    if not host or host.startswith(("[", _UNIX)):
        raise AddressError(f"{host!a}: expected a host name or an IP address")
    if not 1 <= port <= 65535:
        raise AddressError(f"{port}: expected a port from 1 to 65535")
    return TCPAddress(_parse_host(host, host), port)


def parse_listen(text: str) -> Address:
    """Like `parse_destination`, but `:port` is every interface, a bare port is loopback, and port 0 any free port."""
    if text.startswith(_UNIX):
        return _parse_unix(text)
    host, port = _split(f"127.0.0.1:{text}" if _PORT.fullmatch(text) else text, "HOST:PORT, PORT or unix:/PATH")
    return TCPAddress(host, port)


def _parse_unix(text: str) -> UnixAddress:
    path = text.removeprefix(_UNIX)
    # No line breaks or control characters: the path is shown in logs and on terminals.
    if not path.startswith("/") or not path.isprintable():
        raise AddressError(f"{text!a}: expected an absolute path, as in unix:/run/http2tcp.sock")
    if len(path.encode("utf-8", "surrogateescape")) > MAX_UNIX_PATH:
        raise AddressError(f"{text!a}: a Unix socket's path has at most {MAX_UNIX_PATH} bytes")
    return UnixAddress(path)


def _split(text: str, expected: str) -> tuple[str, int]:
    # The last colon separates the port, so that an IPv6 address may come without brackets.
    host, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"{text!a}: expected {expected}")
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise AddressError(f"{text!a}: expected a port from 1 to 65535 after the last colon")
    return _parse_host(host, text), int(port)


def parse_host(text: str) -> str:
    """Parse a host name or an IP address, without a port."""
    host = _parse_host(text, text)
    if not host:
        raise AddressError("expected a host name or an IP address, not nothing")
    return host


def parse_url_host(text: str) -> str:
    """Parse a URL's host, without its brackets. An IPv6 zone may be written %25eth0, as URLs require, or %eth0."""
    address, escaped, zone = text.partition("%25")
    # RFC 6874, section 2. If nothing follows %25, it may be a zone with the name 25.
    return parse_host(f"{address}%{zone}" if escaped and zone and ":" in address else text)


def without_zone(host: str) -> str:
    """Return a host without its zone. A zone names a link of this machine: peers and certificates do not know it."""
    return host.partition("%")[0]


def is_loopback(host: str) -> bool:
    """Whether a parsed host is this machine: `localhost`, or a loopback address. This looks up no name."""
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _parse_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return _parse_ipv6(host[1:-1], text)
    if ":" in host:
        return _parse_ipv6(host, text)
    # IDNA is slow on long texts. A text that is too long for a host name does not need it: it is refused below.
    name = host.lower() if host.isascii() or len(host) > MAX_HOST else _to_ascii(host, text)
    if name and (len(name) > MAX_HOST or not _NAME.fullmatch(name) or ".." in name):
        raise AddressError(f"{text!a}: expected a host name or an IP address")
    return name


def _parse_ipv6(host: str, text: str) -> str:
    try:
        address = IPv6Address(host)
        # ipaddress accepts any text as a scope, even with line breaks.
        if address.scope_id is not None and not _SCOPE.fullmatch(address.scope_id):
            raise ValueError
        if address.ipv4_mapped is not None and address.scope_id is None:
            # RFC 5952, section 5. Up to Python 3.12, str spells it ::ffff:a00:1.
            return f"::ffff:{address.ipv4_mapped}"
        return str(address)
    except ValueError:
        raise AddressError(f"{text!a}: expected [IPv6]:PORT, as in [2001:db8::1]:22") from None


def _to_ascii(host: str, text: str) -> str:
    import idna  # imported only when needed: few users need it, and its tables are large

    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError:
        raise AddressError(f"{text!a}: expected a host name or an IP address") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the upgrade request goes: the parts of the URL that the user gave to the client."""

    tls: bool
    host: str
    port: int
    path: str = "/"
    query: str = ""
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def is_template(self) -> bool:
        """Whether the path or the query is a URI template (RFC 6570) of connect-tcp's two variables."""
        return "{" in self._whole

    @property
    def needs_target(self) -> bool:
        """Whether the template's path contains the destination, so that no URL can be made without one."""
        found = _EXPRESSION.findall(self._whole)
        return any(operator not in ("?", "&") and "target_" in names for operator, names in found)

    def expand(self, variables: Mapping[str, str]) -> tuple[str, str]:
        """Return path and query, with the variables in place of the expressions. Their values must be encoded."""

        def value(match: re.Match[str]) -> str:
            operator, names = match[1], [name for name in match[2].split(",") if name in variables]
            pairs = [f"{name}={variables[name]}" for name in names]
            match operator if names else "":
                case "?" | "&":
                    return operator + "&".join(pairs)
                case ";":
                    return "".join(";" + pair for pair in pairs)
                case "/":
                    return "".join("/" + variables[name] for name in names)
                case _:
                    return ",".join(variables[name] for name in names)

        path, _, query = _EXPRESSION.sub(value, self._whole).partition("?")
        return path, query

    @property
    def _whole(self) -> str:
        # `parse_endpoint` splits the URL at its first `?`, which may be part of an expression, as in {?target_host}.
        return self.path + ("?" + self.query if self.query else "")

    @property
    def authority(self) -> str:
        """The Host field's value, without the port if it is the scheme's default (RFC 9110, section 7.2).

        It also has no zone (RFC 6874, section 4).
        """
        return self._at(without_zone(self.host))

    def _at(self, host: str) -> str:
        if self.port == (443 if self.tls else 80):
            return f"[{host}]" if ":" in host else host
        return str(TCPAddress(host, self.port))

    def __str__(self) -> str:
        """The URL for a person to read: no credentials, no query."""
        host = self.host.replace("%", "%25")
        return f"http{'s' if self.tls else ''}://{self._at(host)}{self.path.partition('{')[0]}"


def parse_endpoint(text: str) -> Endpoint:
    """Parse `https://host/path`, `http://…`, or `host:port/path`, which means http, as in movsb/http2tcp."""
    if _CONTROL_OR_BLANK.search(text):
        raise AddressError("the endpoint holds a blank or a control character: expected https://HOST[:PORT]/PATH")
    url = text if _SCHEME.match(text) else f"http://{text}"
    # No message shows the text: it may hold a password.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressError("the endpoint is not a URL: expected https://HOST[:PORT]/PATH") from None
    if parts.scheme not in ("http", "https"):
        raise AddressError(f"an endpoint begins with https:// or http://, not {parts.scheme + '://'!a}")
    if parts.fragment:
        raise AddressError("an endpoint has no #fragment: expected https://HOST[:PORT]/PATH")
    if not parts.hostname or port == 0:
        raise AddressError("the endpoint names no host, or port 0: expected https://HOST[:PORT]/PATH")
    endpoint = Endpoint(
        tls=parts.scheme == "https",
        host=parse_url_host(parts.hostname),
        port=port or (443 if parts.scheme == "https" else 80),
        path=normal_path(_quoted(parts.path)) or "/",
        query=_quoted(parts.query),
        username=None if parts.username is None else unquote(parts.username, errors="surrogateescape"),
        password=None if parts.password is None else unquote(parts.password, errors="surrogateescape"),
    )
    _check_template(endpoint)
    return endpoint


def _check_template(endpoint: Endpoint) -> None:
    rest = "".join(endpoint.expand({}))
    names = [name for _, group in _EXPRESSION.findall(endpoint._whole) for name in group.split(",")]
    # Other variables are allowed. They have no value here, so they expand to nothing.
    ours = sorted(name for name in names if name in ("target_host", "target_port"))
    if "{" in rest or "}" in rest or (names and ours != ["target_host", "target_port"]):
        raise AddressError("expected a template with target_host and target_port, as in {?target_host,target_port}")


def normal_path(path: str) -> str:
    """Return the path with needless escapes decoded (RFC 3986, section 6.2.2.2): `%7E` becomes `~`, but `%2F` stays."""
    return _UNRESERVED.sub(lambda match: chr(int(match[1], 16)), path)


def _quoted(part: str) -> str:
    # Encode only what no URL may contain. Escapes in the text stay, and reserved characters keep their meaning.
    return quote(part, safe="/%:@!$&'()*+,;=?~-._{}[]|", errors="surrogateescape")


IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


def parse_network(text: str) -> IPNetwork:
    """Parse an address or a network in CIDR notation, without a port. Raises AddressError."""
    network = find_network(text, text)
    if network is None:
        raise AddressError(f"{text!a}: expected an address or a network, such as 10.0.0.0/8")
    return network


def find_network(host: str, text: str) -> IPNetwork | None:
    """Parse `host` as an address or a network; None if it is a name. An AddressError quotes `text`."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if "/" not in bare and ":" not in bare and not bare.replace(".", "").isdecimal():
        return None
    try:
        network = ip_network(bare, strict=False)
    except ValueError:
        raise AddressError(
            f"{text!a}: {bare!a} is neither an address nor a network, such as 10.0.0.0/8 or [fd00::/8]"
        ) from None
    if "/" in bare and network.network_address != ip_address(bare.partition("/")[0]):
        # 10.1.2.3/8 may have been meant as the one address or as the network; a guess could open too much.
        raise AddressError(f"{text!a}: {bare} has bits behind its mask; the network is {network}")
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise AddressError(f"{text!a}: write IPv4 addresses as such; the IPv6 forms of them are recognised")
    return network
