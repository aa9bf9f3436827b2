"""Tunnels that come back, by the real pumps over real descriptors: each byte once, in order, through any cuts."""

from __future__ import annotations

import os
import random

import pytest
import trio

from http2tcp.net import resumable_pump as resumable_splice
from http2tcp.net import splice_pump as splice
from http2tcp.net.pipes import Pipe, PipePool, pipes
from http2tcp.net.relay import End
from http2tcp.net.streams import SocketStream
from tests.support.cut_wires import Fate, Tunnel, conversation, pair

SEEDS = int(os.environ.get("RESUME_SEEDS", "1000"))
BATCH = 25


LEND = PipePool.take
LENT = [0]


def counted(pool: PipePool) -> Pipe | None:
    LENT[0] += 1
    return LEND(pool)


def pipes_lent() -> int:
    """How many pipes the pumps have asked for so far."""
    return LENT[0]


def assert_pipes_are_back() -> None:
    """No tunnel that is over keeps a pipe."""
    assert pipes._taken == 0


@pytest.fixture(scope="module", autouse=True)
def _is_open_for_good() -> None:
    resumable_splice.nowhere()


@pytest.fixture(params=["copy", "tee"])
def pump_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which pumps move the bytes, and what is bulk to them: less than usual, so that both ways take turns."""
    kind = str(request.param)
    if kind == "tee" and not splice.AVAILABLE:
        pytest.skip("splice(2) is Linux's")
    monkeypatch.setattr(splice, "AVAILABLE", kind == "tee")
    monkeypatch.setattr(resumable_splice, "SMALL", 600)
    monkeypatch.setattr(resumable_splice, "QUIET", 150)
    monkeypatch.setattr(PipePool, "take", counted)
    return kind


async def feed(stream: SocketStream, data: bytes, chance: random.Random) -> None:
    """Send it in pieces, then the end."""
    sent = 0
    while sent < len(data):
        size = chance.choice((1, 100, 5000, 100_000))
        await stream.send_all(data[sent : sent + size])
        sent += size
        if chance.random() < 0.1:
            await trio.sleep(chance.random() * 0.003)
    await stream.send_eof()


async def drain(stream: SocketStream, found: bytearray, chance: random.Random) -> None:
    """Read to the end, and lag behind at times."""
    while data := await stream.receive_some(chance.choice((50, 4000, 200_000))):
        found += data
        if chance.random() < 0.1:
            await trio.sleep(chance.random() * 0.003)


async def run_one(seed: int) -> int:
    """One tunnel with its own cuts; how many connections it took."""
    chance = random.Random(seed)
    up, down = (chance.randbytes(chance.choice((0, 1, 300, 20_000, 150_000))) for _ in range(2))
    cuts = chance.choice((0, 1, 2, 3, 8))
    fates = [Fate(chance.choice((1500, 5000, 60_000)) * (0.2 + chance.random())) for _ in range(1)]
    fates += [
        Fate(chance.choice((20, 150, 400, 5000, 60_000)) * chance.random(), chance.random() * 0.004)
        for _ in range(cuts)
    ]
    application, left = pair()
    right, target = pair()
    at_target, at_application = bytearray(), bytearray()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            tunnel = Tunnel(nursery, fates, doubled=chance.choice((0, 0.5)), random=chance)
            nursery.start_soon(feed, application, up, random.Random(seed + 1))
            nursery.start_soon(drain, target, at_target, random.Random(seed + 2))
            nursery.start_soon(feed, target, down, random.Random(seed + 3))
            nursery.start_soon(drain, application, at_application, random.Random(seed + 4))
            outcomes = await conversation(tunnel, left, right)
            nursery.cancel_scope.deadline = trio.current_time() + 5
    assert at_target == up, f"seed {seed}: {len(at_target)} of {len(up)} bytes at the target, {outcomes}"
    assert at_application == down, f"seed {seed}: {len(at_application)} of {len(down)} at the application, {outcomes}"
    assert outcomes[0].end is End.CLOSED, f"seed {seed}: {outcomes}"
    for stream in (application, target):
        stream.abort()
    return tunnel.wires


@pytest.mark.parametrize("batch", range(SEEDS // BATCH))
async def test_each_byte_arrives_once_through_cuts_anywhere(batch: int, pump_kind: str) -> None:
    moved = pipes_lent()
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        await run_one(seed)
    assert (pipes_lent() > moved) == (pump_kind == "tee")
    assert_pipes_are_back()
