"""The PROXY protocol's header, versions 1 and 2, byte by byte."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from http2tcp.protocol.proxy_protocol import MAX_BLOCK, MAX_LINE, ProxyHeader, ProxyHeaderError, ProxyHeaderReader
from tests.support.proxy_header import INET, INET6, LOCAL, SIGNATURE, UNIX, inet, inet6, v2

REST = b"GET / HTTP/1.1\r\n"


def read(data: bytes, *, cut: int = 1 << 20) -> tuple[ProxyHeader | None, bytes]:
    """The header, or None for one that is not whole, and what was not read; in pieces of `cut` bytes at most."""
    reader = ProxyHeaderReader()
    while (header := reader.next_event()) is None and data:
        size = min(cut, reader.needed)
        reader.receive(data[:size])
        data = data[size:]
    return header, data


LINES = {
    "PROXY TCP4 203.0.113.7 127.0.0.1 51234 12345": ("203.0.113.7", 51234),
    "PROXY TCP4 0.0.0.0 0.0.0.0 0 0": ("0.0.0.0", 0),
    "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535": ("255.255.255.255", 65535),
    "PROXY TCP6 2001:db8::7 ::1 51234 443": ("2001:db8::7", 51234),
    "PROXY TCP6 :: :: 0 0": ("::", 0),
    "PROXY TCP6 2001:DB8:0:0:0:0:0:7 2001:db8::1 1 2": ("2001:db8::7", 1),
    "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535": (
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        65535,
    ),
    # A proxy that listens for IPv4 and IPv6 at once.
    "PROXY TCP6 ::ffff:203.0.113.7 ::ffff:127.0.0.1 51234 443": ("203.0.113.7", 51234),
}


@pytest.mark.parametrize("cut", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize(("line", "source"), LINES.items())
def test_a_line_names_the_client(line: str, source: tuple[str, int], cut: int) -> None:
    address, port = source
    assert read(line.encode() + b"\r\n" + REST, cut=cut) == (ProxyHeader(ip_address(address), port), REST)


@pytest.mark.parametrize("cut", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    "line",
    [
        "PROXY UNKNOWN",
        "PROXY UNKNOWN ",
        "PROXY UNKNOWN \0 anything\x80",
        "PROXY UNKNOWN " + "ffff:" * 16 + "ffff 65535",
        "PROXY UNKNOWN TCP4 203.0.113.7 127.0.0.1 1 2",
        "PROXY UNKNOWN " + "x" * (MAX_LINE - 16),
    ],
)
def test_a_line_of_an_unknown_connection_names_nobody(line: str, cut: int) -> None:
    assert read(line.encode("latin-1") + b"\r\n" + REST, cut=cut) == (ProxyHeader(None), REST)


BLOCKS = {
    "IPv4": (v2(INET, inet("203.0.113.7", 51234)), ("203.0.113.7", 51234)),
    "IPv6": (v2(INET6, inet6("2001:db8::7", 51234)), ("2001:db8::7", 51234)),
    "IPv4-mapped": (v2(INET6, inet6("::ffff:203.0.113.7", 51234)), ("203.0.113.7", 51234)),
    # HTTP/3 at the front end.
    "datagrams": (v2(INET + 1, inet("203.0.113.7", 51234)), ("203.0.113.7", 51234)),
    "TLVs": (v2(INET, inet("203.0.113.7", 51234) + b"\x01\x00\x02h2" + b"\x04\x00\x00"), ("203.0.113.7", 51234)),
    "TLVs that are none": (v2(INET, inet("203.0.113.7", 51234) + b"\x01\xff"), ("203.0.113.7", 51234)),
    "as large as can be": (
        v2(INET, inet("203.0.113.7", 51234) + bytes(MAX_BLOCK - 12)),
        ("203.0.113.7", 51234),
    ),
}


@pytest.mark.parametrize("cut", [1, 5, 1 << 20])
@pytest.mark.parametrize(("block", "source"), BLOCKS.values(), ids=BLOCKS.keys())
def test_a_block_names_the_client(block: bytes, source: tuple[str, int], cut: int) -> None:
    address, port = source
    assert read(block + REST, cut=cut) == (ProxyHeader(ip_address(address), port), REST)


NOBODY = {
    "LOCAL, as health checks are": v2(0, b"", command=LOCAL),
    "LOCAL with addresses": v2(INET, inet("203.0.113.7", 51234), command=LOCAL),
    "LOCAL with TLVs": v2(0, b"\x04\x00\x05abcde", command=LOCAL),
    "LOCAL of a family that there is not": v2(0xFF, b"", command=LOCAL),
    "no family": v2(0, b""),
    "no family, with bytes": v2(0, inet("203.0.113.7", 51234)),
    "IPv4 of no transport": v2(INET - 1, inet("203.0.113.7", 51234)),
    "a transport of no family": v2(1, b""),
    "a Unix socket": v2(UNIX, b"/run/client.sock".ljust(216, b"\0")),
    "a Unix socket of datagrams, with TLVs": v2(UNIX + 1, bytes(216) + b"\x04\x00\x00"),
}


@pytest.mark.parametrize("cut", [1, 5, 1 << 20])
@pytest.mark.parametrize("block", NOBODY.values(), ids=NOBODY.keys())
def test_a_block_without_an_ip_address_names_nobody(block: bytes, cut: int) -> None:
    assert read(block + REST, cut=cut) == (ProxyHeader(None), REST)


WRONG_LINES = [
    "PROXY TCP4 203.0.113.7 127.0.0.1 51234",
    "PROXY TCP4 203.0.113.7 127.0.0.1 51234 12345 ",
    "PROXY TCP4 203.0.113.7 127.0.0.1 51234 12345 6",
    "PROXY TCP4  203.0.113.7 127.0.0.1 51234 12345",
    "PROXY  TCP4 203.0.113.7 127.0.0.1 51234 12345",
    "PROXY\tTCP4 203.0.113.7 127.0.0.1 51234 12345",
    "PROXY TCP4 203.0.113.07 127.0.0.1 51234 12345",
    "PROXY TCP4 203.0.113 127.0.0.1 51234 12345",
    "PROXY TCP4 203.0.113.256 127.0.0.1 51234 12345",
    "PROXY TCP4 203.0.113.7 127.0.0.1 051234 12345",
    "PROXY TCP4 203.0.113.7 127.0.0.1 65536 12345",
    "PROXY TCP4 203.0.113.7 127.0.0.1 51234 99999",
    "PROXY TCP4 203.0.113.7 127.0.0.1 -1 12345",
    "PROXY TCP4 203.0.113.7 127.0.0.1 51234 ",
    "PROXY TCP4 203.0.113.7 nonsense 51234 12345",
    "PROXY TCP4 2001:db8::7 ::1 51234 443",
    "PROXY TCP4 203.0.113.7 ::1 51234 443",
    "PROXY TCP6 203.0.113.7 127.0.0.1 51234 443",
    "PROXY TCP6 2001:db8::7::1 ::1 51234 443",
    "PROXY TCP6 fe80::1%eth0 ::1 51234 443",
    "PROXY TCP6 [2001:db8::7] ::1 51234 443",
    "PROXY TCP4 \xb2.0.0.1 127.0.0.1 51234 443",
    "PROXY UDP4 203.0.113.7 127.0.0.1 51234 443",
    "PROXY tcp4 203.0.113.7 127.0.0.1 51234 443",
    "PROXY UNKNOWNS",
    "PROXY TCP4",
    "PROXY ",
]


@pytest.mark.parametrize("cut", [1, 1 << 20])
@pytest.mark.parametrize("line", WRONG_LINES)
def test_a_line_that_is_not_to_the_letter_is_an_error(line: str, cut: int) -> None:
    with pytest.raises(ProxyHeaderError):
        read(line.encode("latin-1") + b"\r\n" + REST, cut=cut)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\n\r", b"\r\r\n"])
def test_a_line_ends_in_cr_lf_and_in_nothing_else(end: bytes) -> None:
    for line in (b"PROXY TCP4 203.0.113.7 127.0.0.1 51234 443", b"PROXY UNKNOWN", b"PROXY UNKNOWN a"):
        with pytest.raises(ProxyHeaderError):
            read(line + end + b"GET / HTTP/1.1" + b"x" * MAX_LINE)


def test_a_line_without_an_end_is_an_error_at_its_limit() -> None:
    assert read(b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 16), cut=1) == (None, b"")
    with pytest.raises(ProxyHeaderError, match="no end"):
        read(b"PROXY UNKNOWN " + b"x" * (MAX_LINE - 15), cut=1)


WRONG_BLOCKS = {
    "version 1": v2(INET, inet("203.0.113.7", 1), command=0x11),
    "version 3": v2(INET, inet("203.0.113.7", 1), command=0x31),
    "another command": v2(INET, inet("203.0.113.7", 1), command=0x22),
    "another family": v2(0x41, bytes(216)),
    "another transport": v2(INET + 2, inet("203.0.113.7", 1)),
    "no addresses": v2(INET, b""),
    "IPv4 addresses cut short": v2(INET, inet("203.0.113.7", 1)[:-1]),
    "IPv6 addresses cut short": v2(INET6, inet6("2001:db8::7", 1)[:-1]),
    "IPv4 addresses as IPv6": v2(INET6, inet("203.0.113.7", 1)),
    "a path cut short": v2(UNIX, bytes(215)),
    "more than can be": v2(INET, inet("203.0.113.7", 1) + bytes(MAX_BLOCK - 11)),
    "LOCAL with more than can be": v2(0, bytes(MAX_BLOCK + 1), command=LOCAL),
}


@pytest.mark.parametrize("cut", [1, 1 << 20])
@pytest.mark.parametrize("block", WRONG_BLOCKS.values(), ids=WRONG_BLOCKS.keys())
def test_a_block_that_is_not_to_the_letter_is_an_error_before_more_than_16_bytes_are_read(
    block: bytes, cut: int
) -> None:
    with pytest.raises(ProxyHeaderError):
        read(block[:16], cut=cut)


@pytest.mark.parametrize(
    "start",
    [b"G", b"PROXX", b"p", b"PROXY\n", b"\x16", b"\n", b"\r\r", SIGNATURE[:-1] + b"\r", b"\0", b"S"],
)
def test_a_connection_that_begins_in_another_way_is_told_at_its_first_wrong_byte(start: bytes) -> None:
    assert read(start[:-1], cut=1) == (None, b"")
    with pytest.raises(ProxyHeaderError, match="does not begin with a PROXY header"):
        read(start, cut=1)


@pytest.mark.parametrize("header", [*(line.encode() + b"\r\n" for line in LINES), *(b for b, _ in BLOCKS.values())])
def test_a_header_that_is_not_whole_is_waited_for(header: bytes) -> None:
    for size in range(min(len(header), 300)):
        assert read(header[:size], cut=1) == (None, b"")


@pytest.mark.parametrize("header", [line.encode() + b"\r\n" for line in LINES])
def test_a_line_takes_few_reads(header: bytes) -> None:
    """Each is a system call and a turn of the scheduler."""
    reader, reads = ProxyHeaderReader(), 0
    while reader.next_event() is None:
        size = reader.needed
        reader.receive(header[:size])
        header, reads = header[size:], reads + 1
    assert reads <= 22


# What has come so far, and how many bytes at least are still to come.
NEEDED = [
    (b"", 15),  # PROXY UNKNOWN and a line's end is the shortest header
    (b"PROXY ", 9),
    (b"PROXY UNKNOWN", 2),
    (b"PROXY UNKNOWN\r", 1),
    (b"PROXY UNKNOWN\r\n", 0),
    (b"PROXY UNKNOWN a b c d", 2),
    (b"PROXY TCP4 1.2.", len(b" :: 0 0\r\n")),
    (b"PROXY TCP4 1.2.3.4 ", len(b" 0 0\r\n")),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8", len(b" 0 0\r\n")),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 ", len(b" 0\r\n")),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 ", len(b"\r\n")),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10", len(b"\r\n")),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r", len(b"\n")),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n", 0),
    (b"PROXY TCP6 :: :", len(b" 0 0\r\n")),
    (SIGNATURE[:3], 12),  # it may still be a line's
    (SIGNATURE, 4),
    (SIGNATURE + b"\x21\x11\x00", 1),
    (SIGNATURE + b"\x21\x11\x00\x0c", 12),
    (SIGNATURE + b"\x21\x11\x00\x0c" + bytes(5), 7),
    (SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12), 0),
    (SIGNATURE + b"\x20\x00\x00\x00", 0),
]


@pytest.mark.parametrize(("come", "needed"), NEEDED)
def test_what_is_read_next_is_what_a_sound_header_still_needs_at_least(come: bytes, needed: int) -> None:
    reader = ProxyHeaderReader()
    while come:
        size = min(reader.needed, len(come))
        reader.receive(come[:size])
        come = come[size:]
    assert reader.needed == needed


def test_no_error_quotes_what_came() -> None:
    for data in (b"PROXY TCP4 secret\r\n", b"secret", v2(0x41, b"secret"), b"PROXY UNKNOWN " + b"secret" * 20):
        with pytest.raises(ProxyHeaderError) as error:
            read(data)
        assert "secret" not in str(error.value)
        assert error.value.__context__ is None or error.value.__suppress_context__


def test_the_blocks_here_are_as_the_specification_draws_them() -> None:
    assert SIGNATURE.hex() == "0d0a0d0a000d0a515549540a"
    assert v2(INET, inet("203.0.113.7", 51234)) == (
        SIGNATURE
        + b"\x21\x11\x00\x0c"
        + socket.inet_aton("203.0.113.7")
        + socket.inet_aton("127.0.0.1")
        + b"\xc8\x22\x01\xbb"
    )
