"""Whether a token may go somewhere, and why: `-s --check --as`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from http2tcp.address import Address, TCPAddress, UnixAddress
from http2tcp.errors import (
    CredentialsRefused,
    DestinationForbidden,
    Forbidden,
    TargetFailed,
)

if TYPE_CHECKING:
    from http2tcp.address import IPAddress
    from http2tcp.server import Server


def answer(server: Server, name: str, destination: Address) -> tuple[int, str]:
    """The exit status, and a sentence; below it, the addresses."""
    from http2tcp.net.dial import DialError
    from http2tcp.policy_report import expiry, grant_of, judged, who, why_admitted

    grant = grant_of(server.policy, name)
    may, may_not = f"{who(grant)} may go to {destination}", f"{who(grant)} may not go to {destination}"
    if grant.token is not None and grant.token.expires <= time.time():
        return CredentialsRefused.exit_code, f"{may_not}: the token {expiry(grant.token, time.time())}"
    try:
        admission = grant.admit(destination)
    except Forbidden as refusal:
        return DestinationForbidden.exit_code, f"{may_not}: {refusal.rule}"
    why = why_admitted(grant, admission)
    if isinstance(destination, UnixAddress):
        return 0, f"{may}: {why}"
    try:
        addresses = trio.run(_addresses, destination, server.settings.connect_timeout)
    except (DialError, trio.TooSlowError) as error:
        unknown = "no name server answered" if isinstance(error, trio.TooSlowError) else str(error)
        if not admission.by_name:
            return DestinationForbidden.exit_code, f"{may_not}: no rule of allow names it, and from here {unknown}"
        return TargetFailed.exit_code, f"{may}: {why}; but from here {unknown}"
    opened, lines = judged(admission, addresses)
    if not opened:
        return DestinationForbidden.exit_code, f"{may_not}: none of its addresses is open\n{lines}"
    return 0, f"{may}: {why or opened}\n{lines}"


async def _addresses(destination: TCPAddress, patience: float) -> Sequence[IPAddress]:
    """As the server would look them up, here and now. Raises DialError, trio.TooSlowError."""
    from http2tcp.net.dial import resolve

    with trio.fail_after(patience):
        return [candidate.ip for candidate in await resolve(destination)]
