"""Every error that this program reports, each with its sentence, its status and its exit code.

`str(error)` is one sentence for a person. Two branches:

- `Refusal` is what the server tells a client: an HTTP status, a Proxy-Status error type (RFC 9209,
  section 2.3) and a line of text.
- `TunnelError` is what the client tells its user: the hop that failed, and an exit code for scripts.

Exit codes: 0 is success, 1 a bug in http2tcp, 2 wrong usage, and each hop has a code of its own, from 64 on.
docs/exit-codes.md lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import ClassVar


def os_reason(error: OSError) -> str:
    """Return the system's words for an error, in lower case, so that they fit into one of our sentences."""
    return (error.strerror or "failed").lower()


class Http2tcpError(Exception):
    """The base class of all errors here. `exit_code` is the exit status of a command that ends with this error."""

    exit_code: ClassVar[int] = 1


class AddressError(Http2tcpError):
    """An address or endpoint that cannot be understood."""

    exit_code = 2


class SettingsError(Http2tcpError):
    """Settings that are missing, wrong or at odds with each other."""

    exit_code = 2


class ConfigError(SettingsError):
    """A configuration file with mistakes. `mistakes` has a sentence for each of them."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        more = f" (and {len(mistakes) - 1} more, which -s --check lists)" if len(mistakes) > 1 else ""
        super().__init__(mistakes[0] + more)
        self.mistakes = mistakes


class ListenError(Http2tcpError):
    """It is not possible to listen on a local address."""

    exit_code = 73


class TooFewDescriptors(Http2tcpError):
    """The process may open too few files (RLIMIT_NOFILE) to be of any use."""

    exit_code = 73


class DialFailure(Enum):
    """Why a connection to a target could not be made. Each `net.dial.DialError` carries one of these."""

    NAME = "name not found"
    NAME_TEMPORARY = "name look-up failed"
    PROHIBITED = "address not allowed"
    REFUSED = "connection refused"
    UNROUTABLE = "no route"
    TIMEOUT = "timed out"
    EXHAUSTED = "out of descriptors"
    OTHER = "failed"


# --- what the server answers ------------------------------------------------------------------


class Refusal(Http2tcpError):
    """The server will not open this tunnel. `str(refusal)` is the body; it never holds a secret.

    Until its token is accepted, a client only gets the fixed `text` of the class, never a text about its own request.
    """

    status: ClassVar[int]
    phrase: ClassVar[str]
    text: ClassVar[str]
    proxy_error: str = "http_request_error"
    #: Further header fields of the answer.
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, text: str | None = None, *, proxy_error: str | None = None) -> None:
        super().__init__(text or self.text)
        if proxy_error is not None:
            self.proxy_error = proxy_error


class BadRequest(Refusal):
    status = 400
    phrase = "Bad Request"
    text = "this is not a request that http2tcp takes"


class ProxyHeaderRefused(BadRequest):
    """The connection does not begin with the header that --proxy-protocol requires. It is closed without an answer."""

    text = "the connection does not begin with a PROXY header"
    proxy_error = "proxy_configuration_error"


class TLSRequired(BadRequest):
    """A client sent plain HTTP to a listener that speaks TLS."""

    text = "the http2tcp server speaks TLS here, and this came in plain http: use https://"


class Unauthorized(Refusal):
    status = 401
    phrase = "Unauthorized"
    text = "a token is needed"
    proxy_error = "http_request_denied"
    headers = (("WWW-Authenticate", 'Bearer realm="http2tcp"'),)


class TokenExpired(Unauthorized):
    """The token has expired. The client gets the same answer as for any wrong token; `name` is for the server's log."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.name = name


class ProxyAuthenticationRequired(Refusal):
    """A missing or wrong token in a CONNECT request, for which HTTP has 407 in place of 401."""

    status = 407
    phrase = "Proxy Authentication Required"
    text = Unauthorized.text
    proxy_error = Unauthorized.proxy_error
    # Basic, with the token as the password: nc, corkscrew and proxytunnel know this scheme.
    headers = (("Proxy-Authenticate", 'Basic realm="http2tcp"'),)


class Forbidden(Refusal):
    """The token may not reach this destination. `rule` is the rule that forbids it, which only the operator may see."""

    status = 403
    phrase = "Forbidden"
    # The client recognises this text, so both sides take it from here.
    text = "this destination is not allowed"
    proxy_error = "http_request_denied"

    def __init__(self, text: str | None = None, *, proxy_error: str | None = None, rule: str = "") -> None:
        super().__init__(text, proxy_error=proxy_error)
        self.rule = rule


class NotFound(Refusal):
    status = 404
    phrase = "Not Found"
    text = "nothing is here"


class HeadTimeout(Refusal):
    status = 408
    phrase = "Request Timeout"
    text = "the request did not arrive in time"


