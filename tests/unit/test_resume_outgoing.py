"""Positions of what is sent, and the bytes that are kept of it."""

from __future__ import annotations

import random
import sys

import pytest

from http2tcp.protocol.capsule import FINAL, Reset, reset
from http2tcp.protocol.resume_outgoing import End, KeptBytes, Outgoing
from http2tcp.protocol.resume_wire import Gap, Violation


def sent(*, give: bytes = b"abcdefghij", most: int = 100, end: End | None = None) -> Outgoing:
    out = Outgoing()
    out.give(give)
    out.end = end
    while out.take(most):
        pass
    out.take_end()
    return out


def test_an_idle_direction_keeps_nothing_and_has_nothing_to_keep_it_in() -> None:
    assert Outgoing().kept is None


def test_the_end_is_a_position() -> None:
    out = sent(end=End(None))
    assert (out.length, out.sent, out.positions) == (10, 11, 11)
    assert sent(end=End(Reset(1, "x"))).sent == 11


def test_the_end_comes_after_all_bytes_and_once() -> None:
    out = Outgoing()
    out.give(b"ab")
    out.end = End(Reset(1, "x"))
    assert out.take_end() == b""
    assert out.take(1) == b"a"
    assert out.take_end() == b""
    assert out.take(1) == b"b"
    assert out.take_end() == reset(1, "x")
    assert out.take_end() == b""
    assert sent(give=b"").take_end() == b""


@pytest.mark.parametrize(
    ("position", "held"), [(0, 10), (1, 9), (10, 0), (11, 0)], ids=["nothing", "one", "all bytes", "the end"]
)
def test_an_ack_drops_what_it_covers(position: int, held: int) -> None:
    out = sent(end=End(None))
    out.acknowledge(position)
    assert (out.acked, out.held) == (position, held)


def test_an_ack_of_what_was_not_sent_or_below_an_earlier_one_is_a_violation() -> None:
    out = Outgoing()
    out.give(b"abc")
    out.take(2)
    with pytest.raises(Violation):
        out.acknowledge(3)
    out.acknowledge(2)
    out.acknowledge(2)
    with pytest.raises(Violation):
        out.acknowledge(1)
    assert (out.acked, out.base) == (2, 2)


#: received and acked of a HELLO, after 10 bytes and the end were sent, and 4 were acknowledged.
CLAIMS = [
    (4, 4, None, b"efghij"),
    (7, 4, None, b"hij"),
    (7, 6, None, b"hij"),
    (10, 10, None, b""),
    (11, 4, None, b""),
    (11, 11, None, b""),
    (7, 3, Violation, b""),
    (3, 3, Violation, b""),
    (5, 6, Violation, b""),
    (12, 4, Violation, b""),
    (12, 12, Violation, b""),
]


@pytest.mark.parametrize(("received", "acked", "error", "rest"), CLAIMS)
def test_what_a_peer_may_claim_on_a_new_connection(
    received: int, acked: int, error: type[Exception] | None, rest: bytes
) -> None:
    out = sent(end=End(None))
    out.acknowledge(4)
    before = (out.acked, out.base, out.sent)
    if error is not None:
        with pytest.raises(error):
            out.go_on(received, acked)
        assert (out.acked, out.base, out.sent) == before
        return
    out.go_on(received, acked)
    assert out.take(100) == rest
    assert out.take_end() == (FINAL if received < 11 else b"")
    # Received is not acknowledged: that alone is dropped.
    assert (out.acked, out.held) == (acked, 10 - min(acked, 10))


def test_what_was_received_can_be_asked_for_again_until_it_is_acknowledged() -> None:
    out = sent()
    out.go_on(8, 2)
    out.go_on(5, 2)
    assert out.take(100) == b"fghij"


def test_a_lapse_is_a_gap_for_who_has_not_got_what_was_not_kept() -> None:
    out = sent(give=b"abcdef")
    out.lapsed = True
    out.drop_all()
    out.give(b"ghi")
    assert out.take(2) == b"gh"
    assert out.held == 1
    out.lapsed = False
    assert out.take(2) == b"i"
    assert (out.base, out.held) == (8, 1)
    with pytest.raises(Gap):
        out.go_on(7, 0)
    out.go_on(8, 0)
    assert out.take(2) == b"i"
    out.acknowledge(9)
    assert out.held == 0


