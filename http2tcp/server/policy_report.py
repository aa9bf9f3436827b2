"""Says in words what a server's settings allow: for its first log line, for `-s --check` and for `--as`. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from http2tcp.errors import Forbidden
from http2tcp.protocol.transport import Transport
from http2tcp.server.limits import LimitOption, Limits, Tunnels, described_limits
from http2tcp.server.policy import BUILT_IN, Grant, Policy, Token
from http2tcp.server.settings import ServerSettings
from http2tcp.units import counted

if TYPE_CHECKING:
    from datetime import datetime

LABEL_WIDTH = 18
# How many tokens that may go anywhere are named. The rest are only counted.
_NAMES = 5
# How many networks of the built-in list fit on a line.
_A_LINE = 4
_EVERYTHING = "any destination but link-local and metadata addresses"
_DAY = 86400
# The first second of year 1 and the last of year 9999, in POSIX time: a datetime's limits.
_FIRST, _LAST = -62135596800, 253402300799

Rows = list[tuple[str, Sequence[str]]]


# --- the report in one line -------------------------------------------------------------------


def reach(settings: ServerSettings, policy: Policy, now: float) -> str:
    """Say which destinations the server opens, and with which tokens, for its first log line. `now` is POSIX time."""
    tokens = [token for token in policy.tokens if token.expires > now]
    if policy.tokens and not tokens:
        return "nothing: every token has expired"
    if not tokens:
        if _admits(policy.authenticate(None, 0), settings):
            return f"{settings.destination} alone, for everybody"
        return f"nothing: without tokens only {settings.destination} could be reached, but the rules close it"
    by = "the token" if len(tokens) == 1 else f"any of {len(tokens)} tokens"
    grants = [policy.grant(token) for token in tokens]
    free = [grant for grant in grants if grant.allow is None and not grant.deny]
    if len(free) == len(tokens):
        return f"{_EVERYTHING}, with {by}"
    words = f"what the rules allow, with {by}"
    if not free:
        return words
    names = [who(grant) for grant in free[:_NAMES]]
    if len(free) > _NAMES:
        names.append(f"{len(free) - _NAMES} more")
    return f"{words}; without rules, and so to {_EVERYTHING}: {', '.join(names)}"


def _admits(grant: Grant, settings: ServerSettings) -> bool:
    """Return whether the grant admits the default destination by its name. The addresses are not looked up here."""
    assert settings.destination is not None, "a server without a token has one"
    try:
        grant.admit(settings.destination)
    except Forbidden:
        return False
    return True


# --- the full report --------------------------------------------------------------------------


def describe(settings: ServerSettings, policy: Policy, limits: Limits, now: float) -> str:
    """Return the whole policy as text. `limits` are the limits in force; `now` is POSIX time in seconds."""
    tokens = [_token(settings, token, now) for token in policy.tokens]
    per_token = Tunnels(limits, len(policy.tokens)).per_token
    parts = [_doors(settings), _limits(settings, limits, per_token), *tokens, _everybody(settings, policy)]
    return "\n\n".join(map(_shown, parts))


def _doors(settings: ServerSettings) -> Rows:
    listen = list(map(str, settings.addresses))
    if not settings.listen:
        listen = [f"{listen[0]}, or the sockets of a socket unit"]
    transports = [transport.value for transport in Transport] + ["CONNECT"] * settings.connect
    clients = "the connection's address"
    if settings.trusted_proxies:
        clients = f"{settings.forwarded_header} of {', '.join(map(str, settings.trusted_proxies))}; else {clients}"
    if settings.proxy_protocol:
        clients = "the PROXY protocol's header"
    tls = "plain, for a front end"
    if settings.tls is not None:
        tls = f"https, by {settings.tls.certificate}"
        tls += f" and {settings.tls.key}" if settings.tls.key is not None else ""
    rows: Rows = [
        ("listen", listen),
        ("http", [tls]),
        ("path", [settings.path or "every path"]),
        ("transports", [", ".join(transports)]),
        ("web pages", [*settings.allow_origins] or ["none"]),
        ("destination", [str(settings.destination or "as the client says")]),
        ("clients", [clients]),
        ("admin", [str(settings.admin or "nowhere")]),
        ("log", [f"{settings.log_format}, to {settings.log_file or 'stderr'}"]),
    ]
    return rows


def _limits(settings: ServerSettings, limits: Limits, per_token: int | None) -> Rows:
    in_force = {"max_tunnels_per_token": per_token}
    lines = []
    for name, _, option in described_limits():
        value = in_force.get(name, getattr(limits, name))
        if value is not None:
            lines.append(option.report.format(_amount(value, option)))
    lines += [
        f"{_time(settings.head_timeout)} for a request to be complete",
        f"{_time(settings.connect_timeout)} to reach its target",
        f"{_time(settings.grace)} for open tunnels when the server is stopped",
        f"open tunnels {'go on' if settings.keep_sessions else 'end'} when their token expires or is taken away",
    ]
    return [("limits", lines)]


def _amount(value: float, option: LimitOption) -> str:
    if option.kind == "time":
        return _time(value)
    if option.kind == "rate":
        return _bytes(value)
    return counted(int(value), option.noun) if option.noun else f"{value:g}"


def _token(settings: ServerSettings, token: Token, now: float) -> Rows:
    own = [expiry(token, now) + (", opens nothing" if token.expires <= now else "")]
    if token.max_tunnels is not None:
        own.append(f"{counted(token.max_tunnels, 'tunnel')} at once")
    rows: Rows = [(f"token {token.name or 'without a name'}", ["; ".join(own)])]
    if token.allow is not None:
        rows.append(("  allow", list(map(str, token.allow)) or ["nothing"]))
    elif settings.allow is None:
        rows.append(("  allow", [_EVERYTHING]))
    else:
        rows.append(("  allow", ["as every token"]))
    if token.deny:
        rows.append(("  deny", list(map(str, token.deny))))
    return rows


def _everybody(settings: ServerSettings, policy: Policy) -> Rows:
    rows: Rows = []
    if not settings.tokens and not _admits(policy.authenticate(None, 0), settings):
        rows.append(("no token", [f"nobody may go anywhere: the rules close {settings.destination}"]))
    elif not settings.tokens:
        rows.append(("no token", [f"everybody may go to {settings.destination}, and nowhere else"]))
    else:
        rows.append(("every token", []))
    if settings.allow is not None:
        rows.append(("  allow", list(map(str, settings.allow)) or ["nothing"]))
    if settings.deny:
        rows.append(("  deny", list(map(str, settings.deny))))
    closed = [str(network) for network in BUILT_IN]
    lines = [", ".join(closed[start : start + _A_LINE]) for start in range(0, len(closed), _A_LINE)]
    return [*rows, ("  closed", lines)]


def _shown(rows: Rows) -> str:
    lines = []
    for label, values in rows:
        # A token's name may be longer than the column of labels.
        first, *rest = values or [""]
        lines.append(f"{label:<{LABEL_WIDTH - 1}} {first}".rstrip())
        lines += [" " * LABEL_WIDTH + value for value in rest]
    return "\n".join(lines)


def expiry(token: Token, now: float) -> str:
    """Say when the token expires or expired."""
    if token.expires == math.inf:
        return "never expires"
    over = token.expires <= now
    # Show an expiry at midnight as the end of the day before.
    if token.expires % _DAY == 0:
        day = _utc(token.expires - _DAY).date()
        words = f"expired at the end of {day} (UTC)" if over else f"good to the end of {day} (UTC)"
    else:
        end = _utc(token.expires).replace(tzinfo=None).isoformat(" ", "seconds")
        words = f"{'expired at' if over else 'good until'} {end} UTC"
    return words if over else f"{words}, {_about(token.expires - now)} from now"


def _utc(seconds: float) -> datetime:
    from datetime import UTC, datetime  # imported here, since most servers start without needing it

    # If an expiry was given with an offset from UTC, its time in UTC can be outside the years that a datetime can have.
    return datetime.fromtimestamp(min(max(seconds, _FIRST), _LAST), UTC)


_UNITS = ((_DAY, "d"), (3600, "h"), (60, "min"), (1, "s"))


def _time(seconds: float) -> str:
    """Write a time exactly, in the largest unit that divides it."""
    unit, name = next((each for each in _UNITS if seconds % each[0] == 0), (1, "s"))
    return f"{seconds / unit:g} {name}"


def _about(seconds: float) -> str:
    """Write a time rounded down, in the largest unit that is not larger than the time."""
    unit, name = next((each for each in _UNITS if seconds >= each[0]), (1, "s"))
    return f"{int(seconds // unit)} {name}"


def _bytes(number: float) -> str:
    for unit, name in ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if number >= unit:
            return f"{number / unit:g} {name}"
    return f"{number:g} bytes"


# --- may NAME go there? -----------------------------------------------------------------------


def who(grant: Grant) -> str:
    """Say whose grant it is: the token's name, or words for a client or token that has none."""
    if grant.token is None:
        return "a client"
    return grant.token.name or "the token without a name"
