"""The refusals for a destination that the rules do not allow, or that could not be reached, and their words. Pure."""

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

# Failures that reveal something about the target's name: whether it exists, or to which addresses it resolves.
_ABOUT_THE_NAME = (DialFailure.PROHIBITED, DialFailure.NAME, DialFailure.NAME_TEMPORARY)


class Admission(Protocol):
    """The part of `http2tcp.server.policy.Admission` (an admitted destination) that this module needs."""

    @property
    def destination(self) -> Address:
        """Where the client wants to go."""

    @property
    def by_name(self) -> bool:
        """Whether the rules admit the name itself. If so, the client may learn whether it exists and where it leads."""


def not_allowed(rule: str) -> Forbidden:
    """Return the refusal for a destination that the rules do not allow. Only the operator sees the rule, in the log."""
    return Forbidden(rule=rule)


def too_slow(admission: Admission, seconds: float, *, named: bool) -> Refusal:
    """Return the refusal after `seconds` without a connection. `named`: the name was looked up within that time."""
    destination = admission.destination
    if not named and not admission.by_name:
        return _unnamed(f"no name server answered in {seconds:g} s")
    if named or not isinstance(destination, TCPAddress):
        return TargetTimeout(f"cannot reach {destination} from the server: no answer in {seconds:g} s")
    words = f"cannot find {destination.host} from the server: no name server answered in {seconds:g} s"
    return TargetTimeout(words, proxy_error="dns_timeout")


def dial_refusal(admission: Admission, failure: DialFailure, words: str, closed: str) -> Refusal:
    """Return the refusal after a failed dial. `words` say why it failed.

    `closed` says which rule forbids the first forbidden address of the target; "" if no address is forbidden.
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
    """Return the refusal that hides the look-up's failure, and gives `why` only to the log.

    A client must not learn whether a name exists or where it leads unless a rule admits that name.
    """
    return not_allowed(f"no rule of allow names it, and {why}")
