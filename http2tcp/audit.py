"""One record when a session opens and one when it ends, or one when it is refused.

A record is a line of `key=value` pairs in a fixed order. It holds no token, no request line and no text
that a client made up: addresses are parsed before they get here.
"""

from __future__ import annotations

import logging
import os
import string
import time
from enum import Enum
from urllib.parse import quote

from http2tcp.address import Address
from http2tcp.errors import Refusal
from http2tcp.net.relay import Traffic

logger = logging.getLogger(__name__)


class Reason(Enum):
    """Why a session ended."""

    CLOSED = "closed"
    CLIENT_BROKE = "client_broke"
    TARGET_BROKE = "target_broke"
    #: Neither side said anything for the idle timeout.
    IDLE = "idle"
    #: It had lasted as long as a session may.
    MAX_SESSION = "max_session"
    #: The token's time was over.
    EXPIRED = "expired"
    #: The token was taken away.
    REVOKED = "revoked"
    #: The server was told to stop and the grace was over, or it was told twice.
    STOPPED = "stopped"
    #: A bug of ours; a traceback is in the log.
    FAILED = "failed"


class Session:
    """The record of one connection from its first byte to its last."""

    def __init__(self, client: str) -> None:
        self.id = os.urandom(4).hex()
        self.traffic = Traffic()
        self._client = client
        self._where = ""
        self._opened_at: float | None = None

    def asked(self, target: Address) -> None:
        """The client asks for this target; later records name it."""
        self._where = f" target={_word(target)}"

    def opened(self, dialled: Address, carrier: str) -> None:
        """The target has accepted; `carrier` is the transport, or `connect`."""
        self._opened_at = time.monotonic()
        self._where += f" dialled={_word(dialled)} transport={carrier}"
        logger.info("opened session=%s client=%s%s", self.id, self._client, self._where)

    def refused(self, refusal: Refusal) -> None:
        """The client got this refusal."""
        logger.info(
            "refused session=%s client=%s%s status=%d error=%s",
            *(self.id, self._client, self._where, refusal.status, refusal.proxy_error),
        )

    def ended(self, reason: Reason, words: str = "") -> None:
        """It is over, for this reason. Nothing is written where it never opened."""
        if self._opened_at is None:
            return
        logger.info(
            "ended session=%s client=%s%s bytes_up=%d bytes_down=%d seconds=%.3f reason=%s%s",
            *(self.id, self._client, self._where, self.traffic.left_to_right, self.traffic.right_to_left),
            *(time.monotonic() - self._opened_at, reason.value, f" detail={words!a}" if words else ""),
        )


def _word(address: Address) -> str:
    """An address as one word: a Unix socket's path may hold blanks, and they end a value."""
    return quote(str(address), safe=string.punctuation)
