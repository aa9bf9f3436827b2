"""What a check finds: attempts, hops and a verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from http2tcp.errors import FrontEndFailed, TunnelError
from http2tcp.protocol.client import Answer, Refused, Switched
from http2tcp.protocol.transport import Transport


@dataclass
class Attempt:
    """One transport's connection, as far as it has come. What the peer wrote is not yet safe to print."""

    transport: Transport
    answer: Answer | None = None
    fields: Sequence[tuple[str, str]] = ()
    #: From the request to the answer or the failure.
    seconds: float | None = None
    error: TunnelError | None = None
    #: The same request before this one, which failed as it does where something restarts.
    earlier: Sequence[Attempt] = ()

    @property
    def passed(self) -> bool:
        """Whether the upgrade came to the http2tcp server as it was sent."""
        return isinstance(self.answer, Switched) or (self.refused_by_us and not isinstance(self.error, FrontEndFailed))

    @property
    def refused_by_us(self) -> bool:
        """Whether the http2tcp server itself has answered, and not with 101."""
        return isinstance(self.answer, Refused) and self.answer.proxy_error is not None


class State(Enum):
    """How a hop stands."""

    OK = "ok"
    #: It holds, but somebody should look at it.
    NOTE = "note"
    FAILED = "failed"


class Hop(NamedTuple):
    """One hop of the way. All of it is safe to print."""

    #: One of docs/check.md's names, for machines.
    key: str
    #: For people.
    label: str
    state: State
    text: str
    #: How long it took.
    seconds: float | None = None
    #: Further lines.
    more: tuple[str, ...] = ()
    #: For machines.
    facts: Mapping[str, Any] = {}


class Advice(NamedTuple):
    """What to write where."""

    #: Whose configuration it is; None where that is not known.
    front_end: str | None
    note: str
    lines: Sequence[str]


class Verdict(NamedTuple):
    """What it comes to."""

    #: One sentence.
    sentence: str
    exit_status: int = 0
    #: The key of the hop that fails.
    failed_hop: str | None = None
    #: The transport that carries the tunnel.
    transport: str | None = None
    advice: Advice | None = None


class Report(Protocol):
    """Whoever is told, as it goes."""

    def begin(self, endpoint: str, destinations: Sequence[str]) -> None:
        """Before the first hop."""

    def waiting(self, label: str, text: str) -> None:
        """This hop is next."""

    def hop(self, hop: Hop) -> None:
        """A hop is known."""

    def end(self, verdict: Verdict) -> None:
        """After the last hop."""
