"""What a check says about each hop, and its verdict. No I/O.

The sentence for a failure is the same as the ordinary client's (`http2tcp.client.diagnosis`). This module adds the
facts around it, and advice with lines of configuration (`http2tcp.client.front_ends`). It makes text that a peer wrote
safe to print.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from http2tcp.address import Address
from http2tcp.client import front_ends as advice
from http2tcp.client.proxy_choice import Proxy
from http2tcp.errors import (
    ConnectFailed,
    CredentialsRefused,
    DestinationForbidden,
    FrontEndFailed,
    ProxyFailed,
    ResolveFailed,
    ServerRefused,
    TargetFailed,
    TLSFailed,
    TunnelError,
    UpgradeNotPassed,
)
from http2tcp.printable import safe
from http2tcp.protocol.certificate import CertificateError, parse_certificate, pin, public_key
from http2tcp.protocol.client_handshake import Answer, Refused, Switched
from http2tcp.protocol.transport import DIAL_METRIC, TIMING_FIELD, Transport
from http2tcp.units import repeated

# A certificate with fewer days left than this gets a note. Let's Encrypt's are renewed 30 days before their end, so
# renewal has probably stopped.
_DAYS_TO_RENEW = 14
_MAX_SHOWN = 4
_MAX_QUOTE = 60

_DIAL_TIME = re.compile(rf"(?:^|,)\s*{DIAL_METRIC}\s*;\s*dur=([0-9]{{1,9}}(?:\.[0-9]{{1,9}})?)\s*(?:[,;]|$)")

_KEYS: list[tuple[type[TunnelError], str]] = [
    (ResolveFailed, "name"),
    (ProxyFailed, "proxy"),
    (ConnectFailed, "tcp"),
    (TLSFailed, "tls"),
    (FrontEndFailed, "front_end"),
    (CredentialsRefused, "authorisation"),
    (DestinationForbidden, "authorisation"),
    (ServerRefused, "server"),
    (TargetFailed, "target"),
    (TunnelError, "tunnel"),
]


def key_of(error: TunnelError) -> str:
    """Return the key of the hop that failed."""
    return next(key for kind, key in _KEYS if isinstance(error, kind))


def before_http(error: TunnelError) -> bool:
    """Return whether the failure happened before the first byte of HTTP."""
    return key_of(error) in ("name", "proxy", "tcp", "tls")


def attempt_hops(attempts: Sequence[Attempt]) -> list[Hop]:
    """Return the report's lines for the attempts so far. A further event only adds lines at the end.

    | attempt | its lines |
    |---|---|
    | the very first try | the hops below HTTP that it has passed |
    | the first decided attempt | the front end |
    | each decided attempt | its transport |

    An attempt is decided when it gets through, or when it fails and will not be repeated. Exception: if the very first
    try fails below HTTP, it is not decided, since it shows nothing about its transport.
    """
    if not attempts:
        return []
    first = attempts[0].first_try
    decided = [
        attempt
        for attempt in attempts
        if isinstance(attempt.answer, Switched)
        or (attempt.error is not None and not attempt.again and not (attempt is first and attempt.ended_below_http))
    ]
    return [*first.passed_hops, *map(front_end_hop, decided[:1]), *map(transport_hop, decided)]


def awaited(attempts: Sequence[Attempt], way: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Return what the last attempt waits for, as a label and a text; None if it waits for nothing more.

    `way` has the hops of the first try in their order, the front end last. A later try is shown as a single wait, for
    its answer.
    """
    attempt = attempts[-1]
    if attempt.again:
        return attempt.transport.value, "again"
    if attempt.error is not None or attempt.answer is not None:
        return None
    if attempt is attempts[0].first_try:
        return way[min(len(attempt.passed_hops), len(way) - 1)]
    return attempt.transport.value, ""


def name_hop(host: str, addresses: Sequence[str], seconds: float | None) -> Hop:
    """Make the line for the look-up of the endpoint's name. No addresses: it failed."""
    distinct = list(dict.fromkeys(addresses))
    if not distinct:
        return Hop("name", "name", State.FAILED, host, seconds, facts={"addresses": []})
    text = f"{host} is an address" if distinct == [host] else f"{host} is {_some(distinct)}"
    return Hop("name", "name", State.OK, text, seconds, facts={"addresses": distinct})


