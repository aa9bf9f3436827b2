"""The transports (the protocols that can follow the 101), and the header fields that client and server agree on."""

from __future__ import annotations

from enum import Enum

#: Our name in Proxy-Status (RFC 9209, section 2). An answer without it does not come from an http2tcp server.
PROXY_NAME = "http2tcp"

#: The field for the token if the front end uses `Authorization` for its own login.
TOKEN_FIELD = "Http2tcp-Token"  # noqa: S105

#: An interval in seconds. The sender of this field promises to send something at least once in each interval. Only a
#: peer that has promised this is given up when it stays silent.
KEEPALIVE_FIELD = "Http2tcp-Keepalive"
#: "?1": the sender says in a capsule when everything has arrived, and closes only after the other side has said so too.
CONFIRM_FIELD = "Http2tcp-Confirm"
# The longest interval in seconds: a day. A longer one is as good as none, so it is ignored.
MAX_KEEPALIVE = 86400.0
#: The shortest interval in seconds. A peer is given up after three intervals of silence, and a busy or distant peer may
#: need 3 s. So shorter intervals would only cost traffic.
MIN_KEEPALIVE = 1.0

#: How long the server's dial took, in milliseconds: https://www.w3.org/TR/server-timing/.
TIMING_FIELD = "Server-Timing"
DIAL_METRIC = "dial"

#: `?1`: the sender can resume tunnels. In an answer: the first capsule is HELLO, CHALLENGE or RESET.
RESUME_FIELD = "Http2tcp-Resume"

#: The id of the session in the server's log. In a request: the session to resume.
SESSION_FIELD = "Http2tcp-Session"


class Transport(Enum):
    """A transport. Its value is its token in the `Upgrade` field (RFC 9110, section 7.8)."""

    #: Raw bytes.
    TCP = "tcp"
    #: Raw bytes, as in movsb/http2tcp, the original.
    HTTP2TCP = "http2tcp/1.0"
    #: Capsules: draft-ietf-httpbis-connect-tcp.
    CONNECT_TCP = "connect-tcp"
    #: Binary WebSocket messages (RFC 6455). The handshake decides what they carry: capsules or raw bytes.
    WEBSOCKET = "websocket"

    @classmethod
    def named(cls, token: str) -> Transport | None:
        """Return the transport of an Upgrade token, in upper or lower case; None if the token is unknown."""
        return _BY_TOKEN.get(token.lower())

    @property
    def raw(self) -> bool:
        """Whether the tunnel's bytes travel without any framing."""
        return self in (Transport.TCP, Transport.HTTP2TCP)


_BY_TOKEN = {transport.value: transport for transport in Transport}
# The token that the draft uses from revision 12 on, until it becomes an RFC.
_BY_TOKEN["connect-tcp-12"] = Transport.CONNECT_TCP

#: Every token that a front end must let through.
TOKENS = tuple(sorted(_BY_TOKEN))


def parse_keepalive(value: str) -> float | None:
    """Parse the seconds of a keepalive field. Return at least MIN_KEEPALIVE, or None if the value is not sensible."""
    digits = value.replace(".", "", 1)
    if not (value.isascii() and digits.isdigit()) or len(value) > 8:
        return None
    seconds = float(value)
    return max(seconds, MIN_KEEPALIVE) if 0 < seconds <= MAX_KEEPALIVE else None
