"""Everything that /metrics shows of a server: its counters, and gauges that each request for /metrics reads anew.

No label contains a destination, a client's address or anything else that a client chooses. Every label has a fixed set
of values, except for the names that the operator gave to tokens. docs/metrics.md says what each family is for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from http2tcp.log import dropped_lines
from http2tcp.server.prometheus import Family, Reading, Values
from http2tcp.version import __version__

if TYPE_CHECKING:
    from http2tcp.server.state import State


def families(state: State) -> list[Family]:
    """Return all families of a server, in the order of docs/metrics.md."""
    metrics = state.metrics
    return [
        _gauge(
            "http2tcp_build_info",
            "Always 1.",
            lambda: {(__version__, ".".join(map(str, sys.version_info[:3]))): 1},
            ["version", "python"],
        ),
        _gauge("http2tcp_draining", "1 from the signal to stop on.", lambda: {(): state.draining}),
        metrics.accepted,
        _gauge(
            "http2tcp_connections_unauthenticated",
            "Connections whose token has not been accepted yet, and refused ones that are still there.",
            lambda: {(): len(state.unauthenticated)},
        ),
        _gauge("http2tcp_sessions_open", "Tunnels that are open.", metrics.sessions_open, ["transport"]),
        metrics.sessions_opened,
        metrics.sessions_ended,
        metrics.refusals,
        metrics.abandoned,
        metrics.authentication_failures,
        Reading(
            "counter",
            "http2tcp_bytes_total",
            "Bytes that tunnels carried, up to targets and down to clients.",
            metrics.bytes,
            ["direction"],
        ),
        metrics.dials,
        metrics.handshakes,
        _gauge("http2tcp_limit", "The limits; +Inf where there is none.", lambda: _limits(state), ["limit"]),
        Reading(
            "counter",
            "http2tcp_limit_reached_total",
            "How often each limit refused or ended something.",
            lambda: _reached(state),
            ["limit"],
        ),
        _gauge(
            "http2tcp_token_expiry_timestamp_seconds",
            "When the named tokens expire that do, in POSIX time.",
            lambda: {
                (token.name,): token.expires
                for token in state.policy.tokens
                if token.name and token.expires != math.inf
            },
            ["token"],
        ),
        Reading(
            "counter",
            "http2tcp_log_lines_dropped_total",
            "Lines of the log that nobody can read: its reader was too slow, or they could not be written.",
            lambda: {(): dropped_lines()},
        ),
        _gauge(
            "http2tcp_sessions_detached",
            "Tunnels that wait for their clients to come back.",
            lambda: {(): state.resumption.away},
        ),
        _gauge(
            "http2tcp_resume_kept_bytes",
            "Bytes that are kept until clients acknowledge them.",
            lambda: {(): state.resumption.memory.used},
        ),
        metrics.resumes,
        metrics.resume_gaps,
        metrics.replayed,
        metrics.lapses,
        metrics.reloads,
        _gauge(
            "http2tcp_config_last_reload_successful",
            "0 where the latest configuration was broken, and an older one is in force.",
            lambda: {(): metrics.reload_taken},
        ),
        _gauge(
            "http2tcp_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in POSIX time.",
            lambda: {(): metrics.taken_at},
        ),
    ]


def _gauge(name: str, help: str, read: Callable[[], Mapping[Values, float]], labels: Sequence[str] = ()) -> Reading:
    return Reading("gauge", name, help, read, labels)


def _limits(state: State) -> Mapping[Values, float]:
    limits, settings = state.limits, state.settings
    found = {each.name: getattr(limits, each.name) for each in fields(limits)}
    # Show the limit in force: if none is set and there are several tokens, each may use its share of all tunnels.
    found["max_tunnels_per_token"] = state.tunnels.per_token
    found |= {"head_timeout": settings.head_timeout, "connect_timeout": settings.connect_timeout}
    return {(name,): math.inf if limit is None else limit for name, limit in found.items()}


def _reached(state: State) -> Mapping[Values, float]:
    metrics = state.metrics
    refused, ended, abandoned = metrics.refusals.of, metrics.sessions_ended.of, metrics.abandoned.of
    return {
        ("max_unauthenticated",): state.unauthenticated.reached,
        ("max_unauthenticated_per_address",): state.unauthenticated.reached_per_address,
        ("max_failures_per_minute",): state.failures.reached,
        ("max_tunnels",): state.tunnels.reached,
        ("max_tunnels_per_token",): state.tunnels.reached_per_token,
        ("head_timeout",): refused("408", "http_request_error") + abandoned("timed_out"),
        ("connect_timeout",): refused("504", "connection_timeout") + refused("504", "dns_timeout"),
        ("idle_timeout",): ended("idle"),
        ("max_session",): ended("max_session"),
    }
