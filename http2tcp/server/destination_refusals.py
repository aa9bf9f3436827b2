"""The words of a refused destination: one that the rules do not allow, or that could not be reached. Pure."""

from __future__ import annotations

from typing import Protocol

from http2tcp.address import Address, TCPAddress
from http2tcp.errors import (
    DialFailure,
    Forbidden,
    LimitReached,
    Refusal,
    TargetTimeout,
    TargetUnreachable,
)

# Failures that say something about the target's name: whether it exists, and to which addresses it leads.
_ABOUT_THE_NAME = (DialFailure.PROHIBITED, DialFailure.NAME, DialFailure.NAME_TEMPORARY)


class Admission(Protocol):
    """What is asked of an admitted destination: `http2tcp.server.policy.Admission`."""

    @property
    def destination(self) -> Address:
        """Where the client wants to go."""

    @property
    def by_name(self) -> bool:
        """Whether a rule opens the destination's very name, so that the client may learn what becomes of it."""


def not_allowed(rule: str) -> Forbidden:
    """The refusal of a destination that the rules do not allow. Only the operator gets to see the rule."""
    return Forbidden("this destination is not allowed", rule=rule)


def too_slow(admission: Admission, seconds: float, *, named: bool) -> Refusal:
    """The refusal after `seconds` without a connection. `named`: the target's name had been looked up by then."""
    destination = admission.destination
    if not named and not admission.by_name:
        return _unnamed(f"no name server answered in {seconds:g} s")
    if named or not isinstance(destination, TCPAddress):
        return TargetTimeout(f"cannot reach {destination} from the server: no answer in {seconds:g} s")
    words = f"cannot find {destination.host} from the server: no name server answered in {seconds:g} s"
    return TargetTimeout(words, proxy_error="dns_timeout")


def dial_refusal(admission: Admission, failure: DialFailure, words: str, closed: str) -> Refusal:
    """The refusal after a dial that failed, for a reason that `words` describe.

    `closed` is the rule that forbids the first of the target's forbidden addresses; empty where none is forbidden.
    """
    destination = admission.destination
    if failure in _ABOUT_THE_NAME and not admission.by_name:
        return not_allowed(closed) if closed else _unnamed(words)
    if failure is DialFailure.PROHIBITED:
        return Forbidden(
            f"{destination} is not allowed: every address of it is closed, by a deny rule or as link-local or metadata",
            proxy_error="destination_ip_prohibited",
            rule=closed,
        )
    words = f"cannot reach {destination} from the server: {words}"
    match failure:
        case DialFailure.EXHAUSTED:
            return LimitReached(words)
        case DialFailure.TIMEOUT:
            return TargetTimeout(words)
        case DialFailure.NAME | DialFailure.NAME_TEMPORARY:
            return TargetUnreachable(words, proxy_error="dns_error")
        case DialFailure.REFUSED:
            return TargetUnreachable(words, proxy_error="connection_refused")
        case DialFailure.UNROUTABLE:
            return TargetUnreachable(words, proxy_error="destination_ip_unroutable")
        case _:
            return TargetUnreachable(words, proxy_error="destination_unavailable")


def _unnamed(why: str) -> Forbidden:
    """A token that may not use a name must not learn whether it exists or where it leads; the log's rule says why."""
    return not_allowed(f"no rule of allow names it, and {why}")
