"""What travels after the 101, named by the token of the `Upgrade` field (RFC 9110, section 7.8)."""

from __future__ import annotations

from enum import Enum

#: Who we are in Proxy-Status (RFC 9209, section 2): an answer without it was not made by http2tcp.
PROXY_NAME = "http2tcp"

#: Where the token travels when the front end's own authentication owns `Authorization`.
TOKEN_FIELD = "Http2tcp-Token"  # noqa: S105

#: How often, in seconds, the sender of this field breaks its own silence. Only who sent it is given up.
KEEPALIVE_FIELD = "Http2tcp-Keepalive"
#: "?1" from who says in a capsule that all has arrived, and waits for the other to say so before it closes.
CONFIRM_FIELD = "Http2tcp-Confirm"
# A day. More is as good as none.
MAX_KEEPALIVE = 86400.0
#: A shorter interval only costs; and three times that is what a peer that is busy, or far away, needs at least.
MIN_KEEPALIVE = 1.0

#: How long the server's dial took, in milliseconds: https://www.w3.org/TR/server-timing/.
TIMING_FIELD = "Server-Timing"
DIAL_METRIC = "dial"

#: The id under which the server's log has the connection.
SESSION_FIELD = "Http2tcp-Session"


class Transport(Enum):
    """A transport; its value is its token on the wire."""

    #: Raw bytes.
    TCP = "tcp"
    #: Raw bytes, as movsb/http2tcp speaks it.
    HTTP2TCP = "http2tcp/1.0"
    #: Capsules: draft-ietf-httpbis-connect-tcp.
    CONNECT_TCP = "connect-tcp"
    #: Binary messages, RFC 6455. What they carry is agreed in the handshake: capsules, or raw bytes.
    WEBSOCKET = "websocket"

    @classmethod
    def named(cls, token: str) -> Transport | None:
        """The transport of an Upgrade token in any case, or None where it is not known."""
        return _BY_TOKEN.get(token.lower())

    @property
    def raw(self) -> bool:
        """Whether the tunnel's bytes are the connection's."""
        return self in (Transport.TCP, Transport.HTTP2TCP)


_BY_TOKEN = {transport.value: transport for transport in Transport}
# The token of the draft's revision 12 and later, until it is an RFC.
_BY_TOKEN["connect-tcp-12"] = Transport.CONNECT_TCP

#: Every token that a front end has to pass.
TOKENS = tuple(sorted(_BY_TOKEN))


def parse_keepalive(value: str) -> float | None:
    """The seconds of a Keepalive field, MIN_KEEPALIVE at least; None for what is no sensible figure."""
    digits = value.replace(".", "", 1)
    if not (value.isascii() and digits.isdigit()) or len(value) > 8:
        return None
    seconds = float(value)
    return max(seconds, MIN_KEEPALIVE) if 0 < seconds <= MAX_KEEPALIVE else None
