"""PROXY protocol headers cut at any byte, mutated and made up; and that the header is all that is taken."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.protocol.proxy_protocol import MAX_BLOCK, ProxyHeader, ProxyHeaderError, ProxyHeaderReader
from tests.support.proxy_header import INET, INET6, LOCAL, PROXY, SIGNATURE, inet, inet6, v1, v2

ports = st.integers(0, 65535)
lines = st.builds(lambda address, port: v1(str(address), port), st.ip_addresses(), ports)
blocks = st.builds(
    lambda address, port, more: (
        v2(INET, inet(str(address), port) + more)
        if address.version == 4
        else v2(INET6, inet6(str(address), port) + more)
    ),
    st.ip_addresses(),
    ports,
    st.binary(max_size=300),
)
odd_blocks = st.builds(
    lambda family, block, command: v2(family, block, command=command),
    st.one_of(st.sampled_from([0, 0x10, INET, INET + 1, INET6, 0x31]), st.integers(0, 255)),
    st.binary(max_size=230),
    st.one_of(st.sampled_from([LOCAL, PROXY]), st.integers(0, 255)),
)
odd_lines = st.binary(max_size=120).map(lambda rest: b"PROXY UNKNOWN" + rest + b"\r\n")
PIECES = [b"\r\n", b"\r", b"\n", b" ", b"\0", b"TCP4", b"TCP6", b"UNKNOWN", b"PROXY ", SIGNATURE, b"::", b".", b"65536"]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A header, what follows it, and a few places of both overwritten, removed or added to."""
    data = bytearray(draw(st.one_of(lines, blocks, odd_blocks, odd_lines)) + draw(st.binary(max_size=40)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 6)))
        data[start:end] = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=4)))
    return bytes(data)


def read(data: bytes, most: list[int]) -> object:
    """The header and what is left, the failure, or None where more is needed; no read is larger than `most` says."""
    reader, turn = ProxyHeaderReader(), 0
    try:
        while (header := reader.next_event()) is None:
            assert 0 < reader.needed <= MAX_BLOCK
            if not data:
                return None
            size = min(reader.needed, most[turn % len(most)])
            reader.receive(data[:size])
            data, turn = data[size:], turn + 1
    except ProxyHeaderError:
        return ProxyHeaderError
    assert reader.needed == 0
    return header, data


cuts = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@given(address=st.ip_addresses(), port=ports, more=st.binary(max_size=300), rest=st.binary(max_size=40), cuts=cuts)
def test_every_client_arrives_as_the_proxy_sent_it_and_what_follows_is_left(
    address: IPv4Address | IPv6Address, port: int, more: bytes, rest: bytes, cuts: list[int]
) -> None:
    inner = (
        v2(INET, inet(str(address), port) + more)
        if address.version == 4
        else v2(INET6, inet6(str(address), port) + more)
    )
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    for header in (v1(str(address), port), inner):
        assert read(header + rest, cuts) == (ProxyHeader(mapped or address, port), rest)


@given(data=mutations(), cuts=cuts)
def test_a_header_cut_anywhere_means_what_it_means_whole(data: bytes, cuts: list[int]) -> None:
    whole = read(data, [1 << 20])
    assert read(data, cuts) == whole
    assert read(data, [1]) == whole


@given(data=st.one_of(st.binary(max_size=300), st.binary(max_size=300).map(lambda rest: b"PROXY " + rest)), cuts=cuts)
def test_arbitrary_bytes_are_a_failure_or_wait_for_more_within_the_limit(data: bytes, cuts: list[int]) -> None:
    if read(data, cuts) is None:
        assert len(data) < 107 or data.startswith(SIGNATURE)


@given(data=mutations())
def test_whatever_is_accepted_is_one_sound_header(data: bytes) -> None:
    """A much cruder reader has to agree on where it ends and whom it names."""
    result = read(data, [1 << 20])
    if not isinstance(result, tuple):
        return
    (source, port), rest = result
    header = data.removesuffix(rest)
    assert header + rest == data
    if header.startswith(b"PROXY "):
        assert header.endswith(b"\r\n")
        assert header.count(b"\n") == 1
        words = header[:-2].split(b" ")
        if source is not None:
            assert len(words) == 6
            assert int(words[4]) == port
            assert (b":" in words[2]) == (words[1] == b"TCP6")
        else:
            assert words[1] == b"UNKNOWN"
        return
    assert header.startswith(SIGNATURE)
    assert len(header) == 16 + int.from_bytes(header[14:16], "big")
    if source is not None:
        assert header[12] == PROXY
        assert source.packed in (header[16:20], header[28:32], header[16:32])
