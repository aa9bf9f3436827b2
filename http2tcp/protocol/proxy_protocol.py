"""Sans-IO receiver of the PROXY protocol, versions 1 and 2. Never blocks, never logs.

Section numbers below are those of https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt. The configuration
says whether a header comes, and this is never guessed: a connection that begins differently is refused at its first
wrong byte. The caller must not read beyond the header, since TLS may follow: `needed` says how many bytes are safe to
read. No error quotes the bytes that were received.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from http2tcp.protocol.forwarded import unmapped

# The longest line, as section 2.1 computes it: UNKNOWN and two IPv6 addresses at full length.
MAX_LINE = 107
# The length field could say up to 64 KiB. HAProxy's buffer has 16 KiB, enough for TLVs with a client's certificate.
MAX_BLOCK = 16 * 1024

_NAME = b"PROXY "
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = 16  # the signature, version and command, family and transport, length
_SHORTEST_LINE = len(b"PROXY UNKNOWN\r\n")
# The fields that follow PROXY in a line for TCP: the protocol, the source and the destination, and their ports. Each is
# in its shortest form, with the blank before it.
_FIELDS = (b" TCP4", b" ::", b" ::", b" 0", b" 0")

_PORT = r"(0|[1-9][0-9]{0,4})"
_TCP = re.compile(rf"PROXY TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) {_PORT} {_PORT}")
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _INET, _INET6, _UNIX = range(4)
# For each family, the size of both addresses with their ports.
_BLOCK = {_UNSPECIFIED: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_TRANSPORTS = range(3)  # none, stream, datagram


class ProxyHeaderError(Exception):
    """The connection does not begin with a valid PROXY header. `str(error)` is safe to log."""


class ProxyHeader(NamedTuple):
    """The address of the client whose connection the proxy passes on."""

    #: None: the client is the proxy itself (LOCAL), or has no IP address (UNKNOWN, UNSPEC, AF_UNIX).
    source: IPv4Address | IPv6Address | None = None
    port: int = 0


class ProxyHeaderReader:
    """Parses one header. Read at most `needed` bytes, feed them to `receive`, then call `next_event`."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive(self, data: bytes) -> None:
        """Take bytes from the wire, at most `needed`."""
        assert len(data) <= self.needed, "bytes beyond the header belong to somebody else"
        self._buffer += data

    @property
    def needed(self) -> int:
        """The least number of bytes that the header still needs. It is not 0 while `next_event` returns None."""
        size = len(self._buffer)
        if self._buffer.startswith(_SIGNATURE):
            return (_FIXED if size < _FIXED else _FIXED + self._block_size) - size
        if size < _SHORTEST_LINE:
            return _SHORTEST_LINE - size
        if self._buffer.endswith(b"\r\n"):
            return 0
        # Each blank begins a field, so their count tells which fields of TCP are missing. UNKNOWN needs no fields.
        owed = _FIELDS[self._buffer.count(b" ") :] if self._buffer.startswith(b"PROXY TCP") else ()
        line_end = b"\n" if self._buffer.endswith(b"\r") else b"\r\n"
        return sum(map(len, owed)) + len(line_end)

    @property
    def _block_size(self) -> int:
        return int.from_bytes(self._buffer[14:16], "big")

    def next_event(self) -> ProxyHeader | None:
        """Return the header, or None if more bytes are needed. Raises ProxyHeaderError."""
        if _begins(self._buffer, _NAME):
            return self._read_line()
        if _begins(self._buffer, _SIGNATURE):
            return self._read_block()
        raise ProxyHeaderError("it does not begin with a PROXY header")

    def _read_line(self) -> ProxyHeader | None:
        """Parse version 1, a line of text (section 2.1)."""
        line = bytes(self._buffer)
        missing = self.needed
        # An LF may only follow the CR at the end of the line.
        if b"\n" in line[:-1]:
            raise _malformed()
        if len(line) + missing > MAX_LINE:
            raise ProxyHeaderError("the line of its PROXY header has no end")
        if missing:
            return None
        line = line.removesuffix(b"\r\n")
        if _UNKNOWN.fullmatch(line):
            return ProxyHeader()
        match = _TCP.fullmatch(line.decode("latin-1"))
        if match is None:
            raise _malformed()
        family, source, destination, *ports = match.groups()
        try:
            addresses = ip_address(source), ip_address(destination)
        except ValueError:
            raise _malformed() from None
        if any(address.version != int(family) for address in addresses) or max(map(int, ports)) > 0xFFFF:
            raise _malformed()
        return ProxyHeader(unmapped(addresses[0]), int(ports[0]))

    def _read_block(self) -> ProxyHeader | None:
        """Parse version 2, a binary block (section 2.2)."""
        if len(self._buffer) > 12 and self._buffer[12] not in (_LOCAL, _PROXY):
            raise _malformed()
        if len(self._buffer) < _FIXED:
            return None
        local = self._buffer[12] == _LOCAL
        family, transport = divmod(self._buffer[13], 16)
        # With LOCAL, a receiver must ignore the family, but not the length.
        if not local and (transport not in _TRANSPORTS or self._block_size < _BLOCK.get(family, 1 << 16)):
            raise _malformed()
        if self._block_size > MAX_BLOCK:
            raise ProxyHeaderError("its PROXY header is too large")
        if self.needed:
            return None
        # TLVs follow the addresses. A receiver may skip them.
        block = bytes(self._buffer[_FIXED:])
        if not local and transport and family == _INET:
            return ProxyHeader(IPv4Address(block[:4]), int.from_bytes(block[8:10], "big"))
        if not local and transport and family == _INET6:
            return ProxyHeader(unmapped(IPv6Address(block[:16])), int.from_bytes(block[32:34], "big"))
        return ProxyHeader()


def _begins(data: bytearray, start: bytes) -> bool:
    """Whether the data begins with `start`, or may do so once more has arrived."""
    return data.startswith(start[: len(data)])


def _malformed() -> ProxyHeaderError:
    return ProxyHeaderError("its PROXY header is malformed")
