"""Which connection the server evicts when it is full: the oldest without a token, and never the newest."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http2tcp.errors import LimitReached, TooManyRequests
from http2tcp.server.limits import Failures, Group, Limits, Tunnels, Unauthenticated, evict_from, group
from http2tcp.server.policy import Token, digest
from tests.support.held import held

ONE, OTHER = ip_address("192.0.2.1"), ip_address("192.0.2.2")
ALICE = Token("alice", digest("a"), max_tunnels=2)


def crowd(**limits: int) -> tuple[Unauthenticated[str], list[str]]:
    evicted: list[str] = []
    return Unauthenticated(replace(Limits(), **limits), evicted.append), evicted


def examples() -> list[tuple[str, ...]]:
    """The rows of the table that explains `evict_from`."""
    rows = [line.split("|")[1:5] for line in (evict_from.__doc__ or "").splitlines() if line.strip().startswith("|")]
    return [tuple(cell.strip() for cell in row) for row in rows[2:]]


@pytest.mark.parametrize(("silent", "sent_something", "answered", "expected"), examples())
def test_the_oldest_of_this_group_is_evicted(silent: str, sent_something: str, answered: str, expected: str) -> None:
    assert evict_from(int(silent), int(sent_something), int(answered)) is Group(expected)


def test_the_table_has_an_example_of_every_group() -> None:
    assert {row[3] for row in examples()} == {each.value for each in Group}


@given(silent=st.integers(0, 99), sent_something=st.integers(0, 99), answered=st.integers(0, 99))
def test_a_group_of_one_is_spared_where_another_has_more(silent: int, sent_something: int, answered: int) -> None:
    sizes = dict(zip(Group, (silent, sent_something, answered), strict=True))
    evicted = sizes[evict_from(silent, sent_something, answered)]
    assert evicted > 1 or evicted == max(sizes.values())


def test_when_it_is_full_the_oldest_silent_connection_is_evicted_and_not_the_newcomer() -> None:
    pool, gone = crowd(max_unauthenticated=3)
    for name in "abc":
        pool.enter(name, None)
    pool.sent_something("a")
    pool.enter("d", None)
    assert gone == ["b"]
    assert len(pool) == 3
    pool.enter("e", None)
    pool.enter("f", None)
    assert gone == ["b", "c", "d"]
    assert pool.reached == 3


def test_where_all_others_have_sent_something_the_oldest_of_them_is_evicted() -> None:
    pool, gone = crowd(max_unauthenticated=2)
    for name in "ab":
        pool.enter(name, None)
        pool.sent_something(name)
    pool.enter("c", None)
    assert gone == ["a"]


def test_a_crowd_that_has_said_a_byte_each_does_not_make_newcomers_push_each_other_out() -> None:
    """A login is silent for as long as its request is on its way, and others come meanwhile."""
    pool, gone = crowd(max_unauthenticated=100)
    for number in range(100):
        pool.enter(f"slow {number}", None)
        pool.sent_something(f"slow {number}")
    pool.enter("login", None)
    for number in range(40):
        pool.enter(f"silent {number}", None)
    pool.sent_something("login")
    for number in range(40):
        pool.enter(f"another {number}", None)
        pool.sent_something(f"another {number}")
    assert "login" not in gone
    assert len(pool) == 100


def test_refused_connections_are_evicted_before_those_without_an_answer() -> None:
    pool, gone = crowd(max_unauthenticated=4)
    for name in "abcd":
        pool.enter(name, None)
    for name in "cb":
        pool.sent_something(name)
        pool.answered(name)
    pool.enter("e", None)
    assert gone == ["c"]
    # The last of them may read it while there are others.
    pool.enter("f", None)
    assert gone == ["c", "a"]
    pool.leave("b")
    assert len(pool) == 3


def test_out_of_descriptors_a_quarter_of_the_unauthenticated_connections_is_evicted() -> None:
    pool, gone = crowd()
    pool.give_way()
    for number in range(8):
        pool.enter(str(number), None)
    pool.sent_something("0")
    pool.give_way()
    assert gone == ["1", "2"]


def test_a_refusal_that_is_still_to_be_read_counts_although_the_token_was_accepted() -> None:
    pool, gone = crowd(max_unauthenticated=2, max_unauthenticated_per_address=1)
    for name in "abc":
        pool.enter(name, ONE if name == "a" else None)
        pool.leave(name)
        pool.answered(name)
    assert (gone, len(pool), pool.reached) == (["a"], 2, 1)
    pool.leave("b")
    pool.leave("c")
    assert len(pool) == 0


def test_where_there_is_one_place_the_newcomer_gets_it() -> None:
    pool, gone = crowd(max_unauthenticated=1)
    pool.enter("a", ONE)
    pool.answered("a")
    pool.enter("b", ONE)
    assert gone == ["a"]


@pytest.mark.parametrize(
    ("limits", "turns"),
    [
        (Limits(), 4),
        (Limits(max_unauthenticated=40), 8),
        (Limits(max_unauthenticated=8, max_unauthenticated_per_address=8), 4),
    ],
)
def test_a_newcomer_has_a_few_turns_before_others_evict_it(limits: Limits, turns: int) -> None:
    """However many come at once, and although all are of one address: it takes two to read a token."""
    gone: list[str] = []
    pool: Unauthenticated[str] = Unauthenticated(limits, gone.append)
    for number in range(limits.max_unauthenticated):
        pool.enter(f"slow {number}", None)
        pool.sent_something(f"slow {number}")
    pool.enter("login", ONE)
    for number in range(turns * pool.at_once() - 1):
        pool.enter(f"other {number}", ONE)
    assert "login" not in gone


def test_a_connection_that_has_left_makes_room() -> None:
    pool, gone = crowd(max_unauthenticated=1, max_unauthenticated_per_address=1)
    pool.enter("a", ONE)
    pool.leave("a")
    pool.leave("a")
    pool.enter("b", ONE)
    assert not gone
    assert len(pool) == 1


def test_one_address_has_its_share_and_takes_no_place_of_others() -> None:
    pool, gone = crowd(max_unauthenticated=100, max_unauthenticated_per_address=2)
    pool.enter("other", OTHER)
    for name in "abc":
        pool.enter(name, ONE)
    assert gone == ["a"]
    assert pool.reached_per_address == 1
    for name in ("front", "end", "peers"):
        pool.enter(name, None)
    assert gone == ["a"]


def test_a_whole_ipv6_site_counts_as_one_client() -> None:
    assert group(ip_address("2001:db8::1")) == group(ip_address("2001:db8::ffff:1"))
    assert group(ip_address("2001:db8::1")) != group(ip_address("2001:db8:0:1::1"))


def test_an_address_that_becomes_known_later_is_counted_then() -> None:
    pool, gone = crowd(max_unauthenticated_per_address=1)
    for name in "ab":
        pool.enter(name, None)
    pool.comes_from("a", ONE)
    pool.comes_from("b", ONE)
    assert gone == ["a"]
    pool.comes_from("a", OTHER)  # it is gone; nothing is counted
    pool.leave("b")
    assert len(pool) == 0


def test_tunnels_are_limited_in_all_and_for_each_token() -> None:
    tunnels = Tunnels(replace(Limits(), max_tunnels=3))
    tunnels.enter(ALICE)
    tunnels.enter(ALICE)
    with pytest.raises(TooManyRequests, match="its 2 tunnels"):
        tunnels.enter(ALICE)
    tunnels.enter(None)
    with pytest.raises(LimitReached):
        tunnels.enter(None)
    assert (len(tunnels), tunnels.reached, tunnels.reached_per_token) == (3, 1, 1)
    tunnels.leave(ALICE)
    tunnels.enter(ALICE)


def test_a_token_s_own_number_of_tunnels_takes_the_place_of_the_one_for_all_tokens() -> None:
    tunnels = Tunnels(replace(Limits(), max_tunnels_per_token=1))
    bob, unnamed = Token("bob", digest("b")), Token("", digest("c"))
    for token in (ALICE, ALICE, bob, unnamed):
        tunnels.enter(token)
    for token in (ALICE, bob, unnamed):
        with pytest.raises(TooManyRequests):
            tunnels.enter(token)
    # Who needs no token has none to count by.
    tunnels.enter(None)
    tunnels.enter(None)


def test_wrong_tokens_are_counted_by_address_and_forgiven_with_time() -> None:
    failures = Failures(replace(Limits(), max_failures_per_minute=3))
    assert [failures.failed(ONE, 0.0) for _ in range(5)] == [False, False, False, True, True]
    assert not failures.failed(OTHER, 0.0)
    assert not failures.failed(ONE, 20.0)
    assert failures.failed(ONE, 20.0)
    assert not failures.failed(ONE, 1000.0)
    assert failures.reached == 3


def test_nobody_is_told_to_wait_for_the_wrong_tokens_of_others_behind_the_same_front_end() -> None:
    failures = Failures(Limits(max_failures_per_minute=1))
    assert not any(failures.failed(None, 0.0) for _ in range(100))


def test_the_addresses_of_many_failures_do_not_fill_the_memory() -> None:
    failures = Failures(Limits())
    for number in range(10_000):
        failures.failed(ip_address(number), 0.0)
    full = held(failures)
    for number in range(10_000, 20_000):
        failures.failed(ip_address(number), 0.0)
    assert held(failures).objects <= full.objects + 10


@pytest.mark.parametrize("descriptors", [20, 256, 1024, 20_000, 1_000_000])
def test_what_is_allowed_at_once_fits_into_the_descriptors(descriptors: int) -> None:
    limits = Limits(max_tunnels=10_000_000).within(descriptors)
    assert limits.max_tunnels is not None
    assert limits.max_tunnels > 0
    assert limits.max_unauthenticated > 0
    if descriptors >= 256:
        # Each pipe has two; further attempts of dials have 32; look-ups, listeners and the log have what is left.
        pipes = min(64, descriptors // 16)
        assert (
            descriptors / 2 < limits.max_tunnels * 2 + limits.max_unauthenticated + pipes * 2 + 32 + 32 <= descriptors
        )


def test_a_lower_limit_stays() -> None:
    assert Limits(max_tunnels=5, max_unauthenticated=7).within(20_000) == Limits(max_tunnels=5, max_unauthenticated=7)


# --- one of several tokens ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "most"), [(1, 1), (2, 1), (3, 2), (7, 6), (8, 7), (9, 7), (16, 14), (100, 87), (256, 224), (30000, 26250)]
)
def test_one_of_several_tokens_has_all_but_an_eighth_of_the_tunnels_and_another_gets_in(total: int, most: int) -> None:
    alice, bob = Token("alice", digest("a")), Token("bob", digest("b"))
    tunnels = Tunnels(Limits(max_tunnels=total), tokens=2)
    for _ in range(most):
        tunnels.enter(alice)
    assert tunnels.per_token == most
    if most < total:
        with pytest.raises(TooManyRequests, match=f"has its {most} tunnels? open already; .*kept for other tokens"):
            tunnels.enter(alice)
        assert (tunnels.reached, tunnels.reached_per_token) == (0, 1)
        tunnels.enter(bob)


@pytest.mark.parametrize(("tokens", "token"), [(1, Token("alice", digest("a"))), (0, None)])
def test_the_only_token_and_everybody_where_there_is_none_may_take_all(tokens: int, token: Token | None) -> None:
    tunnels = Tunnels(Limits(max_tunnels=16), tokens=tokens)
    for _ in range(16):
        tunnels.enter(token)
    with pytest.raises(LimitReached):
        tunnels.enter(token)


@pytest.mark.parametrize(("given", "own", "most"), [(3, None, 3), (16, None, 16), (None, 2, 2), (3, 16, 16)])
def test_a_number_that_was_given_takes_the_share_s_place(given: int | None, own: int | None, most: int) -> None:
    alice = Token("alice", digest("a"), max_tunnels=own)
    tunnels = Tunnels(Limits(max_tunnels=20, max_tunnels_per_token=given), tokens=2)
    for _ in range(most):
        tunnels.enter(alice)
    with pytest.raises(TooManyRequests, match=r"open already$"):
        tunnels.enter(alice)


def test_the_share_follows_the_number_of_tokens() -> None:
    alice = Token("alice", digest("a"))
    tunnels = Tunnels(Limits(max_tunnels=8), tokens=1)
    for _ in range(8):
        tunnels.enter(alice)
    tunnels.tokens = 2
    tunnels.leave(alice)
    with pytest.raises(TooManyRequests):
        tunnels.enter(alice)
    tunnels.tokens = 1
    tunnels.enter(alice)