def tcp_hop(site: str, address: Address | None, seconds: float | None) -> Hop:
    """Make the line for the TCP connection to the endpoint. No address: it failed."""
    facts = {"address": None if address is None else str(address)}
    if address is None:
        return Hop("tcp", "TCP", State.FAILED, site, seconds, facts=facts)
    return Hop("tcp", "TCP", State.OK, f"connected to {address}", seconds, facts=facts)


def proxy_hop(proxy: Proxy, site: str, address: Address | None, seconds: float | None) -> Hop:
    """Make the line for the proxy. No address: it failed."""
    facts = {"proxy": str(proxy), "source": proxy.source, "address": None if address is None else str(address)}
    text = f"{proxy} (from {proxy.source})"
    if address is None:
        return Hop("proxy", "proxy", State.FAILED, text, seconds, facts=facts)
    return Hop("proxy", "proxy", State.OK, f"{text} connects to {site}", seconds, (f"at {address}",), facts)


def tls_hop(
    name: str,
    version: str | None,
    der: bytes | None,
    seconds: float | None,
    *,
    verify: bool = True,
    failed: bool = False,
    wrong_name: bool = False,
) -> Hop:
    """Make the line for TLS with the server called `name`. If the handshake failed, show the certificate, if known."""
    words, more, facts = _certificate(der)
    if wrong_name and more:
        more = (f"{more[0]}, and not for {name}", *more[1:])
    state = State.FAILED if failed else State.OK
    if not failed and facts.get("days_left", _DAYS_TO_RENEW) < _DAYS_TO_RENEW:
        state = State.NOTE
    if not failed and not verify:
        state, more = State.NOTE, (*more, "not verified: --insecure")
    text = ", ".join(filter(None, (version, words))) or f"with {name}"
    facts = {"version": version, "server_name": name, "verified": verify and not failed, **facts}
    return Hop("tls", "TLS", state, text, seconds, more, facts)


def _certificate(der: bytes | None) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Describe a certificate: return a few words for the hop's line, further lines, and facts for machines."""
    if der is None:
        return "", (), {}
    try:
        certificate, key_pin = parse_certificate(der), pin(hashlib.sha256(public_key(der)).digest())
    except CertificateError as error:
        return str(error), (), {}
    now = datetime.now(UTC)
    left = (certificate.not_after - now).days
    end = f"{certificate.not_after:%Y-%m-%d}"
    validity = f"valid until {end}, {left} day{'' if left == 1 else 's'} left" if left >= 0 else f"expired on {end}"
    if certificate.not_before > now:
        validity = f"not valid before {certificate.not_before:%Y-%m-%d}"
    issuer, subject = _quote(certificate.issuer), _quote(certificate.subject)
    names = [_quote(name) for name in certificate.names]
    facts = {
        "subject": subject,
        "issuer": issuer,
        "self_signed": certificate.self_signed,
        "names": names,
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "days_left": left,
        "pin": key_pin,
    }
    words = "a certificate signed by itself" if certificate.self_signed else f"certificate by {issuer or 'nobody'}"
    return words, (f"for {_some(names) or subject or 'no name'}", validity, key_pin), facts


def front_end_hop(attempt: Attempt) -> Hop:
    """Make the line for the front end: what answered in HTTP, by the header fields of the attempt's last answer."""
    attempt = next((one for one in reversed((*attempt.earlier, attempt)) if one.answer is not None), attempt)
    server = _quote(dict(reversed(attempt.fields)).get("server", ""))
    found = advice.recognise(attempt.fields)
    facts = {"server": server or None, "recognised": None if found is None else found.front_end.name}
    if attempt.answer is None:
        return Hop("front_end", "front end", State.FAILED, "gives no answer to an upgrade", facts=facts)
    if server or found:
        named = found is None or found.front_end.name.lower() in server.lower()
        text = server if named else f"{server} ({found})" if server else str(found)
    else:
        text = "does not say what it is"
    return Hop("front_end", "front end", State.OK, text, facts=facts)


def transport_hop(attempt: Attempt) -> Hop:
    """Make the line for one transport: what happened to its upgrade, in all its tries."""
    text, state = _became(attempt)
    told = [_became(one)[0] for one in attempt.earlier]
    if told:
        before = ", then ".join(f"{words}{repeated(len(list(same)))}" for words, same in groupby(told))
        text = f"{text}{repeated(len(told) + 1)}" if set(told) == {text} else f"{text}; before that: {before}"
        state = State.NOTE if state is State.OK else state
    facts = {"transport": attempt.transport.value, "status": _status(attempt.answer), "tries": len(told) + 1}
    return Hop("transport", attempt.transport.value, state, text, attempt.seconds, facts=facts)


