"""IPv6 addresses that lead to an IPv4 address, each made as its RFC says, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

Embed = Callable[[IPv4Address], IPv6Address]


def _in_last_32_bits(prefix: str) -> Embed:
    return lambda inner: IPv6Address(int(IPv6Address(prefix)) | int(inner))


def _octets(*parts: bytes) -> IPv6Address:
    return IPv6Address(b"".join(parts).ljust(16, b"\0"))


_NAT64_LOCAL = bytes.fromhex("0064ff9b0001")

EMBEDDINGS: dict[str, Embed] = {
    "mapped": _in_last_32_bits("::ffff:0:0"),
    "compatible": _in_last_32_bits("::"),
    "translated": _in_last_32_bits("::ffff:0:0:0"),
    "NAT64": _in_last_32_bits("64:ff9b::"),
    "local NAT64 /96": _in_last_32_bits("64:ff9b:1:a:b:c::"),
    # RFC 6052, section 2.2: octet 8 is zero.
    "local NAT64 /48": lambda inner: _octets(_NAT64_LOCAL, inner.packed[:2], b"\0", inner.packed[2:]),
    "local NAT64 /56": lambda inner: _octets(_NAT64_LOCAL, b"\7", inner.packed[:1], b"\0", inner.packed[1:]),
    "local NAT64 /64": lambda inner: _octets(_NAT64_LOCAL, b"\7\7", b"\0", inner.packed),
    "6to4": lambda inner: _octets(b"\x20\x02", inner.packed),
    # RFC 4380, section 4: the client's address has every bit turned over.
    "Teredo client": lambda inner: _octets(
        b"\x20\x01\0\0", b"\1\1\1\1", b"\0\0\0\0", bytes(octet ^ 0xFF for octet in inner.packed)
    ),
    "Teredo server": lambda inner: _octets(b"\x20\x01\0\0", inner.packed),
    "ISATAP": lambda inner: _octets(bytes.fromhex("20010db800000000"), bytes.fromhex("00005efe"), inner.packed),
    "ISATAP, global": lambda inner: _octets(bytes.fromhex("20010db800000000"), bytes.fromhex("02005efe"), inner.packed),
}
