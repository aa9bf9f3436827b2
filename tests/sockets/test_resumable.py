"""Tunnels that come back, by the real pumps over real descriptors: each byte once, in order, through any cuts."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio

from http2tcp.net import resumable
from http2tcp.net import resumable_pump as resumable_splice
from http2tcp.net import splice_pump as splice
from http2tcp.net.pipes import Pipe, PipePool, pipes
from http2tcp.net.relay import End
from http2tcp.net.resumable_pump import KeptInPipe, discard, take
from http2tcp.net.stdio import StdioStream
from http2tcp.net.streams import SocketStream
from http2tcp.protocol.capsule import ResetCode
from tests.support.cut_wires import Fate, Tunnel, both_relays, conversation, pair

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
    # On a machine that is busy a second without progress is no deadlock, and what lapses can be lost by the next cut.
    monkeypatch.setattr(resumable, "LAPSE_AFTER", 20.0)
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
    return await run_through(fates, up, down, seed=seed, doubled=chance.choice((0, 0.5)))


async def run_through(
    fates: list[Fate], up: bytes, down: bytes, *, seed: int = 0, doubled: float = 0.0, window: int = 16 * 1024
) -> int:
    """One tunnel over these wires; how many connections it took."""
    application, left = pair()
    right, target = pair()
    at_target, at_application = bytearray(), bytearray()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            tunnel = Tunnel(nursery, fates, window=window, doubled=doubled, random=random.Random(seed))
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


@pytest.mark.parametrize("batch", range(4))
async def test_pumps_that_get_no_pipe_copy(batch: int, pump_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at all, or none at times: between two steps, or for one of the two that a step needs."""
    chance = random.Random(batch)

    def sometimes(pool: PipePool) -> Pipe | None:
        return counted(pool) if batch and chance.random() < 0.6 else None

    monkeypatch.setattr(PipePool, "take", sometimes)
    for seed in range(5000 + batch * BATCH, 5000 + (batch + 1) * BATCH):
        await run_one(seed)
    assert_pipes_are_back()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
