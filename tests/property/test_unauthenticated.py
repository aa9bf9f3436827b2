"""Whatever connections do, in any order: the pool holds no more than its limits, and forgets those that left."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.server.limits import Limits, Unauthenticated

ADDRESSES = [None, ip_address("192.0.2.1"), ip_address("2001:db8::1"), ip_address("2001:db8::2")]

numbers = st.integers(0, 7)
steps = st.one_of(
    st.tuples(st.just("enter"), numbers, st.sampled_from(ADDRESSES)),
    st.tuples(st.just("comes_from"), numbers, st.sampled_from(ADDRESSES)),
    st.tuples(st.sampled_from(["sent_something", "answered", "leave"]), numbers),
    st.tuples(st.just("give_way")),
)


@given(st.integers(1, 4), st.integers(1, 3), st.lists(steps, min_size=30, max_size=80))
def test_the_pool_holds_no_more_than_its_limits_and_forgets_connections_that_left(
    most: int, share: int, taken: list[tuple[object, ...]]
) -> None:
    evicted: list[int] = []
    pool: Unauthenticated[int] = Unauthenticated(
        Limits(max_unauthenticated=most, max_unauthenticated_per_address=share), evicted.append
    )
    # Each number is a connection of its own every time that it enters.
    now: dict[int, int] = {}
    born: list[int] = []
    inside: set[int] = set()
    for what, *rest in taken:
        gone = len(evicted)
        if what == "give_way":
            pool.give_way()
        else:
            number, *address = rest
            assert isinstance(number, int)
            if what == "enter":
                if now.get(number) in inside:
                    continue
                now[number] = len(born)
                born.append(now[number])
                inside.add(now[number])
            elif number not in now:
                continue
            elif what == "answered":
                # One whose token was accepted has left, and comes back.
                inside.add(now[number])
            elif what == "leave":
                inside.discard(now[number])
            getattr(pool, str(what))(now[number], *address)
        for each in evicted[gone:]:
            assert each in inside, "it was not there, or had gone already"
            inside.discard(each)
        assert len(pool) == len(inside) <= most
        assert all(len(same) <= share for same in pool._of_address.values())
        assert {each for same in pool._of_address.values() for each in same} <= inside
    for each in born:
        pool.leave(each)
    assert len(pool) == 0
    assert not pool._of_address