def _became(attempt: Attempt) -> tuple[str, State]:
    """Say what happened to one try, and whether it passed."""
    answer, status = attempt.answer, _status(attempt.answer)
    match answer:
        case Switched(transport=transport) if transport is not attempt.transport:
            text = f"101, but as {transport.value}: the front end writes an Upgrade of its own"
        case Switched():
            text = "101, it gets through"
        case Refused() if attempt.passed:
            text = f"{status}, it gets through to http2tcp"
        case Refused(proxy_error=None) if isinstance(attempt.error, UpgradeNotPassed):
            text = f"{status}, it does not get through"
        case Refused(proxy_error=None):
            text = f"{status} from the front end"
        case Refused(status=426):
            text = f"{status}, it comes to http2tcp without its Upgrade"
        case Refused():
            text = f"{status}, it comes to http2tcp as another request"
        case _:
            text = str(attempt.error)
    return text, State.OK if attempt.passed else State.FAILED


def _status(answer: Answer | None) -> int | None:
    return 101 if isinstance(answer, Switched) else None if answer is None else answer.status


def server_hop(attempt: Attempt, *, refuses: bool) -> Hop:
    """Make the line for the http2tcp server."""
    answer = attempt.answer
    ours = answer.from_http2tcp if isinstance(answer, Switched) else attempt.refused_by_us
    keepalive = answer.keepalive if isinstance(answer, Switched) else None
    session = answer.session if answer else ""
    comeback = attempt.comeback
    facts = {
        "proxy_status": ours,
        "keepalive": keepalive,
        "session": session or None,
        "resumes": None if comeback is None else comeback.works,
    }
    if refuses:
        return Hop("server", "http2tcp server", State.FAILED, "is there, and refuses", facts=facts)
    if ours:
        text = "is there" + (f"; keepalive every {keepalive:g} s" if keepalive else "")
        text += f"; its log has this as session {session}" if session else ""
        state = State.NOTE if comeback is not None and comeback.fails else State.OK
        more = () if comeback is None else (comeback.text,)
        return Hop("server", "http2tcp server", state, text, more=more, facts=facts)
    original = attempt.transport is Transport.HTTP2TCP
    text = (
        "the original's, which answers before it connects to the target"
        if original
        else "does not name itself in Proxy-Status"
    )
    return Hop("server", "http2tcp server", State.NOTE, text, facts=facts)


def came_back(failure: str | None, seconds: float = 0.0) -> Comeback:
    """Describe a tunnel that was cut. `failure` says why it did not come back; None: it did, after `seconds`."""
    if failure is None:
        return Comeback(True, f"a tunnel that was cut came back within {seconds:.1f} s")
    return Comeback(False, f"tunnels should come back, but this one was cut and did not: {failure}", fails=True)


def no_comeback(attempt: Attempt, *, asked: bool) -> Comeback | None:
    """Say why a tunnel like this one never comes back; None if the server is not known to be http2tcp.

    `asked`: the client's settings ask for tunnels that come back.
    """
    answer = attempt.answer
    if not isinstance(answer, Switched) or not answer.from_http2tcp:
        return None
    if not asked:
        return Comeback(False, "tunnels end with their connection: the client's settings say so")
    if not answer.capsules:
        return Comeback(False, f"tunnels end with their connection: {answer.transport.value} has no way to go on")
    return Comeback(False, "tunnels end with their connection: the server does not offer to go on")


def authorisation_hop(attempt: Attempt, *, with_token: bool, target: str) -> Hop:
    """Make the line that says whether the server accepts the token, and whether the token may reach the destination."""
    state, text = State.OK, "the token is accepted" if with_token else "granted without a token"
    if isinstance(attempt.error, CredentialsRefused):
        state, text = State.FAILED, "the token is not known" if with_token else "a token is wanted"
    elif isinstance(attempt.error, DestinationForbidden):
        state, text = State.FAILED, f"not for {target}"
    return Hop("authorisation", "authorisation", state, text, facts={"token_sent": with_token})


