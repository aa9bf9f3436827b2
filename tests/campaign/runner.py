"""One case from its beginning to its verdict, many at once, and the summary."""

from __future__ import annotations

import itertools
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

from tests.campaign.cases import Case, Client, Finish, Server, Weather
from tests.campaign.invariants import Finding, Observed, judge
from tests.campaign.peers import Local, Peer, Way, peer_of
from tests.campaign.servers import RATE, Site, Told
from tests.campaign.talk import Account, Gone, Saw, Witness, payload, talk
from tests.campaign.weather import Leg, raging

#: How long a case may take beyond its own pauses. Generous, since a machine may be loaded; all of the product's own
#: time-outs are shorter.
_ALLOWANCE = 60.0
#: How long a target waits for a connection that may still come once the client is done.
_LAST_MOMENT = 1.0
#: How long after both sides' ends the server may take to write its record.
_RECORD = 15.0
_LOOK = 0.02

#: Numbers the runs, since the same case may run twice at once.
_number = itertools.count()

Progress = Callable[[Observed, list[Finding]], None]


def deadline(case: Case) -> float:
    """How many seconds it may take."""
    stalls = case.up.patience + case.down.patience
    shaping = sum(_time_of(weather) for weather in case.weathers)
    rate = 2 * (case.up.size + case.down.size) / RATE if case.server is Server.RATE else 0.0
    return _ALLOWANCE + 2 * (stalls + shaping + rate)


def _time_of(weather: Weather) -> float:
    pieces = weather.shaped // (weather.piece or 1)
    return 2 * pieces * (weather.delay + 0.001)


async def run_case(site: Site, case: Case) -> Observed:
    """Run it, for as long as it may take."""
    up = payload(case.seed, case.index, "up", case.up.size)
    down = payload(case.seed, case.index, "down", case.down.size)
    run = _Run(site, case, up, down)
    with trio.move_on_after(deadline(case)) as scope:
        try:
            await run.run()
        except Exception:
            # `open_tunnel` and its streams run in this process: an exception in one case must not end the others.
            run.seen.crash = traceback.format_exc()
    if scope.cancelled_caught:
        run.seen.late = f"not over after {deadline(case):.0f} s: {run.going_on()}"
    run.seen.said = run.said()
    return run.seen


class _Run:
    def __init__(self, site: Site, case: Case, up: bytes, down: bytes) -> None:
        self._site = site
        self._case = case
        self._up, self._down = up, down
        self._stderr = site.directory / f"stderr-{next(_number)}"
        self._stage = "beginning"
        self._legs: tuple[Leg, ...] = ()
        accounts = Account(Witness(down)), Account(Witness(up))
        self.seen = Observed(case, *accounts, Told(), began_at=trio.current_time())

    async def run(self) -> None:
        case, site = self._case, self._site
        server = site.server(case)
        async with AsyncExitStack() as stack:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await stack.enter_async_context(listener)
            target = f"127.0.0.1:{listener.socket.getsockname()[1]}"
            server.log.forget(target)
            far = await stack.enter_async_context(raging(case.far, server.port))
            near = await stack.enter_async_context(raging(case.near, site.front(case)))
            self._legs = near, far
            way = Way(
                port=near.port,
                path=site.path(case, far.port),
                ca_file=site.certificates.ca if case.tls else None,
                token=site.token,
                target=target,
                stderr=self._stderr,
            )
            peer = peer_of(case, way)
            try:
                self._stage = "the conversation"
                await self._converse(peer, listener)
                self._stage = "the record"
                self.seen.told = await self._record(target)
                self._stage = "the client's end"
            finally:
                # No process outlives its case, also when its time is up.
                await peer.stop()
                self.seen.struck = any(leg.struck for leg in self._legs)
                self._note_status(peer)
                server.log.forget(target)

    def _note_status(self, peer: Peer) -> None:
        if not peer.ended_by_us:
            self.seen.status = peer.status
        self.seen.client.confirmed = peer.confirmed()

    async def _converse(self, peer: Peer, listener: trio.SocketListener) -> None:
        client_is_over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._be_target, listener, client_is_over)
            try:
                await self._be_client(peer)
            finally:
                client_is_over.set()

    async def _be_client(self, peer: Peer) -> None:
        account = self.seen.client
        try:
            await peer.open()
            await talk(peer, self._case.up, self._up, account, told_end=True)
        except Gone as error:
            account.saw, account.words = Saw.BROKEN, str(error)
            account.over_at = trio.current_time()
        finally:
            await peer.close()

    async def _be_target(self, listener: trio.SocketListener, client_is_over: trio.Event) -> None:
        stream = await self._accepted(listener, client_is_over)
        if stream is None:
            return
        async with stream:
            told_end = self._case.tells_client_end
            await talk(Local(stream), self._case.down, self._down, self.seen.target, told_end=told_end)

    async def _accepted(self, listener: trio.SocketListener, client_is_over: trio.Event) -> trio.SocketStream | None:
        stream: trio.SocketStream | None = None
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await client_is_over.wait()
                await trio.sleep(_LAST_MOMENT)
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            stream = await listener.accept()
            nursery.cancel_scope.cancel()
        return stream

    async def _record(self, target: str) -> Told:
        """What the server says of it, once it has said all, or should have."""
        log = self._site.server(self._case).log
        if not self.seen.target.opened:
            return log.about(target)
        with trio.move_on_after(_RECORD):
            while not (told := log.about(target)).ended:
                await trio.sleep(_LOOK)
        return told

    def going_on(self) -> str:
        """What was not over, in a few words."""
        client, target = self.seen.client, self.seen.target
        words = [self._stage]
        for name, account in (("the client", client), ("the target", target)):
            if account.over_at is None:
                end = "said its end" if account.ended_at is not None else "did not say its end"
                words.append(
                    f"{name} has sent {account.sent} B, {end}, got {account.got.count} B, saw {account.saw.value}"
                )
        return "; ".join(words)

    def said(self) -> str:
        """What a process said, which is then forgotten."""
        try:
            words = self._stderr.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        self._stderr.unlink()
        if self._case.client is Client.FORWARDER:
            words = "".join(line for line in words.splitlines(keepends=True) if "listening on" not in line)
        return words


