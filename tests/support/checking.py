"""A check that is listened to, and what the ordinary client says on the same way."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from http2tcp.client.check.hops import Hop, Report, State, Verdict
from http2tcp.client.check.layout import JSONReport, TextReport
from http2tcp.client.check.walk import check
from http2tcp.client.connector import connect, why_it_ended
from http2tcp.client.settings import ClientSettings
from http2tcp.errors import TunnelError
from http2tcp.net.relay import Traffic, relay
from http2tcp.net.streams import SocketStream


@dataclass
class Checked:
    """What a check told, as a person and as a program read it."""

    hops: list[Hop] = field(default_factory=list)
    verdict: Verdict = field(default_factory=lambda: Verdict("none yet", 1))
    text: str = ""
    document: dict[str, Any] = field(default_factory=dict)

    def keys(self) -> list[str]:
        """The hops in their order; a transport by its name with a + before it."""
        return [f"+{hop.facts['transport']}" if hop.key == "transport" else hop.key for hop in self.hops]

    def hop(self, key: str) -> Hop:
        """The one hop with this key, which is one of `keys`."""
        (found,) = (hop for name, hop in zip(self.keys(), self.hops, strict=True) if name == key)
        return found

    def failed(self) -> list[str]:
        """The keys of those that have failed."""
        return [key for key, hop in zip(self.keys(), self.hops, strict=True) if hop.state is State.FAILED]


class _Listener:
    """A Report for three at once."""

    def __init__(self, checked: Checked) -> None:
        self._checked = checked
        self._for_people, self._for_programs = io.StringIO(), io.StringIO()
        self._reports: list[Report] = [TextReport(self._for_people), JSONReport(self._for_programs)]

    def begin(self, endpoint: str, destinations: Sequence[str]) -> None:
        for report in self._reports:
            report.begin(endpoint, destinations)

    def waiting(self, label: str, text: str) -> None:
        for report in self._reports:
            report.waiting(label, text)

    def hop(self, hop: Hop) -> None:
        self._checked.hops.append(hop)
        for report in self._reports:
            report.hop(hop)

    def end(self, verdict: Verdict) -> None:
        for report in self._reports:
            report.end(verdict)
        self._checked.verdict = verdict
        self._checked.text = self._for_people.getvalue()
        self._checked.document = json.loads(self._for_programs.getvalue())


async def checked(settings: ClientSettings) -> Checked:
    """Run a check; all that it says is fit to be printed, and the two forms agree."""
    result = Checked()
    with trio.fail_after(30):
        verdict = await check(settings, _Listener(result))
    assert verdict is result.verdict
    for line in result.text.splitlines():
        assert line.isprintable()
    for secret in (settings.token, settings.endpoint.password):
        assert secret is None or secret not in result.text + json.dumps(result.document)
    document = result.document
    assert document["sentence"] == verdict.sentence
    assert verdict.sentence in result.text.splitlines()
    assert document["works"] is (verdict.exit_status == 0)
    assert [hop["hop"] for hop in document["hops"]] == [hop.key for hop in result.hops]
    for hop in result.hops:
        assert hop.seconds is None or 0 <= hop.seconds < 30
    return result


async def ordinary(settings: ClientSettings) -> TunnelError | None:
    """What ends a login by the ordinary client whose user says nothing and waits for the target's first words."""
    try:
        tunnel = await connect(settings)
    except TunnelError as error:
        return error
    left, right = (SocketStream(end) for end in socket.socketpair())
    traffic = Traffic()
    async with trio.open_nursery() as nursery:

        async def leave_after_the_greeting() -> None:
            with trio.move_on_after(5):
                await left.receive_some()
            await left.aclose()

        nursery.start_soon(leave_after_the_greeting)
        try:
            outcome = await relay(right, tunnel.stream, traffic)
        finally:
            nursery.cancel_scope.cancel()
            left.abort()
            right.abort()
    return why_it_ended(tunnel, outcome, traffic)
