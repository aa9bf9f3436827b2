"""How a connection can end: with a refusal, with a tunnel that ended, or with neither. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from http2tcp.errors import Refusal


class Reason(Enum):
    """Why an open tunnel ended; `reason` of its record and of its metric."""

    CLOSED = "closed"
    CLIENT_BROKE = "client_broke"
    TARGET_BROKE = "target_broke"
    #: No byte moved in either direction for the idle timeout.
    IDLE = "idle"
    #: It had lasted as long as a session may.
    MAX_SESSION = "max_session"
    #: Its token expired.
    EXPIRED = "expired"
    #: Its token was removed from the configuration.
    REVOKED = "revoked"
    #: The server stopped: the grace was over, or a second signal came.
    STOPPED = "stopped"
    #: Its client was lost and did not come back in time.
    CLIENT_LOST = "client_lost"
    #: Bytes were lost while both directions were stuck, so it could not be resumed.
    GAP = "gap"
    #: Its client was away, and its place was needed.
    EVICTED = "evicted"
    #: A bug of ours; a traceback is in the log.
    FAILED = "failed"


class NoSession(Enum):
    """Why a connection got neither a tunnel nor an answer; `reason` of its record and of its metric."""

    #: The client closed the connection before it was answered.
    CLIENT_LEFT = "client_left"
    #: It was evicted: others needed its place, and it had waited longest without a token.
    PUSHED_OUT = "pushed_out"
    #: The TLS handshake failed; the record's detail has OpenSSL's reason.
    NO_TLS = "no_tls"
    #: The PROXY header or the TLS handshake was not complete in time.
    TIMED_OUT = "timed_out"
    #: The server stopped, as in `Reason`.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Refused:
    """The client gets this refusal as its answer."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The connection got neither a tunnel nor an answer."""

    reason: NoSession
    #: More about the reason, for the record; may be empty.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The tunnel was open, and ended."""

    reason: Reason
    #: More about the reason, for the record; may be empty.
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The connection resumed a tunnel, or tried to; the tunnel's session has records of its own."""

    #: A word of `counters.RESUMES`.
    result: str


Outcome = Refused | Abandoned | Ended | Resumed