# --- many of them -----------------------------------------------------------------------------------------


@dataclass
class Summary:
    """What came of many cases."""

    count: int = 0
    #: How many cases were left out because nginx is not installed.
    left_out: int = 0
    seconds: float = 0.0
    findings: list[Finding] = field(default_factory=list)
    dimensions: dict[str, Counter[str]] = field(default_factory=dict)
    #: Lines of the servers' logs that report bugs.
    bugs: list[str] = field(default_factory=list)

    def add(self, seen: Observed, findings: list[Finding]) -> None:
        """One more."""
        self.count += 1
        self.findings += findings
        for dimension, value in _dimensions(seen):
            self.dimensions.setdefault(dimension, Counter())[value] += 1

    def __str__(self) -> str:
        lines = [f"{self.count} tunnels in {self.seconds:.0f} s, {len(self.findings)} findings"]
        if self.left_out:
            lines.append(f"{self.left_out} more were left out: nginx is not installed")
        for dimension, counter in self.dimensions.items():
            told = ", ".join(f"{value} {count}" for value, count in sorted(counter.items(), key=lambda each: -each[1]))
            lines.append(f"  {dimension}: {told}")
        if self.findings:
            kinds = Counter(finding.kind.value for finding in self.findings)
            lines.append("findings: " + "; ".join(f"{kind}: {count}" for kind, count in kinds.most_common()))
        lines += [describe(finding) for finding in self.findings]
        lines += [f"a server's log tells of a bug:\n{bug}" for bug in self.bugs]
        return "\n".join(lines)


def describe(finding: Finding) -> str:
    """A finding, and how to see it again."""
    return f"! {finding.kind.value}\n    {finding.words}\n    {finding.command}"


def _dimensions(seen: Observed) -> Iterator[tuple[str, str]]:
    case = seen.case
    yield "clients", case.client.value
    yield "transports", case.transport.value
    yield "servers", case.server.value
    yield "orders", case.order.value
    for weather in case.weathers:
        if weather.strikes:
            what = "a bit flipped" if weather.cut is None else f"cut by {weather.cut.value}"
            # What was to strike later than the tunnel lasted did not.
            yield "weather", what if seen.struck else f"no {what} after all"
        elif weather.shaped:
            yield "weather", "shaped"
    for side in (case.up, case.down):
        yield "sizes", "none" if side.size == 0 else next(word for most, word in _SIZES if side.size <= most)
        if side.nap > 5 or any(pause.seconds > 5 for pause in side.pauses):
            yield "stalls", "long"
        elif side.patience:
            yield "stalls", "short"
        if side.finish in (Finish.BREAK, Finish.LEAVE):
            yield "breaks", side.finish.value
    yield "outcomes", _outcome(seen)
    yield "records", seen.reason or "none"


_SIZES = ((100, "to 100 B"), (65536, "to 64 KiB"), (1_000_000, "to 1 MB"), (3_000_000, "to 3 MB"))


def _outcome(seen: Observed) -> str:
    if seen.late:
        return "late"
    if not seen.target.opened:
        return "not opened"
    case = seen.case
    whole = all(account.saw is Saw.CLEAN for account in (seen.client, seen.target))
    whole = whole and (seen.target.got.count, seen.client.got.count) == (case.up.size, case.down.size)
    return "whole" if whole else "cut"


async def run_cases(site: Site, cases: Iterable[Case], jobs: int, progress: Progress | None = None) -> Summary:
    """Run all of them, so many at once."""
    summary = Summary()
    begin = trio.current_time()
    waiting = iter(cases)

    async def work() -> None:
        for case in waiting:
            if not site.serves(case):
                summary.left_out += 1
                continue
            seen = await run_case(site, case)
            findings = judge(seen)
            summary.add(seen, findings)
            if progress is not None:
                progress(seen, findings)

    async with trio.open_nursery() as nursery:
        for _ in range(jobs):
            nursery.start_soon(work)
    summary.seconds = trio.current_time() - begin
    for kind, server in site.servers.items():
        summary.bugs += server.log.read_bugs()
        if server.process.poll() is not None:
            summary.bugs.append(f"the server {kind.value} has ended with {server.process.returncode}")
    return summary
