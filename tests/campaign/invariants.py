"""What a case promises, judged from both sides' accounts and the server's record. No I/O.

The rules are those of docs/wire.md, docs/exit-codes.md and docs/log.md, and not what the program happens to do.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tests.campaign.cases import Case, Client, Finish, Server, Way
from tests.campaign.servers import IDLE, Told
from tests.campaign.talk import Account, Saw

#: After the target's end, a stdin that is silent for 3 s ends the tunnel (71). Measured here it may seem shorter.
_STDIN_PATIENCE = 2.0
#: After the server's Close, a WebSocket client without capsules may be silent for 5 s.
_CLOSE_PATIENCE = 4.0
#: As measured here: what the server saw may be later by the time that a loaded machine takes.
_IDLE_PATIENCE = IDLE - 1.0
_OPENING_PATIENCE = 9.0

#: How a client on stdio may end that failed (docs/exit-codes.md). A bug (1) and a usage mistake (2) are not among them.
_FAILURES = range(64, 76)
_MAY_END_SO = {"client_broke", "target_broke", "closed"}


class Kind(Enum):
    """Which invariant is broken."""

    PREFIX = "what was got is no prefix of what was sent"
    FALSE_END = "a clean end that was none"
    FALSE_SUCCESS = "the client was told that all is well, and it was not"
    NOT_WHOLE = "nothing cut it, and it did not end well"
    NOT_OPENED = "no tunnel, and nothing was in the way"
    RECORD = "the server's record is missing, or there are too many"
    BUG = "a traceback, or an exit status for bugs"
    LATE = "no end in time"


@dataclass(frozen=True)
class Finding:
    """An invariant that did not hold."""

    seed: int
    index: int
    kind: Kind
    words: str

    @property
    def command(self) -> str:
        """How to reproduce it."""
        return f"python -m tests.campaign --seed {self.seed} --only {self.index}"


@dataclass
class Observed:
    """All that is known of a case that has run."""

    case: Case
    client: Account
    target: Account
    told: Told
    #: When it began, as the accounts' times.
    began_at: float = 0.0
    #: Whether the network cut it, or flipped a bit.
    struck: bool = False
    #: A client's exit status; None: it is no process, or one that the campaign ended.
    status: int | None = None
    #: What it said on stderr.
    said: str = ""
    #: The traceback of an unexpected exception.
    crash: str = ""
    #: What was still going on when time was up; empty if it ended in time.
    late: str = ""

    @property
    def reason(self) -> str:
        """The record's."""
        return str(self.told.ended[0]["reason"]) if self.told.ended else ""

    @property
    def lull(self) -> float:
        """The longest time, in seconds, in which nothing was sent or received on either side."""
        moments = sorted([*self.client.moments, *self.target.moments])
        return max((later - sooner for sooner, later in itertools.pairwise(moments)), default=0.0)


def tells_cuts(case: Case) -> bool:
    """Whether a cut on any leg can be told from an end: not where raw bytes travel without TLS on some leg."""
    return not case.transport.raw or case.server is Server.TLS


def was_cut(seen: Observed) -> bool:
    """Whether anything ended it before its sides did, nginx for one (`ends_both`)."""
    if seen.struck or seen.client.broke_off or seen.target.broke_off:
        return True
    return ends_both(seen.case) and not seen.target.had_all_at_end


def ends_both(case: Case) -> bool:
    """Whether the end of one direction is that of both: nginx makes it so of raw bytes."""
    return case.transport.raw and case.server is Server.NGINX


def was_limited(seen: Observed) -> bool:
    """Whether a limit that it had run into may have ended it."""
    case = seen.case
    target_end = seen.target.ended_at
    if target_end is not None:
        silence = seen.client.silence_after(target_end)
        if case.client is Client.STDIO and silence >= _STDIN_PATIENCE:
            return True
        if case.client is Client.WEBSOCKET and silence >= _CLOSE_PATIENCE:
            return True
    return seen.reason == "idle" and case.server is Server.IDLE and seen.lull >= _IDLE_PATIENCE


def judge(seen: Observed) -> list[Finding]:
    """All invariants that do not hold. A case that was late or crashed has no end that could be judged."""
    rules = [_prefix, _bugs]
    rules += [_late] if seen.late else [] if seen.crash else [_opened, _false_end, _false_success, _ends_well, _record]
    case = seen.case
    return [Finding(case.seed, case.index, kind, words) for rule in rules for kind, words in rule(seen)]


_Broken = Iterator[tuple[Kind, str]]


def _directions(seen: Observed) -> Iterator[tuple[Way, Account, Account, int]]:
    """Each direction, its sender, its receiver, and how much there was to send."""
    yield Way.UP, seen.client, seen.target, seen.case.up.size
    yield Way.DOWN, seen.target, seen.client, seen.case.down.size


def _prefix(seen: Observed) -> _Broken:
    for way, _, receiver, size in _directions(seen):
        if receiver.got.wrong_at is not None:
            yield Kind.PREFIX, f"{way.value}: byte {receiver.got.wrong_at} of {size} is wrong"


