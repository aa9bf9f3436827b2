"""PROXY protocol headers as a proxy sends them: the binary ones, which nobody writes by hand."""

from __future__ import annotations

import socket

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
LOCAL, PROXY = 0x20, 0x21
#: Family and transport: over streams; one more is over datagrams.
INET, INET6, UNIX = 0x11, 0x21, 0x31


def v1(source: str, port: int) -> bytes:
    """The line for a client at this address."""
    family, here = ("TCP6", "::1") if ":" in source else ("TCP4", "127.0.0.1")
    return f"PROXY {family} {source} {here} {port} 443\r\n".encode()


def v2(family: int, block: bytes, *, command: int = PROXY) -> bytes:
    """A header with this block of addresses and TLVs."""
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


def inet(source: str, port: int) -> bytes:
    """The addresses of a connection from an IPv4 client."""
    return _addresses(socket.AF_INET, source, "127.0.0.1", port)


def inet6(source: str, port: int) -> bytes:
    """The addresses of a connection from an IPv6 client."""
    return _addresses(socket.AF_INET6, source, "::1", port)


def _addresses(family: socket.AddressFamily, source: str, here: str, port: int) -> bytes:
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, here)
    return addresses + port.to_bytes(2, "big") + (443).to_bytes(2, "big")