def test_an_ack_below_what_is_kept_drops_nothing() -> None:
    out = sent(give=b"abcdef")
    out.lapsed = True
    out.drop_all()
    out.lapsed = False
    out.give(b"gh")
    out.take(2)
    out.acknowledge(3)
    assert (out.acked, out.base, out.held) == (3, 6, 2)
    out.acknowledge(7)
    assert (out.base, out.held) == (7, 1)


class Counted:
    """Kept elsewhere: in a pipe, say. Only what happens to it is written down."""

    def __init__(self) -> None:
        self.dropped = 0

    def append(self, data: bytes) -> None:
        raise AssertionError("no byte passes here")

    def drop(self, count: int) -> None:
        self.dropped += count

    def read(self, offset: int, most: int) -> bytes:
        return b"x" * min(most, 3)


def test_positions_are_counted_apart_from_where_the_bytes_live() -> None:
    kept = Counted()
    out = Outgoing(kept)
    out.put_elsewhere(100)
    assert (out.length, out.sent, out.most, out.held) == (100, 100, 100, 100)
    out.acknowledge(40)
    assert (kept.dropped, out.held) == (40, 60)
    out.go_on(95, 50)
    assert kept.dropped == 50
    assert [out.take(100), out.take(100), out.take(100)] == [b"xxx", b"xx", b""]


def test_what_goes_by_while_it_has_lapsed_is_not_kept_elsewhere_either() -> None:
    kept = Counted()
    out = Outgoing(kept)
    out.lapsed = True
    out.put_elsewhere(100)
    assert (out.base, out.sent, out.held, kept.dropped) == (100, 100, 0, 0)


# --- KeptBytes ------------------------------------------------------------------------------------


def test_large_pieces_are_kept_without_a_copy() -> None:
    kept = KeptBytes()
    piece = b"x" * 70_000
    kept.append(piece)
    assert kept.read(0, 100_000) is piece


def test_keystrokes_do_not_take_many_times_their_size() -> None:
    kept = KeptBytes()
    for _ in range(100_000):
        kept.append(b"k")
    held = sum(sys.getsizeof(piece) for piece in kept._pieces)
    assert held < 150_000


def test_small_pieces_between_large_ones_stay_within_bounds() -> None:
    kept = KeptBytes()
    for _ in range(1000):
        kept.append(b"k")
        kept.append(bytes(4096))
    held = sum(sys.getsizeof(piece) for piece in kept._pieces)
    assert held < 1000 * 4097 * 1.1


@pytest.mark.parametrize("seed", range(20))
def test_it_gives_what_it_was_given(seed: int) -> None:
    rng = random.Random(seed)
    kept, plain = KeptBytes(), b""
    offset = 0
    for _ in range(300):
        match rng.randrange(5):
            case 0 | 1:
                data = rng.randbytes(rng.choice([0, 1, 3, 100, 4095, 4096, 9000]))
                kept.append(data)
                plain += data
            case 2:
                count = rng.randint(0, min(len(plain), 20_000))
                kept.drop(count)
                plain = plain[count:]
                offset = max(0, offset - count)
            case 3:
                offset = rng.randint(0, len(plain))
            case 4:
                most = rng.randint(1, 12_000)
                assert kept.read(offset, most) == plain[offset : offset + most]
                offset = min(len(plain), offset + most)


def test_a_replay_of_many_pieces_takes_time_in_proportion() -> None:
    """A reader that begins at the front for every piece would look at two million."""

    class Seen(bytes):
        looks = 0

        def __len__(self) -> int:
            Seen.looks += 1
            return super().__len__()

    kept = KeptBytes()
    for _ in range(2000):
        kept.append(Seen(b"x" * 4096))
    Seen.looks = 0
    for number in range(2000):
        assert len(kept.read(number * 4096, 4096)) == 4096
    assert Seen.looks < 2000 * 10