def _late(seen: Observed) -> _Broken:
    yield Kind.LATE, seen.late


def was_slowed(seen: Observed) -> bool:
    """Whether the weather may have kept it from opening within the product's own deadlines, of 10 s each."""
    shaped = any(weather.shaped for weather in seen.case.weathers)
    return shaped and seen.client.over_at is not None and seen.client.over_at - seen.began_at > _OPENING_PATIENCE


def _opened(seen: Observed) -> _Broken:
    if not seen.target.opened and not (seen.struck or seen.client.broke_off or was_slowed(seen)):
        yield Kind.NOT_OPENED, f"{seen.client.words}; status {seen.status}; {seen.said!r}"


def _false_end(seen: Observed) -> _Broken:
    if not tells_cuts(seen.case) and was_cut(seen):
        return
    for way, sender, receiver, size in _directions(seen):
        if receiver.saw is not Saw.CLEAN or (ends_both(seen.case) and receiver.got.count == size):
            continue
        got = f"{way.value}: a clean end after {receiver.got.count} B"
        if sender.ended_at is None:
            yield Kind.FALSE_END, f"{got}, and the sender, which has sent {sender.sent} of {size} B, said none"
        elif receiver.got.count != sender.sent:
            yield Kind.FALSE_END, f"{got}, and {sender.sent} of {size} B were sent before the sender's end"
        elif receiver.saw_at is not None and receiver.saw_at < sender.ended_at:
            yield Kind.FALSE_END, f"{got}, {sender.ended_at - receiver.saw_at:.2f} s before the sender said it"


def _false_success(seen: Observed) -> _Broken:
    """Success promises that the target has everything, if the protocol confirms it."""
    case, client, target = seen.case, seen.client, seen.target
    if not (case.capsules and client.confirmed) or client.broke_off or target.broke_off:
        return
    # DONE concerns the way up only. A later cut loses what the target still sends, and the target is reset.
    cut_later = case.client is Client.CAPSULES and seen.struck and client.got.count != case.down.size
    if cut_later and target.got.count == case.up.size:
        return
    if target.saw is not Saw.CLEAN or target.got.count != case.up.size:
        told = "exit status 0" if case.client is Client.STDIO else "done"
        yield (
            Kind.FALSE_SUCCESS,
            f"{told}, and the target has {target.got.count} of {case.up.size} B and saw {target.saw.value}",
        )


def _ends_well(seen: Observed) -> _Broken:
    if was_cut(seen) or was_limited(seen) or not seen.target.opened:
        return
    wrong = []
    for way, _, receiver, size in _directions(seen):
        if receiver.saw is not Saw.CLEAN or receiver.got.count != size:
            told = f" ({receiver.words})" if receiver.words else ""
            wrong.append(f"{way.value}: {receiver.got.count} of {size} B, {receiver.saw.value}{told}")
    if seen.status not in (None, 0):
        wrong.append(f"exit status {seen.status}, {seen.said.strip()!r}")
    if seen.client.confirmed is False and seen.status is None:
        wrong.append("not confirmed")
    if seen.reason and seen.reason != "closed":
        detail = seen.told.ended[0].get("detail", "")
        wrong.append(f"the record says {seen.reason} ({detail})")
    elif seen.told.ended:
        record = seen.told.ended[0]
        counted, sent = (record["bytes_up"], record["bytes_down"]), (seen.case.up.size, seen.case.down.size)
        if counted != sent:
            wrong.append(f"the record counts {counted} B, and {sent} were sent")
    if wrong:
        yield Kind.NOT_WHOLE, "; ".join(wrong)


def _record(seen: Observed) -> _Broken:
    told = seen.told
    if told.opened > 1 or len(told.ended) > 1 or (seen.target.opened and told.opened != len(told.ended)):
        yield Kind.RECORD, f"{told.opened} of its opening, {len(told.ended)} of its end"
    elif told.ended:
        limited = {"idle"} if seen.case.server is Server.IDLE else set()
        if seen.reason not in _MAY_END_SO | limited:
            yield Kind.RECORD, f"it says {seen.reason}"
        elif seen.reason == "idle" and not was_limited(seen):
            yield Kind.RECORD, "it says idle, and nobody was silent for so long"


def _bugs(seen: Observed) -> _Broken:
    if seen.crash:
        yield Kind.BUG, seen.crash
    if "Traceback" in seen.said or "please report" in seen.said:
        yield Kind.BUG, seen.said
    if seen.case.client is Client.FORWARDER and seen.status is not None:
        yield Kind.BUG, f"the forwarder ended by itself, with {seen.status}: {seen.said.strip()!r}"
    if seen.case.client is not Client.STDIO or seen.status in (None, 0):
        return
    if seen.status not in _FAILURES and not seen.client.broke_off:
        yield Kind.BUG, f"exit status {seen.status}, {seen.said.strip()!r}"
    elif not seen.said.strip() and seen.case.up.finish is not Finish.LEAVE:
        yield Kind.BUG, f"exit status {seen.status} without a word"