class UpgradeRequired(Refusal):
    status = 426
    phrase = "Upgrade Required"
    text = "the request asks for no upgrade that is known here"


class HeadTooLarge(Refusal):
    status = 431
    phrase = "Request Header Fields Too Large"
    text = "the request head is too large"


class InternalError(Refusal):
    status = 500
    phrase = "Internal Server Error"
    text = "the http2tcp server failed; its log says why"
    proxy_error = "proxy_internal_error"


class TooManyRequests(Refusal):
    """This client address, or this token, has reached the limit for a single address or token."""

    status = 429
    phrase = "Too Many Requests"
    text = "too many wrong tokens came from this address; wait a minute"
    proxy_error = "connection_limit_reached"
    headers = (("Retry-After", "60"),)


class LimitReached(Refusal):
    status = 503
    phrase = "Service Unavailable"
    text = "the http2tcp server is at its limit"
    proxy_error = "connection_limit_reached"
    headers = (("Retry-After", "5"),)


class TargetUnreachable(Refusal):
    status = 502
    phrase = "Bad Gateway"
    text = "the target cannot be reached"
    proxy_error = "destination_unavailable"


class TargetTimeout(Refusal):
    status = 504
    phrase = "Gateway Timeout"
    text = "the target did not answer in time"
    proxy_error = "connection_timeout"


# --- what the client reports ------------------------------------------------------------------


class TunnelError(Http2tcpError):
    """The tunnel could not be opened, or it broke. Each subclass stands for the hop that failed, which `hop` names."""

    hop: ClassVar[str] = "tunnel"
    #: Whether another attempt a moment later would fail as well, whatever the network does.
    lasting = False


class ResolveFailed(TunnelError):
    """The endpoint's name could not be resolved."""

    hop = "name"
    exit_code = 64


class ConnectFailed(TunnelError):
    """No TCP connection to the endpoint."""

    hop = "TCP"
    exit_code = 65


class TLSFailed(TunnelError):
    """The TLS handshake with the endpoint failed, or its certificate or public key is not the expected one."""

    hop = "TLS"
    exit_code = 66


class FrontEndFailed(TunnelError):
    """Something other than http2tcp answered, or the front end did not pass the upgrade on.

    `words` is the sentence, and `hint` says how to set up the front end.
    """

    hop = "front end"
    exit_code = 67

    def __init__(self, words: str, hint: str = "") -> None:
        joined = " " if words.endswith("?") else "; "
        super().__init__(f"{words}{joined}{hint}" if hint else words)
        self.words = words
        self.hint = hint


class UpgradeNotPassed(FrontEndFailed):
    """The upgrade was not understood or not passed on: another transport may get through.

    `seen` says what happened to the request, as in "was answered 404 by nginx". `passing`: the failure may
    be temporary. A front end answers like this while the server behind it restarts, so the same request may succeed a
    moment later.
    """

    def __init__(self, words: str, hint: str = "", *, seen: str = "did not get through", passing: bool = False) -> None:
        super().__init__(words, hint)
        self.seen = seen
        self.passing = passing


class CredentialsRefused(TunnelError):
    """The http2tcp server does not accept the token."""

    hop = "http2tcp server"
    exit_code = 68


class OriginalServer(CredentialsRefused):
    """A 401 like that of the original http2tcp (movsb/http2tcp), which only accepts a token in its own scheme."""

    #: What happened to the request, as in `UpgradeNotPassed`.
    seen = "was answered 401, as by a server of the original"


class DestinationForbidden(TunnelError):
    """The http2tcp server does not let this token reach the destination."""

    hop = "http2tcp server"
    exit_code = 69


class TargetFailed(TunnelError):
    """The http2tcp server cannot reach the target. `proxy_error` is the answer's Proxy-Status error type, or empty."""

    hop = "target"
    exit_code = 70

    def __init__(self, words: str, proxy_error: str = "") -> None:
        super().__init__(words)
        self.proxy_error = proxy_error


class TunnelCut(TunnelError):
    """The tunnel was open and ended before both sides were done."""

    exit_code = 71


class InputSilent(TunnelCut):
    """The target ended its side, and then our own input stayed open and silent for too long."""


class StdioFailed(TunnelError):
    """Standard input cannot be read, or standard output cannot be written: bytes were lost on our own side."""

    hop = "stdio"
    exit_code = 72


class ProxyFailed(TunnelError):
    """The proxy on the way to the endpoint cannot be reached, refuses us, or does not speak the expected protocol."""

    hop = "proxy"
    exit_code = 75


class ServerRefused(TunnelError):
    """The http2tcp server refuses for a reason of its own: a limit, a path, a failure."""

    hop = "http2tcp server"
    exit_code = 74
