"""`-s --check --as`: says whether a token may go to a destination, and why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from http2tcp.address import Address, IPAddress, TCPAddress, UnixAddress
from http2tcp.errors import CredentialsRefused, DestinationForbidden, Forbidden, SettingsError, TargetFailed
from http2tcp.server.policy import UNNAMED, Admission, Grant, Policy
from http2tcp.server.policy_report import LABEL_WIDTH

if TYPE_CHECKING:
    from http2tcp.server.state import State


def answer(state: State, name: str, destination: Address) -> tuple[int, str]:
    """Return the exit status and the answer: a sentence, and below it a line for each address of the destination."""
    from http2tcp.net.dial import DialError
    from http2tcp.server.policy_report import expiry, who

    grant = grant_of(state.policy, name)
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
        addresses = trio.run(_addresses, destination, state.settings.connect_timeout)
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
    """Look the destination's addresses up on this machine, as the server does. Raises DialError, trio.TooSlowError."""
    from http2tcp.net.dial import LAST_WAIT, resolve

    with trio.fail_after(patience):
        return [candidate.ip for candidate in await resolve(destination, patience=LAST_WAIT)]


def grant_of(policy: Policy, name: str) -> Grant:
    """Return what the token called `name` may do. Raises SettingsError if there is no such token.

    UNNAMED stands for the token of -t or --token-file, or for any client if the server asks for no token.
    """
    tokens = {token.name or UNNAMED: token for token in policy.tokens}
    if not tokens and name == UNNAMED:
        return policy.authenticate(None, 0)
    if name not in tokens:
        names = [f"{UNNAMED} (the one of -t or --token-file)" if each == UNNAMED else each for each in tokens]
        known = ", ".join(names) or f"{UNNAMED} alone, for any client: it asks for no token"
        raise SettingsError(f"--as: no token is called {name!a}; the server knows {known}")
    return policy.grant(tokens[name])


def why_admitted(grant: Grant, admission: Admission) -> str:
    """Say what admits the destination by its name. Empty: the rules for its addresses decide."""
    if admission.rule is not None:
        return f"allow {admission.rule}"
    if grant.pinned:
        return "it is the default destination, which is open to everybody"
    return "there is no allow for it, so every destination is open" if admission.by_name else ""


def judged(admission: Admission, addresses: Sequence[IPAddress]) -> tuple[str, str]:
    """Return the rule that opens the first open address (empty: all are closed), and a line for each address."""
    lines, opened = [], ""
    for address in dict.fromkeys(addresses):
        refusal = admission.refusal(address)
        rule = admission.admitting(address)
        words = "open" if rule is None else f"open: allow {rule}"
        lines.append(f"  {address!s:<{LABEL_WIDTH - 3}} {f'closed: {refusal}' if refusal else words}")
        if not refusal:
            opened = opened or f"allow {rule}"
    return opened, "\n".join(lines)
