"""Tunnels that come back, by the real pumps over real descriptors: each byte once, in order, through any cuts."""

from __future__ import annotations

import os
import random

import pytest
import trio

from http2tcp.net.relay import End
from http2tcp.net.streams import SocketStream
from tests.support.cut_wires import Fate, Tunnel, conversation, pair

SEEDS = int(os.environ.get("RESUME_SEEDS", "1000"))
BATCH = 25


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
async def test_each_byte_arrives_once_through_cuts_anywhere(batch: int) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        await run_one(seed)
