"""The fields of WebSocket's opening handshake (RFC 6455, section 4). Frames are in another module, `websocket`, since
it loads wsproto, which is slow to import."""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode, b64encode

KEY_FIELD = "Sec-WebSocket-Key"
ACCEPT_FIELD = "Sec-WebSocket-Accept"
VERSION_FIELD = "Sec-WebSocket-Version"
PROTOCOL_FIELD = "Sec-WebSocket-Protocol"
EXTENSIONS_FIELD = "Sec-WebSocket-Extensions"

#: The only version that exists.
VERSION = "13"
#: The subprotocol by which http2tcp's client and server agree that the messages carry capsules. Without it they
#: carry the tunnel's bytes as they are, for peers that know only WebSocket.
CAPSULES = "http2tcp-capsules"

# RFC 6455, section 1.3.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def new_key() -> str:
    """Make the random key of one request."""
    return b64encode(os.urandom(16)).decode("ascii")


def is_key(value: bytes) -> bool:
    """Whether a field's value is the base64 of 16 bytes."""
    try:
        return len(value) == 24 and len(b64decode(value, validate=True)) == 16
    except ValueError:
        return False


def accept_value(key: str) -> str:
    """Compute the Sec-WebSocket-Accept for a key. It proves that its sender speaks WebSocket and has read the key."""
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return b64encode(digest).decode("ascii")
