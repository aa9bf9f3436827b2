"""Names to connections: Happy Eyeballs, the check of every address, and a resolver that cannot be trusted."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.address import IPAddress, TCPAddress, UnixAddress
from http2tcp.errors import DialFailure
from http2tcp.net import dial as dial_module
from http2tcp.net.dial import (
    Candidate,
    DialError,
    LookUpLimiter,
    dial,
    dial_first,
    interleave,
    resolve,
)
from http2tcp.server.policy import forbidden


class Resolver(trio.abc.HostnameResolver):
    """Answers from a table. A list of lists answers differently each time."""

    def __init__(self, **names: list[str] | list[list[str]]) -> None:
        self.names = {name.replace("_", "."): addresses for name, addresses in names.items()}
        #: The names whose IPv4 addresses were asked for; IPv6 is asked for beside that.
        self.asked: list[str] = []

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else host
        if family == socket.AF_INET:
            self.asked.append(name)
        addresses: list[Any] = self.names.get(name, [])
        if addresses and isinstance(addresses[0], list):
            addresses = addresses.pop(0) if len(addresses) > 1 and family == socket.AF_INET else addresses[0]
        found = [each for each in (candidate(address, port) for address in addresses) if family in (0, each.family)]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(c.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", c.sockaddr) for c in found]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


class FakeSocketStream:
    """What a dial gives; it knows whether it was closed."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


TOGETHER = -1.0


class Hosts:
    """A network in which each host accepts or fails after a while."""

    def __init__(self) -> None:
        self.behaviour: dict[str, tuple[float, int]] = {}
        self.together = trio.Event()
        self.tried: list[tuple[float, str]] = []
        self.made: list[FakeSocketStream] = []
        self.on_connected: Callable[[], None] = lambda: None

    def accepts(self, host: str, after: float = 0) -> None:
        self.behaviour[host] = after, 0

    def fails(self, host: str, code: int, after: float = 0) -> None:
        self.behaviour[host] = after, code

    async def connect(self, candidate: Candidate) -> FakeSocketStream:
        host = candidate.sockaddr[0]
        self.tried.append((trio.current_time(), host))
        after, code = self.behaviour.get(host, (float("inf"), 0))
        await (self.together.wait() if after == TOGETHER else trio.sleep(after))
        if code:
            raise OSError(code, os.strerror(code))
        self.made.append(FakeSocketStream(host))
        self.on_connected()
        return self.made[-1]


def candidate(host: str, port: int = 22) -> Candidate:
    if ":" in host:
        return Candidate(socket.AF_INET6, (host, port, 0, 0))
    return Candidate(socket.AF_INET, (host, port))


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Hosts:
    network = Hosts()
    monkeypatch.setattr(dial_module, "_connect", network.connect)
    return network


def use(resolver: trio.abc.HostnameResolver) -> None:
    """Until the end of the trio run."""
    trio.socket.set_custom_hostname_resolver(resolver)


# --- which address first ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "woven"),
    [
        (["::1", "::2", "::3", "10.0.0.1"], ["::1", "10.0.0.1", "::2", "::3"]),
        (["10.0.0.1", "10.0.0.2", "::1", "::2"], ["10.0.0.1", "::1", "10.0.0.2", "::2"]),
        (["10.0.0.1", "::1", "::2", "::3"], ["10.0.0.1", "::1", "::2", "::3"]),
        (["10.0.0.1"], ["10.0.0.1"]),
    ],
)
def test_a_broken_family_costs_one_delay(given: list[str], woven: list[str]) -> None:
    assert [c.sockaddr[0] for c in interleave([candidate(host) for host in given])] == woven