def target_hop(attempt: Attempt, destination: Address | None, greeting: bytes | None) -> Hop:
    """Make the line for the target.

    `greeting`: the target's first bytes; b"" if the target ended instead; None if it has sent nothing yet.
    """
    text = target_name(destination)
    words = None if not greeting else _printable(greeting)
    facts = {"destination": None if destination is None else str(destination), "greeting": words}
    seconds = _dial_time(attempt.fields)
    if attempt.error is not None:
        return Hop("target", "target", State.FAILED, text, attempt.seconds if seconds is None else seconds, (), facts)
    accepted = isinstance(attempt.answer, Switched) and attempt.answer.from_http2tcp
    if words is not None:
        return Hop("target", "target", State.OK, f"{text} accepts", seconds, (f"says {words}",), facts)
    if greeting is not None:
        return Hop("target", "target", State.NOTE, f"{text} accepts", seconds, ("and ends without a word",), facts)
    if accepted:
        return Hop("target", "target", State.OK, f"{text} accepts", seconds, ("and waits for us to speak",), facts)
    return Hop("target", "target", State.NOTE, f"{text} has not spoken: it may be there", None, (), facts)


def target_name(destination: Address | None) -> str:
    """Return the destination's name for the report."""
    return "the server's default destination" if destination is None else str(destination)


def works(attempts: Sequence[Attempt], chosen: Attempt, destinations: Sequence[Address | None], path: str) -> Verdict:
    """Return the verdict for a check that reached all `destinations`. `chosen` is the attempt that got through."""
    answer = chosen.answer
    assert isinstance(answer, Switched)
    name = answer.transport.value
    sentence = f"It works: {name} carries the tunnel to {' and to '.join(map(target_name, destinations))}"
    missed, mend = attempts[0], None
    if chosen is not missed:
        sentence += f"; --transport {name} is faster"
        # Advise nothing for a server of the original http2tcp: it has no better transport.
        if answer.from_http2tcp:
            mend = advise(missed, path, f"To let {missed.transport.value} through as well. ", ours=True)
    return Verdict(f"{sentence}.", transport=name, advice=mend)


def works_for_any(attempt: Attempt) -> Verdict:
    """Return the verdict if only the destination was missing, since each connection will name its own (SOCKS5)."""
    name = attempt.transport.value
    return Verdict(f"It works: {name} carries the tunnels, and each connection names its target.", transport=name)


def failed(error: TunnelError, attempt: Attempt, path: str) -> Verdict:
    """Return the verdict if a hop fails. `attempt` is the attempt that shows what the front end lacks."""
    words = error.words if isinstance(error, FrontEndFailed) else str(error)
    hop = error.hop if error.hop.isupper() else f"the {error.hop}"
    return Verdict(f"It fails at {hop}: {_ended(words)}", error.exit_code, key_of(error), None, advise(attempt, path))


def advise(attempt: Attempt, path: str, opening: str = "", *, ours: bool = False) -> Advice | None:
    """Return configuration that makes the front end pass the upgrade; None if no configuration would help.

    `ours`: `path` is known to lead to http2tcp. Otherwise something else may be served at `path`, and these lines would
    take `path` away from it.
    """
    error, answer = attempt.error, attempt.answer
    redirected = isinstance(answer, Refused) and 300 <= answer.status < 400
    if not isinstance(error, FrontEndFailed) or redirected:
        return None
    if not error.hint and not isinstance(error, UpgradeNotPassed):
        return None
    if not (ours or attempt.refused_by_us):
        if path in ("", "/"):
            # With this path, the lines would lead the whole site to http2tcp.
            path = advice.DEFAULT_PATH
            opening += (
                f"What answers at / stays as it is: give http2tcp a path of its own, such as {path}, and put the same "
                "one into -e. "
            )
        elif isinstance(answer, Refused) and answer.status in (200, 404):
            taken = " (they take it from what answers there now)" if answer.status == 200 else ""
            opening += f"If {path} is meant for http2tcp, these lines lead it there{taken}. "
    found = advice.recognise(attempt.fields)
    if found is None:
        return Advice(None, opening + advice.UNKNOWN_NOTE, advice.lines(advice.NGINX, path))
    front_end = found.front_end
    doubt = "" if found.certain else f"If it is {front_end.name}: "
    return Advice(front_end.name, opening + doubt + front_end.note, advice.lines(front_end, path))


def _dial_time(fields: Sequence[tuple[str, str]]) -> float | None:
    """Return how many seconds the server says it took to reach the target; None if it does not say."""
    for name, value in fields:
        if name == TIMING_FIELD.lower() and (match := _DIAL_TIME.search(value)):
            return float(match[1]) / 1000
    return None


def _ended(words: str) -> str:
    """End the words as a sentence: add a full stop unless they have an end mark."""
    return words if words.endswith((".", "?", "!", "…")) else f"{words}."