async def test_a_system_that_does_not_tee_copies(code: int, pump_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: int, sink: int, count: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(resumable_splice, "tee", refused)
    for seed in range(6000, 6000 + BATCH):
        await run_one(seed)
    assert_pipes_are_back()


async def test_a_pipe_that_is_full_before_the_window_serves_on(pump_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has room for 256 pieces, and these are small; what it had is sent again all the same."""
    folds = [0]
    fold = resumable_splice.KeptInPipe.fold

    def counting(kept: resumable_splice.KeptInPipe) -> None:
        folds[0] += 1
        fold(kept)

    monkeypatch.setattr(resumable_splice.KeptInPipe, "fold", counting)
    data = random.Random(1).randbytes(3_000_000)
    # Cut where two thirds of a megabyte are on their way or kept, and nothing was acknowledged.
    wires = await run_through([Fate(900_000), Fate(1_500_000), Fate(10)], data, b"", window=8 << 20)
    assert wires >= 4
    assert (folds[0] > 4) == (pump_kind == "tee")
    assert_pipes_are_back()


async def test_what_was_on_its_way_to_a_slow_sink_survives_the_connection(pump_kind: str) -> None:
    """The sink takes nothing while the connection is lost and replaced."""
    data = random.Random(2).randbytes(60_000)
    application, left = pair()
    right, target = pair()
    found = bytearray()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            tunnel = Tunnel(nursery, [], window=32 * 1024)

            async def late() -> None:
                while tunnel.server is None or not tunnel.server.machine.confirmed:
                    await trio.sleep(0.001)
                server, machine = tunnel.server, tunnel.server.machine
                stuck_at = -1
                while not machine.in_hand or machine.handed_on != stuck_at:
                    stuck_at = machine.handed_on
                    await trio.sleep(0.01)
                server.detach("cut")
                while server.attachment is None:
                    await trio.sleep(0.001)
                assert machine.in_hand > 0
                await drain(target, found, random.Random(3))
                await target.send_eof()

            nursery.start_soon(feed, application, data, random.Random(4))
            nursery.start_soon(late)
            nursery.start_soon(drain, application, bytearray(), random.Random(5))
            outcomes = await conversation(tunnel, left, right)
            nursery.cancel_scope.deadline = trio.current_time() + 5
    assert found == data
    assert [outcome.end for outcome in outcomes] == [End.CLOSED, End.CLOSED]
    for stream in (application, target):
        stream.abort()
    assert_pipes_are_back()


async def test_both_sides_that_write_before_they_read_lapse_and_get_through(
    pump_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every buffer is full on both ways, so that no ACK gets through. Nothing is cut, so nothing is lost."""
    monkeypatch.setattr(resumable, "LAPSE_AFTER", 0.1)
    data = random.Random(6).randbytes(60_000)
    application, left = pair()
    right, target = pair()
    found = {"application": bytearray(), "target": bytearray()}

    async def write_then_read(name: str, stream: SocketStream) -> None:
        async with trio.open_nursery() as both:

            async def read_late() -> None:
                # Nothing moves before the lapse.
                assert tunnel.client is not None
                assert tunnel.server is not None
                while not (tunnel.client.machine.lapses or tunnel.server.machine.lapses):
                    await trio.sleep(0.01)
                await drain(stream, found[name], random.Random(7))

            both.start_soon(feed, stream, data, random.Random(8))
            both.start_soon(read_late)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            # Less than the kernel takes: an ACK would get through, if it had anything to say.
            tunnel = Tunnel(nursery, [], window=2048)
            await tunnel.open()
            nursery.start_soon(write_then_read, "application", application)
            nursery.start_soon(write_then_read, "target", target)
            outcomes = await both_relays(tunnel, left, right)
    assert found["target"] == found["application"] == data
    assert [outcome.end for outcome in outcomes] == [End.CLOSED, End.CLOSED]
    for stream in (application, target):
        stream.abort()
    assert_pipes_are_back()


async def test_a_client_whose_stdin_and_stdout_are_pipes(pump_kind: str) -> None:
    """As ssh starts it: every end of the client's relay is a pipe."""
    up, down = (random.Random(seed).randbytes(150_000) for seed in (9, 10))
    stdin, feeding = os.pipe()
    draining, stdout = os.pipe()
    right, target = pair()
    at_target, at_stdout = bytearray(), bytearray()

    async def write() -> None:
        async with trio.lowlevel.FdStream(feeding) as stream:
            await stream.send_all(up)

    async def read() -> None:
        async with trio.lowlevel.FdStream(draining) as stream:
            while part := await stream.receive_some(10_000):
                at_stdout.extend(part)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            tunnel = Tunnel(nursery, [Fate(50_000), Fate(60_000), Fate(300), Fate(70_000)])
            nursery.start_soon(write)
            nursery.start_soon(read)
            nursery.start_soon(feed, target, down, random.Random(11))
            nursery.start_soon(drain, target, at_target, random.Random(12))
            outcomes = await conversation(tunnel, StdioStream(stdin, stdout), right)
            nursery.cancel_scope.deadline = trio.current_time() + 5
    for fd in (stdin, stdout):
        os.close(fd)
    assert at_target == up
    assert at_stdout == down
    assert tunnel.wires >= 4
    assert [outcome.end for outcome in outcomes] == [End.CLOSED, End.CLOSED]
    target.abort()
    assert_pipes_are_back()


@pytest.mark.skipif(not splice.AVAILABLE, reason="splice(2) is Linux's")
@pytest.mark.parametrize("seed", range(20))
def test_kept_bytes_do_not_depend_on_where_they_lie(seed: int) -> None:
    """Against a plain string, through every mixture of pieces, pipes, acknowledgements and replays."""
    chance = random.Random(seed)
    kept, expected = KeptInPipe(), b""
    transit = pipes.take()
    assert transit is not None
    for _ in range(300):
        match chance.randrange(6):
            case 0 | 1:
                data = chance.randbytes(chance.choice((1, 100, 5000)))
                kept.append(data)
                expected += data
            case 2 | 3:
                data = chance.randbytes(chance.choice((1, 3000, 60_000)))
                transit.held += os.write(transit.entry, data)
                teed = kept.append_from(transit)
                assert 0 < teed <= len(data)
                assert take(transit, teed) == data[:teed]
                discard(transit, transit.held)
                expected += data[:teed]
            case 4:
                count = chance.randint(0, len(expected))
                kept.drop(count)
                expected = expected[count:]
            case _ if chance.random() < 0.2 and expected:
                start = chance.randrange(len(expected))
                most = chance.randint(1, 9000)
                part = kept.read(start, most)
                assert part
                assert expected[start : start + most].startswith(part)
    found = b""
    while len(found) < len(expected):
        found += kept.read(len(found), 7777)
    assert found == expected
    kept.close()
    pipes.give_back(transit)
    assert_pipes_are_back()


async def test_bytes_that_the_target_never_took_are_not_acknowledged_when_the_tunnel_breaks() -> None:
    """The pump has them, and was cancelled in its write: the client must not be told that they were handed on."""
    async with trio.open_nursery() as nursery:
        tunnel = Tunnel(nursery, [])
        await tunnel.open()
        client, server = tunnel.client, tunnel.server
        assert client is not None
        assert server is not None
        await client.send_all(b"lost")
        assert await server.receive_some() == b"lost"
        await server.send_reason("the target has broken", ResetCode.TARGET)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
        assert server.machine.handed_on == 0
        assert client.machine.out.acked == 0
        client.abort()
        server.abort()
        nursery.cancel_scope.cancel()
