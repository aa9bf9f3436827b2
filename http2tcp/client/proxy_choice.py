"""Parses a proxy's URL, and finds the proxy that the environment names for an endpoint. No I/O.

The variables are the same as curl's: HTTPS_PROXY for https endpoints, HTTP_PROXY for http ones, ALL_PROXY if the one
for the scheme is not set, and NO_PROXY for the endpoints that need no proxy. Lower case beats upper case, and an empty
variable counts as unset.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from http2tcp.address import Endpoint, TCPAddress, is_loopback, parse_url_host
from http2tcp.errors import AddressError

_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_CONTROL_OR_BLANK = re.compile(r"[\x00-\x20\x7f]")
_EXPECTED = "expected a proxy as in http://[USER:PASSWORD@]HOST:PORT"
# RFC 1929, section 2: the user name and the password each have one octet for their length.
_MAX_SOCKS_CREDENTIAL = 255


class Proxy(NamedTuple):
    """A proxy; neither `str` nor `repr` shows its credentials."""

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = None
    #: Where the proxy's URL came from: the name of an option, an environment variable or a parameter.
    source: str = ""

    @property
    def tls(self) -> bool:
        """Whether the connection to the proxy itself uses TLS."""
        return self.scheme == "https"

    @property
    def socks(self) -> bool:
        return self.scheme.startswith("socks5")

    @property
    def resolves(self) -> bool:
        """Whether the proxy looks the endpoint's name up, not this machine."""
        return self.scheme != "socks5"

    @property
    def credentials(self) -> tuple[bytes, bytes] | None:
        """The user and the password, percent-decoded; either may be empty."""
        if self.username is None and self.password is None:
            return None
        return _bytes(self.username), _bytes(self.password)

    def __str__(self) -> str:
        return f"{self.scheme}://{TCPAddress(self.host, self.port)}"

    def __repr__(self) -> str:
        return f"<Proxy {self} from {self.source}>"


def _bytes(text: str | None) -> bytes:
    return (text or "").encode("utf-8", "surrogateescape")


def parse_proxy(text: str, source: str) -> Proxy:
    """Parse `http://`, `https://`, `socks5://` or `socks5h://[USER:PASSWORD@]HOST[:PORT]`. Without a scheme: http.

    Raises AddressError. Its message never quotes the text, which may hold a password.
    """
    if _CONTROL_OR_BLANK.search(text):
        raise AddressError(f"the proxy's URL holds a blank or a control character: {_EXPECTED}")
    try:
        parts = urlsplit(text if _SCHEME.match(text) else f"http://{text}")
        port = parts.port
    except ValueError:
        raise AddressError(f"this is not a URL: {_EXPECTED}") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise AddressError(
            f"a proxy's URL begins with http://, https://, socks5:// or socks5h://, not {parts.scheme + '://'!a}"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise AddressError(f"{_EXPECTED}, where a / ? or # of the password is written as %2F, %3F or %23")
    if not parts.hostname or port == 0:
        raise AddressError(f"the URL names no host, or port 0: {_EXPECTED}")
    proxy = Proxy(
        parts.scheme,
        parse_url_host(parts.hostname),
        port or _DEFAULT_PORTS[parts.scheme],
        None if parts.username is None else unquote(parts.username, errors="surrogateescape"),
        None if parts.password is None else unquote(parts.password, errors="surrogateescape"),
        source,
    )
    if proxy.credentials is not None:
        _check_credentials(proxy, *proxy.credentials)
    return proxy


def _check_credentials(proxy: Proxy, username: bytes, password: bytes) -> None:
    if proxy.socks:
        if not username or max(len(username), len(password)) > _MAX_SOCKS_CREDENTIAL:
            raise AddressError("SOCKS5 wants a user and a password of at most 255 bytes each")
    elif b":" in username:
        # RFC 7617, section 2: the first colon ends the user name.
        raise AddressError("the user of an http proxy cannot hold a colon")


def choose(endpoint: Endpoint, environ: Mapping[str, str]) -> tuple[Proxy | None, str]:
    """Return the proxy that `environ` names for an endpoint, and its variable's name; or None, and why there is none.

    Raises AddressError if the variable's value is not a proxy's URL.
    """
    # On Windows, os.environ ignores case. A dict distinguishes http_proxy from HTTP_PROXY.
    environ = dict(environ)
    if is_loopback(endpoint.host):
        return None, f"{endpoint.host} is this machine"
    name = next((name for name in _names(endpoint.tls, environ) if environ.get(name)), None)
    if name is None:
        return None, "no variable names one"
    exceptions = "no_proxy" if environ.get("no_proxy") else "NO_PROXY"
    if is_exception(environ.get(exceptions, ""), endpoint.host, endpoint.port):
        return None, f"{exceptions} has {endpoint.host}"
    try:
        return parse_proxy(environ[name], name), name
    except AddressError as error:
        raise AddressError(f"{name}: {error}; --no-proxy goes without") from None


def _names(tls: bool, environ: Mapping[str, str]) -> list[str]:
    names = ["https_proxy", "HTTPS_PROXY"] if tls else ["http_proxy", "HTTP_PROXY"]
    # In a CGI program, HTTP_PROXY holds the `Proxy` header field of a stranger's request: https://httpoxy.org/.
    if "REQUEST_METHOD" in environ and not tls:
        names.remove("HTTP_PROXY")
    return [*names, "all_proxy", "ALL_PROXY"]


def is_exception(no_proxy: str, host: str, port: int) -> bool:
    """Return whether NO_PROXY names this endpoint, by curl's rules.

    `*` matches every endpoint. A name, with or without a leading dot, matches that host and all names below it. An
    address or a network (CIDR) matches its addresses. An entry that ends with a port matches that port only.
    """
    return any(_has(entry, host.rstrip("."), port) for entry in re.split(r"[\s,]+", no_proxy.strip()))


def _has(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    name, only_port = entry, ""
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        only_port = rest.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, only_port = entry.partition(":")
    if only_port and only_port != str(port):
        return False
    address = _address(host)
    if address is not None:
        try:
            return address in ip_network(name, strict=False)
        except ValueError:
            return False
    name = name.lower().rstrip(".").removeprefix("*").removeprefix(".")
    return bool(name) and (host == name or host.endswith("." + name))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        # A scope such as %eth0 names a network interface; it does not belong to the address.
        return ip_address(host.partition("%")[0])
    except ValueError:
        return None