def _some(things: Sequence[str]) -> str:
    shown = ", ".join(things[:_MAX_SHOWN])
    return shown if len(things) <= _MAX_SHOWN else f"{shown} and {len(things) - _MAX_SHOWN} more"


def _quote(text: str) -> str:
    text = safe(text)
    return text if len(text) <= _MAX_QUOTE else text[:_MAX_QUOTE] + "…"


def _printable(data: bytes) -> str:
    """Return the first line of `data`, safe to print; or, if it is not text, the number of bytes."""
    line = data.split(b"\n")[0].rstrip(b"\r").decode("utf-8", "replace")
    text = "".join(character if character.isprintable() and character != "\ufffd" else "." for character in line)
    if not text or text.count(".") * 2 > len(text):
        return f"{len(data)} bytes that are not text"
    return _quote(text)


class Comeback(NamedTuple):
    """Whether a tunnel comes back after it loses its connection. The text is safe to print."""

    #: Whether the tunnel comes back. None: the server says that it does, but the check did not try it.
    works: bool | None
    text: str
    #: Whether the server says that the tunnel comes back, but it did not.
    fails: bool = False


UNTRIED = Comeback(None, "tunnels come back, says the server; not tried, since the target has ended this one")


@dataclass
class Attempt:
    """An attempt to open a tunnel by one transport, as far as it has got. The peer's text is not yet safe to print."""

    transport: Transport
    answer: Answer | None = None
    fields: Sequence[tuple[str, str]] = ()
    #: The time from the previous hop to the answer or the failure. None: not known yet.
    seconds: float | None = None
    error: TunnelError | None = None
    #: The tries of the same request before this one. They failed as if a server was restarting.
    earlier: Sequence[Attempt] = ()
    #: The hops below HTTP that the attempt has passed.
    passed_hops: list[Hop] = field(default_factory=list)
    #: Whether the attempt failed and the client will repeat it.
    again: bool = False
    #: Whether the attempt's tunnel comes back after it loses its connection. None: not known.
    comeback: Comeback | None = None

    @property
    def first_try(self) -> Attempt:
        """The first try of the same request; this attempt, if there was no earlier try."""
        return self.earlier[0] if self.earlier else self

    @property
    def ended_below_http(self) -> bool:
        """Whether the attempt failed before its HTTP request was sent."""
        return self.error is not None and before_http(self.error)

    @property
    def passed(self) -> bool:
        """Whether the upgrade reached the http2tcp server unchanged."""
        return isinstance(self.answer, Switched) or (self.refused_by_us and not isinstance(self.error, FrontEndFailed))

    @property
    def refused_by_us(self) -> bool:
        """Whether the http2tcp server itself answered with a refusal (not 101)."""
        return isinstance(self.answer, Refused) and self.answer.proxy_error is not None


class State(Enum):
    """The state of a hop."""

    OK = "ok"
    #: The hop works, but the user should look at it.
    NOTE = "note"
    FAILED = "failed"


class Hop(NamedTuple):
    """A line of the report: one hop on the way to the target. All of its text is safe to print."""

    #: The hop's name for machines, as in docs/check.md.
    key: str
    #: The hop's name for people.
    label: str
    state: State
    text: str
    #: How long the hop took.
    seconds: float | None = None
    #: Further lines, shown below the text.
    more: tuple[str, ...] = ()
    #: Further values for machines; docs/check.md describes them.
    facts: Mapping[str, Any] = {}


class Advice(NamedTuple):
    """Which lines of configuration to write, and where."""

    #: The front end that the lines are for; None if it was not recognised.
    front_end: str | None
    note: str
    lines: Sequence[str]


class Verdict(NamedTuple):
    """The result of a check."""

    #: The verdict in words.
    sentence: str
    exit_status: int = 0
    #: The key of the hop that fails; None if all hops work.
    failed_hop: str | None = None
    #: The transport that carries the tunnel; None if a hop fails.
    transport: str | None = None
    advice: Advice | None = None


class Report(Protocol):
    """Shows a check while it runs."""

    def begin(self, endpoint: str, destinations: Sequence[str]) -> None:
        """Show the start of the check. Called before the first hop."""

    def waiting(self, label: str, text: str) -> None:
        """Show which hop the check waits for now."""

    def hop(self, hop: Hop) -> None:
        """Show a hop whose result is known."""

    def end(self, verdict: Verdict) -> None:
        """Show the verdict. Called after the last hop."""
