"""How a connection can end: with a refusal, with a tunnel that ended, or with neither. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from http2tcp.errors import Refusal


class Reason(Enum):
    """Why an open tunnel ended. The value is `reason` in the record and in the metric."""

    CLOSED = "closed"
    CLIENT_BROKE = "client_broke"
    TARGET_BROKE = "target_broke"
    #: No byte moved in either direction for the idle timeout.
    IDLE = "idle"
    #: The tunnel had lasted as long as a session may.
    MAX_SESSION = "max_session"
    #: The session's token expired.
    EXPIRED = "expired"
    #: The session's token was removed from the configuration, or the session has no token and needs one now.
    REVOKED = "revoked"
    #: The server stopped: the grace was over, or a second signal came.
    STOPPED = "stopped"
    #: The client was lost, and did not come back in time.
    CLIENT_LOST = "client_lost"
    #: Bytes were lost while both directions were stuck, so the tunnel could not be resumed.
    GAP = "gap"
    #: The client was away, and the server needed the tunnel's place for another one.
    EVICTED = "evicted"
    #: A bug of ours; a traceback is in the log.
    FAILED = "failed"


class NoSession(Enum):
    """Why a connection got neither a tunnel nor an answer. The value is `reason` in the record and in the metric."""

    #: The client closed the connection before it was answered.
    CLIENT_LEFT = "client_left"
    #: The server evicted the connection, because it had waited long without a token and another one needed its place.
    PUSHED_OUT = "pushed_out"
    #: The TLS handshake failed; the record's detail has OpenSSL's reason.
    NO_TLS = "no_tls"
    #: The PROXY header or the TLS handshake was not complete in time.
    TIMED_OUT = "timed_out"
    #: The server stopped: the grace was over, or a second signal came.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Refused:
    """The connection got no tunnel: its client gets this refusal as the answer."""

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
    """The connection resumed a tunnel, or tried to. The tunnel's session has its own outcome and records."""

    #: One of `counters.RESUMES`.
    result: str


Outcome = Refused | Abandoned | Ended | Resumed
