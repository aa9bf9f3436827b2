"""The audit log: a record when a tunnel opens and another when it ends, or one record of why no tunnel opened.

A record is a `Record`: keys and values for JSON, and a line of `key=value` pairs in the same order. It contains no
token, no request line and no text that a client chose: addresses are parsed before they get here, and the operator
chose the names of tokens. docs/log.md is the reference.

A connection that ends before it has sent a request is logged with -v only, since scanners make thousands of them.
`Refusals` decides which refusals of unauthenticated clients are logged; with -v, all of them are logged.
"""

from __future__ import annotations

import logging
import os
import re
import string
import time
from collections import Counter, OrderedDict
from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

from http2tcp.address import Address, TCPAddress
from http2tcp.errors import Forbidden, ProxyHeaderRefused, Refusal
from http2tcp.net.relay import Traffic
from http2tcp.protocol.forwarded import unmapped
from http2tcp.server.limits import group
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Outcome, Reason, Refused

if TYPE_CHECKING:
    from http2tcp.address import IPAddress

logger = logging.getLogger("http2tcp.audit")

# The size of a session id's random part. With 48 bits, the chance that any two of a million sessions share an id is one
# in 560.
_ID_BYTES = 6
# How many wrong tokens from one address are logged in a minute. fail2ban and similar programs count these lines.
_FAILURES = 10
# How many refusals of one kind are logged in a minute. If all kinds reach this limit all day, the log grows by 60 MB.
_REFUSALS = 20
# How many addresses with wrong tokens are remembered. Beyond that the oldest address is forgotten, and its wrong tokens
# are logged again.
_ADDRESSES = 10_000
# The keys whose values are sentences. A line of text has quotes around these values.
_PROSE = ("rule", "detail")
_WORD = re.compile(r"[!-~]+")


class Event(Enum):
    """A kind of record."""

    OPENED = "opened"
    ENDED = "ended"
    #: The client of a resumable tunnel was lost, and the server waits for it to come back.
    DETACHED = "detached"
    #: The client of a resumable tunnel came back.
    RESUMED = "resumed"
    #: A connection could not resume the tunnel that it asked for.
    NOT_RESUMED = "not_resumed"
    REFUSED = "refused"
    #: A request was refused because its token is unknown or has expired.
    AUTHENTICATION_FAILED = "authentication_failed"
    #: The connection ended with neither a tunnel nor an answer.
    ABANDONED = "abandoned"


class Record(dict[str, object]):
    """A record's keys and values, in order. `str(record)` is its line of text."""

    __slots__ = ()

    def __str__(self) -> str:
        event, *pairs = self.items()
        words = [str(event[1]).replace("_", " ")]
        for key, value in pairs:
            if isinstance(value, float):
                words.append(f"{key}={value:.3f}")
            else:
                words.append(f"{key}={ascii(value) if key in _PROSE else _word(str(value))}")
        return " ".join(words)


class Refusals:
    """Decides which refusals of unauthenticated clients are logged. The others are summed up once a minute.

    In a minute, ten wrong tokens are logged for each address, and twenty refusals of each other kind for all addresses
    together.
    """

    __slots__ = ("_failures", "_kinds", "_unheard")

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._kinds: Counter[str] = Counter()
        self._unheard: Counter[str] = Counter()

    def failed(self, client: str) -> bool:
        """Count a wrong token from the address `client` (or `unix`), and return whether to log it."""
        key = client if client == "unix" else group(unmapped(ip_address(client)))
        count = self._failures.pop(key, 0) + 1
        self._failures[key] = count
        if len(self._failures) > _ADDRESSES:
            self._failures.popitem(last=False)
        if count > _FAILURES:
            self._unheard[Event.AUTHENTICATION_FAILED.value] += 1
        return count <= _FAILURES

    def refused(self, refusal: Refusal) -> bool:
        """Count any other refusal, and return whether to log it."""
        return self.is_line(refusal.phrase.lower().replace(" ", "_"))

    def is_line(self, kind: str) -> bool:
        """Count one event of this kind, and return whether to log it."""
        self._kinds[kind] += 1
        if self._kinds[kind] > _REFUSALS:
            self._unheard[kind] += 1
        return self._kinds[kind] <= _REFUSALS

    def sum_up(self) -> None:
        """At the end of a minute, log one line for all refusals that were not logged, and start counting anew."""
        if self._unheard:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self._unheard.most_common())
            logger.info("%d more refused: %s", self._unheard.total(), kinds)
        for counts in (self._failures, self._kinds, self._unheard):
            counts.clear()


