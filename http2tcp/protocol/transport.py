"""What travels after the 101, named by the token of the `Upgrade` field (RFC 9110, section 7.8)."""

from __future__ import annotations

from enum import Enum

#: Who we are in Proxy-Status (RFC 9209, section 2): an answer without it was not made by http2tcp.
PROXY_NAME = "http2tcp"

#: Where the token travels when the front end's own authentication owns `Authorization`.
TOKEN_FIELD = "Http2tcp-Token"  # noqa: S105


class Transport(Enum):
    """A transport; its value is its token on the wire."""

    #: Raw bytes.
    TCP = "tcp"
    #: Raw bytes, as movsb/http2tcp speaks it.
    HTTP2TCP = "http2tcp/1.0"

    @classmethod
    def named(cls, token: str) -> Transport | None:
        """The transport of an Upgrade token in any case, or None where it is not known."""
        return _BY_TOKEN.get(token.lower())


_BY_TOKEN = {transport.value: transport for transport in Transport}
