"""Whose address the server counts and records: the peer's, or that which a trusted proxy names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing

from http2tcp.address import TCPAddress
from http2tcp.server.connection import Connection
from http2tcp.server.limits import Limits
from http2tcp.server.metrics import families
from http2tcp.server.prometheus import exposition
from http2tcp.server.settings import ServerSettings, parse_trusted_proxy
from http2tcp.server.state import State
from tests.support.loopback import TOKEN, Answer, asking, parse_answer
from tests.support.memory_stream import memory_pair
from tests.support.proxy_header import INET, INET6, LOCAL, UNIX, inet, inet6, v1, v2

Words = Callable[[], tuple[str, ...]]

FRONT = TCPAddress("10.0.0.5", 4711)
STRANGER = TCPAddress("198.51.100.1", 4711)
# Nothing has to be dialled for an answer to this one.
CLOSED_TO_ALL = "169.254.169.254:80"
ASKED = asking(CLOSED_TO_ALL)


def serving(*trusted: str, **settings: Any) -> State:
    """A server that trusts these proxies."""
    proxies = [parse_trusted_proxy(text) for text in trusted]
    return State(ServerSettings(tokens=(TOKEN,), trusted_proxies=proxies, **settings))


async def send(
    server: State, sent: bytes, *, peer: TCPAddress | None = FRONT, whole: bool = True, ends: bool = True
) -> bytes:
    """What comes back to a peer that sends this, in one piece or byte by byte, and then waits or ends."""
    ours, theirs = memory_pair()
    connection = Connection(server, ours, peer)  # type: ignore[arg-type]
    received = b""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        try:
            for size in [len(sent)] if whole else [1] * len(sent):
                await theirs.send_all(sent[:size])
                sent = sent[size:]
            if ends:
                await theirs.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it has read enough
        try:
            while data := await theirs.receive_some():
                received += data
        except trio.BrokenResourceError:
            pass
    return received


async def ask(server: State, sent: bytes, **how: Any) -> Answer:
    return parse_answer(await send(server, sent, **how))


@pytest.fixture
def client(caplog: pytest.LogCaptureFixture) -> Words:
    """The words `client`, `port` and `via` of the one record."""
    caplog.set_level(logging.INFO)

    def words() -> tuple[str, ...]:
        (record,) = [record.getMessage() for record in caplog.records]
        pairs = dict(word.partition("=")[::2] for word in record.split(" "))
        return tuple(pairs[key] for key in ("client", "port", "via") if key in pairs)

    return words


def forwarded(*fields: str) -> bytes:
    return asking(CLOSED_TO_ALL, *fields)


# --- the header field -------------------------------------------------------------------------


async def test_a_trusted_front_end_names_the_client(client: Words) -> None:
    answer = await ask(serving("10.0.0.0/24"), forwarded("X-Forwarded-For: 203.0.113.7"))
    assert answer.status == 403
    assert client() == ("203.0.113.7", "10.0.0.5:4711")


async def test_a_peer_on_a_unix_socket_is_believed_where_unix_is_trusted(client: Words) -> None:
    await ask(serving("unix"), forwarded("X-Forwarded-For: 203.0.113.7"), peer=None)
    assert client() == ("203.0.113.7", "unix")


@pytest.mark.parametrize("trusted", [(), ("127.0.0.1", "::1", "unix"), ("10.0.0.4",), ("::/0",)])
async def test_without_trust_the_header_is_ignored(client: Words, trusted: Sequence[str]) -> None:
    await ask(serving(*trusted), forwarded("X-Forwarded-For: 203.0.113.7", "X-Forwarded-For: 10.0.0.4"))
    assert client() == ("10.0.0.5", "4711")


async def test_at_the_unix_socket_the_header_is_ignored_where_only_networks_are_trusted(client: Words) -> None:
    await ask(serving("0.0.0.0/0", "::/0"), forwarded("X-Forwarded-For: 203.0.113.7"), peer=None)
    assert client() == ("unix",)


@pytest.mark.parametrize(
    "fields",
    [
        # nginx's $proxy_add_x_forwarded_for, after a client that made up its own.
        ["X-Forwarded-For: 6.6.6.6, 10.0.0.4, 203.0.113.7"],
        ["X-Forwarded-For: 10.0.0.4", "X-Forwarded-For: 203.0.113.7"],
        ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 203.0.113.7, 10.0.0.4"],
        ["X-Real-IP: 6.6.6.6", "X-Forwarded-For: 203.0.113.7", "Forwarded: for=6.6.6.6", "Client-IP: 6.6.6.6"],
    ],
)
async def test_a_client_cannot_pass_for_another(client: Words, fields: list[str]) -> None:
    await ask(serving("10.0.0.0/24"), forwarded(*fields))
    assert client()[0] == "203.0.113.7"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Real-IP", "203.0.113.7"),
        ("Forwarded", 'for=6.6.6.6, for="203.0.113.7:80";proto=https'),
        ("cf-ip", "203.0.113.7"),
    ],
)
async def test_the_header_can_be_another_and_then_the_usual_one_is_ignored(
    client: Words, name: str, value: str
) -> None:
    server = serving("10.0.0.0/24", forwarded_header=name)
    await ask(server, forwarded("X-Forwarded-For: 6.6.6.6", f"{name}: {value}"))
    assert client()[0] == "203.0.113.7"


@pytest.mark.parametrize("value", ["", "unknown", "client=6.6.6.6", "6.6.6.6 session=0", "\x80\xff"])
async def test_what_is_no_address_is_never_in_the_log(
    client: Words, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    sent = forwarded("X-Forwarded-For: FIELD").replace(b"FIELD", value.encode("latin-1"))
    await ask(serving("10.0.0.0/24"), sent)
    assert client() == ("10.0.0.5", "4711")
    assert "6.6.6.6" not in caplog.text


async def test_ten_kilobytes_of_hops_are_no_trouble(client: Words) -> None:
    await ask(serving("10.0.0.0/24"), forwarded("X-Forwarded-For: 203.0.113.7" + ", 10.0.0.4" * 1000))
    assert client()[0] == "203.0.113.7"


async def test_a_request_that_is_refused_before_it_is_whole_is_the_front_ends(client: Words) -> None:
    await ask(serving("10.0.0.0/24"), b"GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\nbroken\r\n\r\n")
    assert client() == ("10.0.0.5", "4711")


async def test_wrong_tokens_are_counted_for_the_client_and_not_for_its_front_end(client: Words) -> None:
    server = serving("10.0.0.0/24", limits=Limits(max_failures_per_minute=3))

    async def guess(address: str) -> int:
        return (await ask(server, asking("db:22", f"X-Forwarded-For: {address}", token="wrong"))).status

    assert [await guess("203.0.113.7") for _ in range(5)] == [401, 401, 401, 429, 429]
    assert await guess("203.0.113.8") == 401
    # What the client makes up gives it no new start.
    assert await guess("6.6.6.6, 203.0.113.7") == 429
    # The front end itself, behind which everybody is, is never told to wait.
    assert [await guess("unknown") for _ in range(5)] == [401] * 5


async def test_an_untrusted_client_cannot_spread_its_guesses_over_addresses_that_it_makes_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = serving("10.0.0.0/24", limits=Limits(max_failures_per_minute=3))
    answers = [
        await ask(server, asking("db:22", f"X-Forwarded-For: 203.0.113.{n}", token="wrong"), peer=STRANGER)
        for n in range(5)
    ]
    assert [answer.status for answer in answers] == [401, 401, 401, 429, 429]


# --- the PROXY protocol -----------------------------------------------------------------------


HEADERS = {
    "version 1": v1("203.0.113.7", 51234),
    "version 2": v2(INET, inet("203.0.113.7", 51234)),
    "version 2 with TLVs": v2(INET, inet("203.0.113.7", 51234) + b"\x01\x00\x02h2"),
    "IPv4-mapped": v2(INET6, inet6("::ffff:203.0.113.7", 51234)),
}


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("trusted", [(), ("10.0.0.0/24",)], ids=["everybody", "a network"])
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
async def test_a_proxy_header_names_the_client(
    client: Words, header: bytes, trusted: Sequence[str], whole: bool
) -> None:
    answer = await ask(serving(*trusted, proxy_protocol=True), header + ASKED, whole=whole)
    assert answer.status == 403
    assert client() == ("203.0.113.7", "51234", "10.0.0.5:4711")


@pytest.mark.parametrize(
    "header",
    [v2(0, b"", command=LOCAL), v2(0, b""), v2(UNIX, bytes(216)), b"PROXY UNKNOWN\r\n"],
    ids=["LOCAL", "UNSPEC", "AF_UNIX", "UNKNOWN"],
)
async def test_behind_a_proxy_header_that_names_nobody_the_proxy_is_recorded_and_no_header_field_is_believed(
    client: Words, header: bytes
) -> None:
    server = serving("10.0.0.0/24", proxy_protocol=True)
    answer = await ask(server, header + forwarded("X-Forwarded-For: 6.6.6.6"))
    assert answer.status == 403
    assert client() == ("10.0.0.5", "4711")


async def test_a_proxy_before_the_front_end_is_followed_by_what_that_says(client: Words) -> None:
    """A balancer passes on the connections of a front end elsewhere."""
    server = serving("10.0.0.0/24", "192.0.2.0/24", proxy_protocol=True)
    await ask(server, v1("192.0.2.9", 1234) + forwarded("X-Forwarded-For: 6.6.6.6, 203.0.113.7"))
    assert client() == ("203.0.113.7", "10.0.0.5:4711")


async def test_a_client_behind_a_proxy_header_cannot_pass_for_another(client: Words) -> None:
    server = serving("10.0.0.0/24", proxy_protocol=True)
    await ask(server, v1("203.0.113.7", 51234) + forwarded("X-Forwarded-For: 6.6.6.6"))
    assert client()[0] == "203.0.113.7"


BAD = {
    "none": ASKED,
    "none, and nothing else either": b"SSH-2.0-x\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
    "malformed": b"PROXY TCP4 secret-text\r\n" + ASKED,
    "another version": v2(INET, inet("203.0.113.7", 1), command=0x31) + ASKED,
    "without an end": b"PROXY UNKNOWN " + b"secret-text" * 20,
}


@pytest.mark.parametrize("sent", BAD.values(), ids=BAD.keys())
async def test_a_connection_that_begins_in_another_way_is_closed_without_an_answer_and_recorded_once(
    client: Words, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    server = serving(proxy_protocol=True)
    assert await send(server, sent, ends=False) == b""
    assert client() == ("10.0.0.5", "4711")
    assert "PROXY header" in caplog.text
    assert "secret-text" not in caplog.text
    assert TOKEN not in caplog.text
    assert trio.current_time() == 0


async def test_a_proxy_header_of_somebody_else_is_not_read(
    client: Words, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    server = serving("10.0.0.0/24", proxy_protocol=True)
    assert await send(server, v1("203.0.113.7", 51234) + ASKED, peer=STRANGER, ends=False) == b""
    assert trio.current_time() == 0
    assert client() == ("198.51.100.1", "4711")
    assert "not from a trusted proxy" in caplog.text


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 203.0", v2(INET, inet("203.0.113.7", 1))[:-1]])
async def test_a_proxy_header_that_does_not_end_has_no_more_time_than_a_head(
    autojump_clock: trio.testing.MockClock, sent: bytes
) -> None:
    await send(serving(proxy_protocol=True), sent, ends=False)
    assert 10 <= trio.current_time() <= 10.5


async def test_the_time_that_a_proxy_header_takes_is_the_heads(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = memory_pair()
    connection = Connection(serving(proxy_protocol=True), ours, FRONT)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await trio.sleep(6)
        await theirs.send_all(v1("203.0.113.7", 51234))
        await trio.sleep(3.9)
        await theirs.send_all(b"GET / HT")
        assert b" 408 " in await theirs.receive_some()
        assert trio.current_time() == pytest.approx(10)
        await theirs.aclose()


@pytest.mark.parametrize("sent", [b"", v1("203.0.113.7", 51234)[:-1]], ids=["silence", "half a header"])
async def test_a_proxy_header_that_does_not_come_in_time_is_a_limit_that_was_reached(
    sent: bytes, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "http2tcp")
    server = serving(proxy_protocol=True)
    assert await send(server, sent, ends=False) == b""
    assert trio.current_time() == pytest.approx(10)
    assert "reason=timed_out detail='no PROXY header came in time'" in caplog.messages[-1]
    assert 'http2tcp_limit_reached_total{limit="head_timeout"} 1' in exposition(families(server))


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
async def test_a_proxy_header_that_was_not_asked_for_is_a_400(
    header: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    assert (await ask(serving("10.0.0.0/24"), header + ASKED)).status == 400


async def test_silent_connections_are_counted_for_the_client_that_the_proxy_header_names(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One address fills its own share behind a proxy, and nobody else's."""
    server = serving(proxy_protocol=True, limits=Limits(max_unauthenticated_per_address=2))
    ends = []
    async with trio.open_nursery() as nursery:
        for address in ("203.0.113.7", "203.0.113.8", "203.0.113.7", "203.0.113.7"):
            ours, theirs = memory_pair()
            nursery.start_soon(Connection(server, ours, FRONT).run)  # type: ignore[arg-type]
            await theirs.send_all(v1(address, 51234))
            await trio.testing.wait_all_tasks_blocked()
            ends.append(theirs)
        assert (len(server.unauthenticated), server.unauthenticated.reached_per_address) == (3, 1)
        with pytest.raises(trio.BrokenResourceError):
            await ends[0].receive_some()
        for end in ends:
            await end.aclose()
