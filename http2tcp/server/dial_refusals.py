"""What a client is told of a target that could not be dialled. Pure."""

from __future__ import annotations

from http2tcp.address import TCPAddress
from http2tcp.errors import (
    Forbidden,
    LimitReached,
    Refusal,
    TargetTimeout,
    TargetUnreachable,
)
from http2tcp.net.dial import DialError, DialFailure
from http2tcp.server.policy import Admission


def too_slow(admission: Admission, seconds: float, *, named: bool) -> Refusal:
    destination = admission.destination
    if not named and not admission.by_name:
        return _unnamed(f"no name server answered in {seconds:g} s")
    if named or not isinstance(destination, TCPAddress):
        return TargetTimeout(f"cannot reach {destination} from the server: no answer in {seconds:g} s")
    words = f"cannot find {destination.host} from the server: no name server answered in {seconds:g} s"
    return TargetTimeout(words, proxy_error="dns_timeout")


_ABOUT_THE_NAME = (DialFailure.PROHIBITED, DialFailure.NAME, DialFailure.NAME_TEMPORARY)


def _unnamed(why: str) -> Forbidden:
    """A token learns nothing of names that it may not use: neither whether they exist, nor what they are."""
    return Forbidden(rule=f"no rule of allow names it, and {why}")


def dial_refusal(admission: Admission, error: DialError, closed: str) -> Refusal:
    """`closed`: what closed the first of its addresses that may not be dialled."""
    destination = admission.destination
    if error.failure in _ABOUT_THE_NAME and not admission.by_name:
        return Forbidden(rule=closed) if closed else _unnamed(str(error))
    if error.failure is DialFailure.PROHIBITED:
        return Forbidden(
            f"{destination} is not allowed: every address of it is closed, by a deny rule or as link-local or metadata",
            proxy_error="destination_ip_prohibited",
            rule=closed,
        )
    words = f"cannot reach {destination} from the server: {error}"
    match error.failure:
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
