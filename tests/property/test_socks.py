"""SOCKS5 requests cut at any byte, and arbitrary bytes, as a program on this machine may send them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.address import TCPAddress, parse_host
from http2tcp.protocol.socks5 import Negotiation, SocksError

# The longest greeting, and the longest request.
LONGEST = 2 + 255 + 4 + 1 + 255 + 2

greetings = st.binary(max_size=255).map(lambda methods: bytes([5, len(methods)]) + methods)
addresses = st.one_of(
    st.binary(min_size=4, max_size=4).map(lambda address: b"\x01" + address),
    st.binary(min_size=16, max_size=16).map(lambda address: b"\x04" + address),
    st.binary(max_size=255).map(lambda name: bytes([3, len(name)]) + name),
    st.from_regex(rb"[a-z0-9.-]{1,30}", fullmatch=True).map(lambda name: bytes([3, len(name)]) + name),
    st.binary(max_size=30),
)
conversations = st.builds(
    lambda greeting, command, address, rest: greeting + bytes([5, command, 0]) + address + rest,
    st.one_of(st.just(b"\x05\x01\x00"), greetings),
    st.one_of(st.just(1), st.integers(0, 255)),
    addresses,
    st.binary(max_size=600),
)
cuts = st.lists(st.integers(0, 1 << 12), max_size=8)


def negotiate(parts: list[bytes]) -> tuple[object, bytes, bytes]:
    """The destination or the failure, what was said, and what is left for the tunnel."""
    negotiation, said = Negotiation(), b""
    for index, part in enumerate(parts):
        negotiation.receive(part)
        try:
            destination = negotiation.next_event()
        except SocksError as error:
            return str(error), said + error.reply, b""
        said += negotiation.take_outgoing()
        assert destination is not None or len(negotiation.trailing_data) < LONGEST
        if destination is not None:
            return destination, said, negotiation.trailing_data + b"".join(parts[index + 1 :])
    return None, said, b""


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


@given(data=conversations, cuts=cuts)
def test_a_conversation_cut_anywhere_means_what_it_means_whole(data: bytes, cuts: list[int]) -> None:
    assert negotiate(pieces(data, cuts)) == negotiate([data])


@given(data=conversations)
def test_a_conversation_in_single_bytes_means_what_it_means_whole(data: bytes) -> None:
    assert negotiate([data[i : i + 1] for i in range(len(data))]) == negotiate([data])


@given(data=st.binary(max_size=2000), cuts=cuts)
def test_arbitrary_bytes_are_a_failure_in_words_or_wait_for_more_within_the_limit(data: bytes, cuts: list[int]) -> None:
    result, said, _ = negotiate(pieces(data, cuts))
    # The welcome, the word that there is none, a reply that says no.
    assert len(said) in (0, 2, 10, 12)
    if isinstance(result, str):
        assert result.isprintable()
    if result is None:
        assert len(data) < LONGEST


@given(
    address=st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)),
    port=st.integers(1, 65535),
    rest=st.binary(max_size=9),
)
def test_every_ip_address_and_port_arrive_as_they_were_asked_for(
    address: IPv4Address | IPv6Address, port: int, rest: bytes
) -> None:
    kind = 1 if isinstance(address, IPv4Address) else 4
    request = bytes([5, 1, 0, kind]) + address.packed + port.to_bytes(2, "big")
    result, said, left = negotiate([b"\x05\x01\x00" + request + rest])
    assert (result, said, left) == (TCPAddress(parse_host(str(address)), port), b"\x05\x00", rest)
