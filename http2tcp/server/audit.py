"""What every connection leaves in the log: one record when it opens a tunnel and one when that ends, or one of
why there was none.

A record is a `Record`: keys and values for JSON, and a line of `key=value` pairs in the same order. It holds no
token, no request line and no text that a client made up: addresses are parsed before they get here, and a
token's name is the operator's. docs/log.md is the reference.

What has not come as far as a request (it left, it was silent, it had to make room) is told with -v alone: thousands
of such connections are no event. Of what strangers are refused, `Refusals` says which ones are lines; with -v all are.
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

# Of so many sessions that one could count them, two in a million share an id.
_ID_BYTES = 6
# Wrong tokens of one address that are lines, in a minute: fail2ban and its like count them.
_FAILURES = 10
# Refusals of one kind that are lines, in a minute: 60 MB a day at worst, were all kinds to come all the time.
_REFUSALS = 20
# Addresses that are counted at once; of more, the oldest is forgotten, and has lines again.
_ADDRESSES = 10_000
# What is told of these is English and not a word.
_PROSE = ("rule", "detail")
_WORD = re.compile(r"[!-~]+")


class Event(Enum):
    """What a record is about."""

    OPENED = "opened"
    ENDED = "ended"
    REFUSED = "refused"
    #: It brought a token, and that is not known or has expired.
    AUTHENTICATION_FAILED = "authentication_failed"
    #: It opened no tunnel, and got no answer either.
    ABANDONED = "abandoned"


class Record(dict[str, object]):
    """Keys and values in their order; its text is a line."""

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
    """Which of the refusals that strangers get are lines of their own, in each minute; the others are summed up.

    Wrong tokens have ten lines for each address, whatever others do. All else has twenty for each kind.
    """

    __slots__ = ("_failures", "_kinds", "_unheard")

    def __init__(self) -> None:
        self._failures: OrderedDict[str, int] = OrderedDict()
        self._kinds: Counter[str] = Counter()
        self._unheard: Counter[str] = Counter()

    def failed(self, client: str) -> bool:
        """Count a wrong token of an address, or of `unix`; whether it is a line."""
        key = client if client == "unix" else group(unmapped(ip_address(client)))
        count = self._failures.pop(key, 0) + 1
        self._failures[key] = count
        if len(self._failures) > _ADDRESSES:
            self._failures.popitem(last=False)
        if count > _FAILURES:
            self._unheard[Event.AUTHENTICATION_FAILED.value] += 1
        return count <= _FAILURES

    def refused(self, refusal: Refusal) -> bool:
        """Count any other refusal; whether it is a line."""
        kind = refusal.phrase.lower().replace(" ", "_")
        self._kinds[kind] += 1
        if self._kinds[kind] > _REFUSALS:
            self._unheard[kind] += 1
        return self._kinds[kind] <= _REFUSALS

    def sum_up(self) -> None:
        """A minute is over: one line for all that were none, and the next minute begins."""
        if self._unheard:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self._unheard.most_common())
            logger.info("%d more refused: %s", self._unheard.total(), kinds)
        for counts in (self._failures, self._kinds, self._unheard):
            counts.clear()


class SessionRecords:
    """The records of one connection from its first byte to its last."""

    __slots__ = (
        *("id", "traffic", "_cause", "_client", "_dialled", "_has_token", "_is_stranger", "_opened_at"),
        *("_port", "_refusals", "_target", "_token", "_transport", "_via"),
    )

    def __init__(self, peer: TCPAddress | None, refusals: Refusals | None = None) -> None:
        """`peer` is who has connected; None: by a Unix socket, where peers have no address.

        `refusals` are those of the whole server; None: each of these is a line.
        """
        self._refusals = Refusals() if refusals is None else refusals
        #: Both sides' logs have it.
        self.id = os.urandom(_ID_BYTES).hex()
        self.traffic = Traffic()
        self._client = "unix" if peer is None else peer.host
        self._port = None if peer is None else peer.port
        self._via: str | None = None
        self._token = self._cause = self._target = self._dialled = self._transport = ""
        #: Its token has not been accepted.
        self._is_stranger = True
        #: One was.
        self._has_token = False
        self._opened_at = 0.0

    def client_is(self, address: IPAddress, port: int | None = None) -> None:
        """The peer is a proxy, and this is who it speaks for."""
        if self._via is None:
            self._via = self._client if self._port is None else str(TCPAddress(self._client, self._port))
        self._client, self._port = str(address), port

    def authenticated(self, token_name: str | None = "") -> None:
        """Its token was accepted; None: none is asked for."""
        self._is_stranger = False
        self._has_token = token_name is not None
        self._token = token_name or ""

    def failed_authentication(self, token_name: str | None = None) -> None:
        """It brought a token that is not known, or one of this name that has expired. A refusal follows."""
        self._cause = "unknown" if token_name is None else "expired"
        self._token = token_name or ""

    def asked(self, target: Address) -> None:
        """The client asks for this target; later records name it."""
        self._target = str(target)

    def opened(self, dialled: Address, carrier: str, dial_time: float) -> None:
        """The target has accepted, after so many seconds; `carrier` is the transport, or `connect`."""
        self._opened_at = time.monotonic()
        self._dialled = str(dialled)
        self._transport = carrier
        record = self._record(Event.OPENED)
        record["dial_seconds"] = round(dial_time, 3)
        self._log(logging.INFO, record)

    def over(self, outcome: Outcome) -> None:
        """Write the last record, of how it ended."""
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
            # The operator has to do something about it; its words are ours alone.
            record["detail"] = str(refusal)
        self._log(logging.INFO if self._is_heard(refusal) else logging.DEBUG, record)

    def _ended(self, record: Record, reason: Reason | NoSession, detail: str) -> None:
        record["reason"] = reason.value
        if detail:
            record["detail"] = detail
        self._log(logging.DEBUG if self._is_stranger else logging.INFO, record)

    def _is_heard(self, refusal: Refusal) -> bool:
        """Whether it is a line without -v."""
        if self._has_token:
            return True
        if self._cause:
            return self._refusals.failed(self._client)
        # A request that was not complete in time is as little an event as a connection that said nothing.
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
            # Without a look for the calling line, which would cost as much as all the rest.
            extra = {"expendable": True} if self._is_stranger else None
            logger.handle(logger.makeRecord(logger.name, level, "", 0, record, (), None, extra=extra))


def _word(text: str) -> str:
    """As one word: a Unix socket's path and a token's name may hold blanks, and they end a value."""
    return text if _WORD.fullmatch(text) else quote(text, safe=string.punctuation, errors="replace")