class SessionRecords:
    """Writes the records of one connection, and keeps the facts that they contain."""

    __slots__ = (
        *("id", "traffic", "_cause", "_client", "_dialled", "_has_token", "_is_stranger", "_opened_at"),
        *("_away", "_port", "_refusals", "_resumes", "_target", "_token", "_transport", "_via"),
    )

    def __init__(self, peer: TCPAddress | None, refusals: Refusals | None = None, node: str = "") -> None:
        """`peer` is the address that connected; None for a peer on a Unix socket.

        `refusals` is shared by all connections of the server. None: this connection counts its refusals by itself.
        """
        self._refusals = Refusals() if refusals is None else refusals
        #: The session's id, in the logs of the server and of the client.
        self.id = f"{node}-{os.urandom(_ID_BYTES).hex()}" if node else os.urandom(_ID_BYTES).hex()
        self._resumes = 0
        self._away = 0.0
        self.traffic = Traffic()
        self._client = "unix" if peer is None else peer.host
        self._port = None if peer is None else peer.port
        self._via: str | None = None
        self._token = self._cause = self._target = self._dialled = self._transport = ""
        #: True until the client's token is accepted, or until a server that needs no token lets the client in.
        self._is_stranger = True
        #: Whether a token was accepted.
        self._has_token = False
        self._opened_at = 0.0

    def client_is(self, address: IPAddress, port: int | None = None) -> None:
        """Take the client's address from a proxy. The proxy's own address becomes `via` of later records."""
        if self._via is None:
            self._via = self._client if self._port is None else str(TCPAddress(self._client, self._port))
        self._client, self._port = str(address), port

    def authenticated(self, token_name: str | None = "") -> None:
        """Note that the token of this name was accepted. None: the server needs no token."""
        self._is_stranger = False
        self._has_token = token_name is not None
        self._token = token_name or ""

    def failed_authentication(self, token_name: str | None = None) -> None:
        """Note that the token of this name has expired; None: the client's token is unknown.

        The next record is that of the refusal.
        """
        self._cause = "unknown" if token_name is None else "expired"
        self._token = token_name or ""

    def asked(self, target: Address) -> None:
        """Note the target that the client asks for. Later records name it."""
        self._target = str(target)

    def opened(self, dialled: Address, carrier: str, dial_time: float) -> None:
        """Write the first record: the target accepted the connection after `dial_time` seconds.

        `carrier` is the transport that carries the tunnel, or `connect`.
        """
        self._opened_at = time.monotonic()
        self._dialled = str(dialled)
        self._transport = carrier
        record = self._record(Event.OPENED)
        record["dial_seconds"] = round(dial_time, 3)
        self._log(logging.INFO, record)

    @property
    def client(self) -> str:
        """The newest address of the client; `unix` if it has none."""
        return self._client

    def detached(self, why: str) -> None:
        """Record that the client was lost, and why. The session waits for the client to come back."""
        record = self._record(Event.DETACHED)
        record["detail"] = why
        self._log(logging.INFO, record)

    def resumed(self, attempt: SessionRecords, transport: str, away: float, replayed: int) -> None:
        """Record that the client came back over the connection that `attempt` belongs to.

        The client was away for `away` seconds, and `replayed` bytes are sent to it again.
        """
        self._client, self._port, self._via = attempt._client, attempt._port, attempt._via
        self._transport = transport
        self._resumes += 1
        self._away += away
        record = self._record(Event.RESUMED)
        record["gap_seconds"] = round(away, 3)
        record["replayed_down"] = replayed
        self._log(logging.INFO, record)

    def not_resumed(self, result: str) -> None:
        """Record that this connection did not resume the session that it asked for."""
        record = self._record(Event.NOT_RESUMED)
        record["reason"] = result
        is_heard = self._has_token or self._refusals.is_line(Event.NOT_RESUMED.value)
        self._log(logging.INFO if is_heard else logging.DEBUG, record)

    def over(self, outcome: Outcome) -> None:
        """Write the last record, which says how the connection ended."""
        match outcome:
            case Refused(refusal):
                self._refused(refusal)
            case Abandoned(reason, detail):
                self._ended(self._record(Event.ABANDONED), reason, detail)
            case Ended(reason, detail):
                record = self._record(Event.ENDED)
                record["bytes_up"] = self.traffic.bytes_up
                record["bytes_down"] = self.traffic.bytes_down
                record["seconds"] = round(time.monotonic() - self._opened_at, 3)
                if self._resumes:
                    record["resumes"] = self._resumes
                    record["detached_seconds"] = round(self._away, 3)
                self._ended(record, reason, detail)

    def _refused(self, refusal: Refusal) -> None:
        record = self._record(Event.AUTHENTICATION_FAILED if self._cause else Event.REFUSED)
        record["status"] = refusal.status
        record["error"] = refusal.proxy_error
        if self._cause:
            record["cause"] = self._cause
        if isinstance(refusal, Forbidden) and refusal.rule:
            record["rule"] = refusal.rule
        if isinstance(refusal, ProxyHeaderRefused):
            # Log the detail, since the operator must change a setting. It quotes nothing that the peer sent.
            record["detail"] = str(refusal)
        self._log(logging.INFO if self._is_heard(refusal) else logging.DEBUG, record)

    def _ended(self, record: Record, reason: Reason | NoSession, detail: str) -> None:
        record["reason"] = reason.value
        if detail:
            record["detail"] = detail
        self._log(logging.DEBUG if self._is_stranger else logging.INFO, record)

    def _is_heard(self, refusal: Refusal) -> bool:
        """Count the refusal, and return whether it is logged without -v."""
        if self._has_token:
            return True
        if self._cause:
            return self._refusals.failed(self._client)
        # Do not log a 408 (no complete request in time): scanners often send nothing, or no complete request.
        return refusal.status != 408 and self._refusals.refused(refusal)

    def _record(self, event: Event) -> Record:
        record = Record(event=event.value, session=self.id, client=self._client)
        if self._port is not None:
            record["port"] = self._port
        if self._via is not None:
            record["via"] = self._via
        if self._token:
            record["token"] = self._token
        if self._target:
            record["target"] = self._target
        if self._dialled:
            record["dialled"] = self._dialled
            record["transport"] = self._transport
        return record

    def _log(self, level: int, record: Record) -> None:
        if logger.isEnabledFor(level):
            # Use makeRecord: logger.log would look for the calling line, which takes as long as all the rest.
            extra = {"expendable": True} if self._is_stranger else None
            logger.handle(logger.makeRecord(logger.name, level, "", 0, record, (), None, extra=extra))


def _word(text: str) -> str:
    """Return the text as one word: a blank would end the value, so it is escaped.

    The path of a Unix socket and the name of a token may contain blanks.
    """
    return text if _WORD.fullmatch(text) else quote(text, safe=string.punctuation, errors="replace")
