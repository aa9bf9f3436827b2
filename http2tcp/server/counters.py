"""The counters of a server, which /metrics shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from http2tcp.protocol.transport import Transport
from http2tcp.server.outcome import Abandoned, Ended, NoSession, Outcome, Reason, Refused, Resumed
from http2tcp.server.prometheus import Counter, Histogram, Values

# Bounds of the histograms of dials and handshakes, in seconds: from a target in the same rack to the time limit of a
# patient client.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)


# Bounds of the histogram of absences, in seconds: from a front end's reload to a laptop that sleeps for a night.
_GAPS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 28800)

#: All values of `TunnelRequest.carrier`: the transports, and CONNECT.
CARRIERS = (*(transport.value for transport in Transport), "connect")


#: Every possible refusal: its status, and its error in Proxy-Status.
REFUSALS = (
    ("400", "http_request_error"),
    ("400", "proxy_configuration_error"),
    ("401", "http_request_denied"),
    ("403", "destination_ip_prohibited"),
    ("403", "http_request_denied"),
    ("404", "http_request_error"),
    ("407", "http_request_denied"),
    ("408", "http_request_error"),
    ("426", "http_request_error"),
    ("429", "connection_limit_reached"),
    ("431", "http_request_error"),
    ("500", "proxy_internal_error"),
    ("502", "connection_refused"),
    ("502", "destination_ip_unroutable"),
    ("502", "destination_unavailable"),
    ("502", "dns_error"),
    ("503", "connection_limit_reached"),
    ("504", "connection_timeout"),
    ("504", "dns_timeout"),
)


#: Every result of an attempt to resume a tunnel. `over`: the tunnel had ended, and the client did not know that yet.
RESUMES = ("resumed", "over", "gone", "denied", "stale", "busy", "gap", "violation", "left")

#: Every `reason` why a tunnel ended, and every `reason` why a connection was abandoned.
ENDINGS = tuple(reason.value for reason in Reason)
ABANDONED = tuple(reason.value for reason in NoSession)


class _Traffic(Protocol):
    """The part of `net.relay.Traffic` that the counters need."""

    @property
    def bytes_up(self) -> int: ...

    @property
    def bytes_down(self) -> int: ...


class Metrics:
    """Counts the events since the server started."""

    def __init__(self, now: float) -> None:
        """`now` is when the server starts. All times here are POSIX times in seconds."""
        self.accepted = Counter("http2tcp_connections_accepted_total", "Connections that were accepted.")
        self.sessions_opened = Counter(
            "http2tcp_sessions_opened_total",
            "Tunnels that opened.",
            ["transport"],
            [(carrier,) for carrier in CARRIERS],
        )
        self.sessions_ended = Counter(
            "http2tcp_sessions_ended_total",
            "Tunnels that ended.",
            ["reason"],
            [(ending,) for ending in ENDINGS],
        )
        self.refusals = Counter(
            "http2tcp_refused_total",
            "Requests that got no tunnel, by their status and their error in Proxy-Status.",
            ["status", "reason"],
            REFUSALS,
        )
        self.abandoned = Counter(
            "http2tcp_abandoned_total",
            "Connections that got neither a tunnel nor an answer.",
            ["reason"],
            [(reason,) for reason in ABANDONED],
        )
        self.authentication_failures = Counter(
            "http2tcp_authentication_failures_total",
            "Requests with a token that is wrong or has expired.",
        )
        self.dials = Histogram(
            "http2tcp_dial_seconds",
            "From the look-up of a target's name to its connection, where it was reached.",
            _SECONDS,
        )
        self.handshakes = Histogram(
            "http2tcp_handshake_seconds",
            "From the accepted connection to its 101, the dial included.",
            _SECONDS,
        )
        self.resumes = Counter(
            "http2tcp_resumes_total",
            "Connections that asked to resume a tunnel, and how that went.",
            ["result"],
            [(result,) for result in RESUMES],
        )
        self.resume_gaps = Histogram(
            "http2tcp_resume_gap_seconds",
            "How long clients were away that came back.",
            _GAPS,
        )
        self.replayed = Counter(
            "http2tcp_resume_replayed_bytes_total",
            "Bytes that were sent to a client again, since it had not received them.",
        )
        self.lapses = Counter(
            "http2tcp_resume_lapses_total",
            "How often a tunnel kept nothing for a while, since both of its directions were stuck.",
        )
        self.reloads = Counter(
            "http2tcp_config_reloads_total",
            "Reloads of the configuration, by whether it was valid and taken.",
            ["result"],
            [("success",), ("failure",)],
        )
        #: Whether the latest configuration was valid and taken, and when the configuration in force was taken. The
        #: first configuration is the one that the server starts with.
        self.reload_taken = True
        self.taken_at = now
        self._open: dict[_Traffic, str] = {}
        self._bytes_up = self._bytes_down = 0

    def opened(self, traffic: _Traffic, carrier: str) -> None:
        """Count a tunnel that opened. From now on `bytes` includes its bytes."""
        self.sessions_opened.add(carrier)
        self._open[traffic] = carrier

    def over(self, outcome: Outcome, traffic: _Traffic) -> None:
        """Count how a connection ended, and the bytes that its tunnel carried."""
        match outcome:
            case Refused(refusal):
                self.refusals.add(str(refusal.status), refusal.proxy_error)
            case Abandoned(reason):
                self.abandoned.add(reason.value)
            case Resumed(result):
                self.resumes.add(result)
            case Ended(reason):
                del self._open[traffic]
                self.sessions_ended.add(reason.value)
                self._bytes_up += traffic.bytes_up
                self._bytes_down += traffic.bytes_down

    def reloaded(self, now: float) -> None:
        """Count a successful reload: the new configuration is in force."""
        self.reloads.add("success")
        self.reload_taken = True
        self.taken_at = now

    def reload_failed(self) -> None:
        """Count a failed reload: the old configuration stays in force."""
        self.reloads.add("failure")
        self.reload_taken = False

    def sessions_open(self) -> Mapping[Values, float]:
        """Return how many tunnels are open, by carrier: the transport, or CONNECT."""
        carriers = list(self._open.values())
        return {(carrier,): carriers.count(carrier) for carrier in CARRIERS}

    def bytes(self) -> Mapping[Values, float]:
        """Return how many bytes all tunnels carried in each direction, open tunnels included."""
        return {
            ("up",): self._bytes_up + sum(traffic.bytes_up for traffic in self._open),
            ("down",): self._bytes_down + sum(traffic.bytes_down for traffic in self._open),
        }