async def test_the_next_address_is_tried_after_a_quarter_of_a_second(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    hosts.accepts("10.0.0.3", after=0.1)
    dialled = await dial_first([candidate(f"10.0.0.{n}") for n in (1, 2, 3, 4)])
    assert dialled.address == TCPAddress("10.0.0.3", 22)
    assert hosts.tried == [(0, "10.0.0.1"), (0.25, "10.0.0.2"), (0.5, "10.0.0.3")]
    assert trio.current_time() == pytest.approx(0.6)


async def test_the_next_address_is_tried_at_once_after_a_failure(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    hosts.fails("::1", errno.ENETUNREACH)
    hosts.accepts("10.0.0.1")
    dialled = await dial_first([candidate("::1"), candidate("10.0.0.1")])
    assert dialled.address == TCPAddress("10.0.0.1", 22)
    assert trio.current_time() == 0


async def test_names_with_many_addresses_that_do_not_answer_take_few_descriptors_more_than_others(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever has a name server of their own could otherwise take all that the server has."""
    under_way = most = 0

    async def connect(candidate: Candidate) -> FakeSocketStream:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            if candidate.sockaddr[0] == "10.2.0.1":
                raise OSError(errno.ECONNREFUSED, "refused")
            if candidate.sockaddr[0] != "10.2.0.2":
                await trio.sleep_forever()
        finally:
            under_way -= 1
        return FakeSocketStream("10.2.0.2")

    monkeypatch.setattr(dial_module, "_connect", connect)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(dial_first, [candidate(f"10.1.0.{n}") for n in range(100)])
        await trio.sleep(10)
        assert most == 20 + 32
        # One address after the other, it needs no more than anybody.
        with trio.fail_after(1):
            await dial_first([candidate("10.2.0.1"), candidate("10.2.0.2")])
        nursery.cancel_scope.cancel()
    assert under_way == 0


async def test_a_slow_first_address_still_wins_when_the_others_fail(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    hosts.accepts("10.0.0.1", after=3)
    hosts.fails("10.0.0.2", errno.ECONNREFUSED)
    dialled = await dial_first([candidate("10.0.0.1"), candidate("10.0.0.2")])
    assert dialled.address == TCPAddress("10.0.0.1", 22)
    assert trio.current_time() == pytest.approx(3)


async def test_of_two_winners_in_one_moment_the_second_is_closed(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    hosts.accepts("10.0.0.1", TOGETHER)
    hosts.accepts("10.0.0.2", TOGETHER)
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            await trio.sleep(1)
            hosts.together.set()

        nursery.start_soon(accept)
        dialled = await dial_first([candidate("10.0.0.1"), candidate("10.0.0.2")])
    assert len(hosts.made) == 2
    winner: object = dialled.stream
    assert [stream.aborted for stream in hosts.made if stream is not winner] == [True]
    assert [stream.aborted for stream in hosts.made if stream is winner] == [False]


async def test_a_dial_that_is_cancelled_as_it_connects_leaves_no_connection(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    hosts.accepts("10.0.0.2", after=0.1)
    with trio.CancelScope() as gone:
        hosts.on_connected = gone.cancel
        await dial_first([candidate("10.0.0.1"), candidate("10.0.0.2"), candidate("10.0.0.3")])
    assert gone.cancelled_caught
    assert [stream.aborted for stream in hosts.made] == [True]


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([errno.ENETUNREACH, errno.ECONNREFUSED], DialFailure.REFUSED),
        ([errno.ECONNREFUSED, errno.EHOSTUNREACH], DialFailure.REFUSED),
        ([errno.ENETUNREACH, errno.ETIMEDOUT], DialFailure.TIMEOUT),
        ([errno.EADDRNOTAVAIL, errno.EACCES], DialFailure.OTHER),
        ([errno.ECONNREFUSED, errno.EMFILE], DialFailure.EXHAUSTED),
        ([errno.EAFNOSUPPORT, errno.ENETUNREACH], DialFailure.UNROUTABLE),
    ],
)
async def test_of_several_failures_the_most_telling_is_told(
    codes: list[int], told: DialFailure, hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    for number, code in enumerate(codes):
        hosts.fails(f"10.0.0.{number}", code)
    with pytest.raises(DialError) as caught:
        await dial_first([candidate(f"10.0.0.{number}") for number in range(len(codes))])
    assert caught.value.failure is told
    assert "10.0.0" not in str(caught.value)


async def test_a_host_that_does_not_answer_is_left_at_the_deadline(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(10):
            await dial_first([candidate("10.0.0.1"), candidate("10.0.0.2")])
    assert trio.current_time() == pytest.approx(10)


# --- one look-up for each family --------------------------------------------------------------

V4, V6 = socket.AF_INET, socket.AF_INET6
NEVER = float("inf")
Answer = tuple[float, list[str] | int]
NO_NAME: Answer = (0, socket.EAI_NONAME)


class Families(trio.abc.HostnameResolver):
    """Answers for one name, family by family: after so many seconds, with addresses or an error."""

    def __init__(self, ipv4: Answer, ipv6: Answer) -> None:
        self._answers = {V4: ipv4, V6: ipv6}

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[Any]:
        after, answer = self._answers[socket.AddressFamily(family)]
        await trio.sleep(after)
        if answer == errno.EMFILE:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if isinstance(answer, int):
            raise socket.gaierror(answer, "failed")
        return [(family, type, 6, "", candidate(address, port).sockaddr) for address in answer]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Whether this machine has a route for IPv6; at first it has."""

    def are(ipv6: bool) -> None:
        monkeypatch.setattr(dial_module, "prefers_ipv6", lambda sockaddrs: ipv6 and bool(sockaddrs))

    are(True)
    return are


SITE = TCPAddress("site.example", 443)
A4, A6 = "192.0.2.1", "2001:db8::1"


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "tried"),
    [
        # The preferred family is dialled as soon as it is known, and the other joins the race.
        ((3, [A4]), (0.1, [A6]), [(0.1, A6), (3, A4)]),
        ((0.1, [A4]), (0.1, [A6]), [(0.1, A6), (0.35, A4)]),
        # The other family waits 50 ms for it.
        ((0.1, [A4]), (0.12, [A6]), [(0.12, A6), (0.37, A4)]),
        ((0.1, [A4]), (0.2, [A6]), [(0.15, A4), (0.4, A6)]),
        ((0.1, [A4, "192.0.2.2"]), (0.2, [A6]), [(0.15, A4), (0.4, A6), (0.65, "192.0.2.2")]),
        # One family that is never answered costs nothing.
        ((0.1, [A4]), (NEVER, [A6]), [(0.15, A4)]),
        ((NEVER, [A4]), (0.1, [A6]), [(0.1, A6)]),
        # One that fails costs nothing either, and the wait for it ends with it.
        ((0.1, [A4]), (0.11, socket.EAI_NONAME), [(0.11, A4)]),
        ((0.1, [A4]), (0, socket.EAI_AGAIN), [(0.1, A4)]),
        ((0, socket.EAI_AGAIN), (2, [A6]), [(2, A6)]),
        ((2, [A4]), (0, errno.EMFILE), [(2, A4)]),
    ],
)
async def test_a_name_is_dialled_when_the_first_family_is_known(
    ipv4: Answer,
    ipv6: Answer,
    tried: list[tuple[float, str]],
    hosts: Hosts,
    routes: object,
    autojump_clock: trio.testing.MockClock,
) -> None:
    use(Families(ipv4, ipv6))
    known: list[str] = []
    with trio.move_on_after(9):
        await dial(SITE, resolved=lambda candidates: known.extend(each.sockaddr[0] for each in candidates))
    assert [host for _, host in hosts.tried] == [host for _, host in tried]
    assert [when for when, _ in hosts.tried] == pytest.approx([when for when, _ in tried])
    assert known[0] == tried[0][1]


async def test_where_there_is_no_route_for_ipv6_it_comes_second(
    hosts: Hosts, routes: Callable[[bool], None], autojump_clock: trio.testing.MockClock
) -> None:
    routes(False)
    use(Families((0.03, [A4]), (0, [A6])))
    with trio.move_on_after(9):
        await dial(SITE)
    assert [host for _, host in hosts.tried] == [A4, A6]
    assert hosts.tried[0][0] == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "after", "failure", "words"),
    [
        (NO_NAME, NO_NAME, 0, DialFailure.NAME, "the name has no address"),
        (NO_NAME, (2, socket.EAI_AGAIN), 2, DialFailure.NAME_TEMPORARY, "the name server did not answer"),
        ((2, socket.EAI_FAIL), NO_NAME, 2, DialFailure.NAME_TEMPORARY, "the name server did not answer"),
        ((0, errno.EMFILE), (0, socket.EAI_AGAIN), 0, DialFailure.EXHAUSTED, "too many open files"),
        ((0, []), (0, []), 0, DialFailure.NAME, "the name has no address"),
    ],
)
async def test_two_look_ups_that_fail_are_one_failure(
    ipv4: Answer,
    ipv6: Answer,
    after: float,
    failure: DialFailure,
    words: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    for ask in (dial, resolve):
        began = trio.current_time()
        use(Families(ipv4, ipv6))
        with pytest.raises(DialError) as caught:
            await ask(SITE)
        assert trio.current_time() - began == pytest.approx(after)
        assert caught.value.failure is failure
        assert words in str(caught.value)
        trio.socket.set_custom_hostname_resolver(None)


async def test_an_address_that_refuses_is_told_soon_though_the_other_family_is_never_answered(
    hosts: Hosts, routes: object, autojump_clock: trio.testing.MockClock
) -> None:
    use(Families((0, [A4]), (NEVER, [])))
    hosts.fails(A4, errno.ECONNREFUSED, after=0.5)
    with pytest.raises(DialError, match="connection refused"):
        await dial(SITE)
    assert trio.current_time() == pytest.approx(0.05 + 0.5 + 1)


async def test_an_address_that_refuses_waits_for_the_other_family(
    hosts: Hosts, routes: object, autojump_clock: trio.testing.MockClock
) -> None:
    use(Families((0, [A4]), (0.9, [A6])))
    hosts.fails(A4, errno.ECONNREFUSED)
    hosts.accepts(A6)
    dialled = await dial(SITE)
    assert dialled.address == TCPAddress(A6, 443)
    assert trio.current_time() == pytest.approx(0.9)


@pytest.mark.parametrize("late", [0.9, NEVER])
async def test_every_address_of_the_late_family_is_judged_too(
    late: float, hosts: Hosts, routes: object, autojump_clock: trio.testing.MockClock
) -> None:
    use(Families((0, ["169.254.169.254"]), (late, ["fd00:ec2::254", A6])))
    hosts.accepts(A6)

    def permits(address: IPAddress) -> bool:
        return allowed(address) and address != ip_address(A6)

    with pytest.raises(DialError) as caught:
        await dial(SITE, permits)
    assert caught.value.failure is DialFailure.PROHIBITED
    assert hosts.tried == []
    assert trio.current_time() == pytest.approx(min(late, 1.05))
    if late < NEVER:
        use(Families((0, ["169.254.169.254"]), (late, ["fd00:ec2::254", A6])))
        assert (await dial(SITE, allowed)).address == TCPAddress(A6, 443)
    assert [host for _, host in hosts.tried] == [A6] * (late < NEVER)


async def test_what_a_callback_raises_is_raised_as_it_is(
    hosts: Hosts, routes: object, autojump_clock: trio.testing.MockClock
) -> None:
    def report(candidates: object) -> None:
        raise BrokenPipeError

    use(Families((0, [A4]), (NEVER, [])))
    with pytest.raises(BrokenPipeError):
        await dial(SITE, resolved=report)
    assert hosts.tried == []


async def test_neither_family_answered_waits_for_the_deadline(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    use(Families((NEVER, []), (0, socket.EAI_NONAME)))
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(10):
            await dial(SITE)
    assert hosts.tried == []


async def test_a_list_of_addresses_has_both_families_if_they_come_together(
    routes: object, autojump_clock: trio.testing.MockClock
) -> None:
    for ipv6, patience, found in (
        (0.04, 0.05, [A6, A4]),
        (0.5, 0.05, [A4]),
        (0.5, 1, [A4, A6]),
        (NEVER, 1, [A4]),
    ):
        use(Families((0, [A4]), (ipv6, [A6])))
        assert [each.sockaddr[0] for each in await resolve(SITE, patience=patience)] == found
        trio.socket.set_custom_hostname_resolver(None)


async def test_look_ups_take_their_places_one_each_and_ipv4_is_never_behind_ipv6(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one place for all look-ups of an owner, a resolver that drops IPv6 holds up no first name."""
    asked: list[int] = []
    answer = threading.Event()

    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        asked.append(family)
        if family == V6:
            answer.wait(10)
        return [(family, socket.SOCK_STREAM, 6, "", candidate("127.0.0.1", port).sockaddr)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    limiter = LookUpLimiter(1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            with trio.fail_after(5):
                dialled = await dial(TCPAddress("site.example", listener.getsockname()[1]), limiter=limiter)
                dialled.stream.abort()
            # The connection is made, and the place of the other look-up is not free before its thread is.
            assert not limiter.idle
        finally:
            answer.set()
    with trio.fail_after(5):
        while not limiter.idle:
            await trio.sleep(0.001)
    assert asked == [V4, V6]


# --- names that lead astray -------------------------------------------------------------------


def allowed(address: IPAddress) -> bool:
    return not forbidden(address)


async def test_the_allowed_addresses_of_a_name_are_dialled_and_the_forbidden_are_not(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    use(
        Resolver(
            mixed_example=["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "10.0.0.9", "64:ff9b::a9fe:a9fe"]
        )
    )
    hosts.accepts("10.0.0.9", after=5)
    dialled = await dial(TCPAddress("mixed.example", 22), allowed)
    assert dialled.address == TCPAddress("10.0.0.9", 22)
    assert [host for _, host in hosts.tried] == ["10.0.0.9"]


async def test_of_a_name_with_thousands_of_addresses_only_as_many_are_judged_as_could_be_dialled(hosts: Hosts) -> None:
    """Against the rules of a large file, thousands would hold up every tunnel for seconds."""
    use(Resolver(crowd_example=[f"10.0.{number // 250}.{number % 250 + 1}" for number in range(4000)]))
    judged: list[IPAddress] = []

    def permits(address: IPAddress) -> bool:
        judged.append(address)
        return False

    with pytest.raises(DialError) as caught:
        await dial(TCPAddress("crowd.example", 22), permits)
    assert caught.value.failure is DialFailure.PROHIBITED
    assert 30 <= len(judged) <= 64


async def test_a_name_with_forbidden_addresses_alone_is_not_dialled_at_all(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    use(Resolver(metadata_example=["169.254.169.254", "fd00:ec2::254", "2002:a9fe:a9fe::"]))
    with pytest.raises(DialError) as caught:
        await dial(TCPAddress("metadata.example", 80), allowed)
    assert caught.value.failure is DialFailure.PROHIBITED
    assert hosts.tried == []


async def test_a_name_that_answers_differently_the_second_time_is_asked_once(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    resolver = Resolver(rebinding_example=[["10.0.0.9"], ["169.254.169.254"]])
    use(resolver)
    hosts.accepts("10.0.0.9")
    judged = []

    def permits(address: IPAddress) -> bool:
        judged.append(address)
        return allowed(address)

    dialled = await dial(TCPAddress("rebinding.example", 80), permits)
    assert dialled.address == TCPAddress("10.0.0.9", 80)
    assert resolver.asked == ["rebinding.example"]
    assert judged == [ip_address("10.0.0.9")]
    with pytest.raises(DialError) as caught:
        await dial(TCPAddress("rebinding.example", 80), permits)
    assert caught.value.failure is DialFailure.PROHIBITED
    assert [host for _, host in hosts.tried] == ["10.0.0.9"]


async def test_a_scoped_link_local_address_is_judged_without_its_scope(
    hosts: Hosts, autojump_clock: trio.testing.MockClock
) -> None:
    use(Resolver(printer_example=["fe80::1%eth0"]))
    with pytest.raises(DialError) as caught:
        await dial(TCPAddress("printer.example", 631), allowed)
    assert caught.value.failure is DialFailure.PROHIBITED


@pytest.mark.parametrize("spelling", ["2852039166", "0xa9fea9fe", "169.16689662", "0251.0376.0251.0376"])
async def test_the_metadata_address_is_recognised_in_the_spellings_that_the_system_takes(
    spelling: str, hosts: Hosts
) -> None:
    """The real resolver reads these as 169.254.169.254; what it says is what is judged."""
    with pytest.raises(DialError) as caught:
        await dial(TCPAddress(spelling, 80), allowed)
    assert caught.value.failure is DialFailure.PROHIBITED
    assert hosts.tried == []


async def test_a_name_that_does_not_exist_is_told_from_a_name_server_that_is_silent(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Broken(Resolver):
        async def getaddrinfo(self, host: Any, *rest: Any, **more: Any) -> list[Any]:
            await trio.lowlevel.checkpoint()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    use(Resolver())
    with pytest.raises(DialError) as caught:
        await resolve(TCPAddress("nowhere.example", 22))
    assert caught.value.failure is DialFailure.NAME
    use(Broken())
    with pytest.raises(DialError) as caught:
        await resolve(TCPAddress("nowhere.example", 22))
    assert caught.value.failure is DialFailure.NAME_TEMPORARY


async def test_a_name_that_cannot_be_looked_up_for_want_of_descriptors_is_not_said_to_have_no_address() -> None:
    class Exhausted(Resolver):
        async def getaddrinfo(self, host: Any, *rest: Any, **more: Any) -> list[Any]:
            await trio.lowlevel.checkpoint()
            raise OSError(errno.EMFILE, "Too many open files")

    use(Exhausted())
    with pytest.raises(DialError, match="too many open files") as caught:
        await resolve(TCPAddress("db.example", 22))
    assert caught.value.failure is DialFailure.EXHAUSTED


@pytest.mark.parametrize("host", ["a" * 64, "x." * 126 + "x", "..", "a\0b", "\udcff"])
async def test_a_name_that_no_resolver_takes_is_a_name_without_an_address(host: str) -> None:
    with pytest.raises(DialError) as caught:
        await resolve(TCPAddress(host, 22))
    assert caught.value.failure in (DialFailure.NAME, DialFailure.NAME_TEMPORARY)


async def test_a_unix_socket_that_is_not_there_is_a_failure_with_words(tmp_path: Any) -> None:
    with pytest.raises(DialError) as caught:
        await dial(UnixAddress(str(tmp_path / "nobody.sock")))
    assert str(caught.value) == "no such file or directory"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_a_port_that_nobody_listens_on_is_not_reached_by_connecting_to_oneself(
    family: socket.AddressFamily, host: str
) -> None:
    """The kernel chooses the very port that is dialled once in some ten thousand times (RFC 9293, section 3.5)."""

    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 0))
    where = sock.getsockname()
    sock.setblocking(False)
    sock.connect_ex(where)

    class HasBegun:
        def take(self) -> socket.socket:
            return sock

    with pytest.raises(OSError, match="Connection refused") as caught:
        await dial_module._connect(Candidate(family, where, HasBegun()))  # type: ignore[arg-type]
    assert caught.value.errno == errno.ECONNREFUSED
    # And nothing keeps the port from who is to listen there.
    with socket.socket(family) as listener:
        listener.bind(where)
