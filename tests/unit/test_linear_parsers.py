"""What a stranger's bytes reach takes time in proportion to them: 16 KiB no more than twice that of 8 KiB.

Every compiled pattern of the package is found by walking its modules, so that a new one is held too, and the
parsers by the list of their entry points below. Each gets the worst that these know, in CPU time: 16 KiB that take
a few milliseconds are fine, whatever half of them takes.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pkgutil
import re
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from typing import Any

import pytest

import http2tcp
from http2tcp.address import parse_destination, parse_endpoint, parse_listen, parse_target
from http2tcp.errors import AddressError, Http2tcpError, Refusal
from http2tcp.protocol.capsule import CapsuleReader
from http2tcp.protocol.certificate import CertificateError, parse_certificate, public_key
from http2tcp.protocol.client_handshake import AnswerReader
from http2tcp.protocol.forwarded import client_address
from http2tcp.protocol.http_connect import Connect, ProxyProtocolError
from http2tcp.protocol.proxy_protocol import ProxyHeaderError, ProxyHeaderReader
from http2tcp.protocol.resume_wire import FirstCapsule, Reader
from http2tcp.protocol.server_handshake import RequestReader
from http2tcp.protocol.socks5 import Negotiation, SocksError
from http2tcp.protocol.transport import Transport, parse_keepalive

SIZE = 16 * 1024
# A quadratic pattern takes 80 ms and more for 16 KiB; a linear one takes less than this.
HARMLESS = 0.02
# What a slow sender brings at a time.
PIECE = 16
# Twice the bytes take twice the time, and four times where it is quadratic.
RATIO = 3.0
# Small inputs are noisy: in between, a look at all of them decides.
SURELY_LINEAR = 2.3

# What is repeated, after a beginning and before an end that has the match fail at its last byte.
UNITS = [
    "\\", '"', '\\"', '"\\', " ", "\t", " \t", ",", ", ", ";", ":", ".", "/", "-", "_", "=", "a", "0", "a.", "a-", "a,",
    "a ", "a=", "[", "::", "{", "}", "{a", "{a,", "%", "%41", "\n", "\r", "\r\n", "\r\n ", "\\a", '\\\\"', '"a"', "'",
    'for="', 'for=1;', " (at ", "://", "a://", "-----BEGIN CERTIFICATE-----", "\u00e4", "\0", "1.1.1.1,", "\n\n",
    "x\r\n", ",dial", "dial ", "basic ", "a=b,", "<", "<a", "</", "&", "&a",
]  # fmt: skip
BEGINNINGS = ["", '"', "a=", 'for="', "[", "PROXY TCP4 "]
ENDINGS = ["", "\0"]


def cpu(action: Callable[[], object]) -> float:
    """The CPU time of one run, without what a measurement of coverage would add."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        before = time.process_time()
        action()
        return time.process_time() - before
    finally:
        sys.settrace(tracer)


def doubled(action: Callable[[int], object], size: int, *, rounds: int) -> float:
    """How many times the CPU of half of it `action` takes for so many bytes.

    The fastest run of each, taken in turn: a machine that others use is at times half as fast.
    """
    pairs = [(cpu(lambda: action(size // 2)), cpu(lambda: action(size))) for _ in range(rounds)]
    return min(whole for _, whole in pairs) / min(half for half, _ in pairs)


def worse_than_linear(action: Callable[[int], object]) -> float:
    """How many times the CPU of half of it `action` takes for SIZE bytes; 0 where it takes next to nothing."""
    # A first look at a quarter: what is quadratic, and harmful at SIZE, takes a sixteenth of that here.
    if min(cpu(lambda: action(SIZE // 4)) for _ in range(2)) < HARMLESS / 16:
        return 0.0
    ratio = doubled(action, SIZE // 2, rounds=3)
    if ratio < SURELY_LINEAR:
        return ratio
    if min(cpu(lambda: action(SIZE)) for _ in range(3)) < HARMLESS:
        return 0.0
    return doubled(action, SIZE, rounds=8)


def filled(beginning: str, unit: str, ending: str, size: int) -> str:
    """`size` bytes of a unit."""
    room = max(0, size - len(beginning) - len(ending))
    return beginning + (unit * (room // len(unit) + 1))[:room] + ending


SEARCHING = "search|finditer|findall|sub|subn|split"
SEARCHED = ", searched"
# What no stranger's bytes reach.
OWN = {"http2tcp.command.toml_file._PLACE"}  # what tomllib says of the operator's own file


def patterns() -> Iterator[tuple[str, re.Pattern[str] | re.Pattern[bytes]]]:
    """Every pattern that a module, a class or a table of the package holds."""
    for module in pkgutil.walk_packages(http2tcp.__path__, "http2tcp."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        source = inspect.getsource(loaded)
        for name, value in vars(loaded).items():
            if f"{module.name}.{name}" in OWN:
                continue
            # What stands in a table is used elsewhere, in whatever way.
            anchored = isinstance(value, re.Pattern) and not re.search(rf"\b{name}\.({SEARCHING})\(", source)
            for number, pattern in enumerate(_within(value)):
                yield f"{module.name}.{name}[{number}]{'' if anchored else SEARCHED}", pattern


def _within(value: object, depth: int = 0) -> Iterator[re.Pattern[str] | re.Pattern[bytes]]:
    if isinstance(value, re.Pattern):
        yield value
    elif depth < 3 and isinstance(value, dict):
        for each in value.values():
            yield from _within(each, depth + 1)
    elif depth < 3 and isinstance(value, (list, tuple, set, frozenset)):
        for each in value:
            yield from _within(each, depth + 1)


PATTERNS = sorted(
    {(pattern.pattern, SEARCHED in name): (name, pattern) for name, pattern in patterns()}.values(), key=str
)


def use(pattern: re.Pattern[str] | re.Pattern[bytes], text: str, *, searched: bool) -> None:
    """Hold the beginning and the whole of it to the pattern, and where the code does so, search it to its end."""
    data: Any = text.encode("latin-1") if isinstance(pattern.pattern, bytes) else text
    pattern.match(data)
    pattern.fullmatch(data)
    if searched:
        list(pattern.finditer(data))


def test_the_walk_finds_the_patterns() -> None:
    found = " ".join(name for name, _ in PATTERNS)
    for each in (
        "http2tcp.protocol.forwarded._PAIR",
        "http2tcp.protocol.http_connect._QUOTED[0], searched",
        "http2tcp.client.front_ends.",
    ):
        assert each in found


@pytest.mark.parametrize(("name", "pattern"), PATTERNS, ids=[name for name, _ in PATTERNS])
def test_a_pattern_is_linear(name: str, pattern: re.Pattern[str] | re.Pattern[bytes]) -> None:
    searched = SEARCHED in name
    for unit, beginning, ending in itertools.product(UNITS, BEGINNINGS, ENDINGS):

        def once(size: int) -> None:
            use(pattern, filled(beginning, unit, ending, size), searched=searched)  # noqa: B023

        ratio = worse_than_linear(once)
        assert ratio < RATIO, f"{beginning!r} + many {unit!r} + {ending!r}: {ratio:.1f} times for twice the bytes"


def request(fields: bytes, *, connect: bool = False) -> bytes:
    """A head without its end."""
    line = b"CONNECT a:1 HTTP/1.1" if connect else b"GET /?addr=a:1 HTTP/1.1"
    return line + b"\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" + fields


def read_head(data: bytes, *, piece: int = SIZE) -> None:
    """As the server does, in pieces of so many bytes."""
    reader = RequestReader(connect=True, forwarded_header="Forwarded")
    try:
        for start in range(0, len(data), piece):
            reader.receive(data[start : start + piece])
            if event := reader.next_event():
                client_address(ip, event.forwarded, header="Forwarded", trusted=everybody)
                return
    except Refusal:
        pass


ip = ip_network("127.0.0.1").network_address
everybody = [ip_network("0.0.0.0/0"), ip_network("::/0")]


def read_answer(data: bytes, *, piece: int = SIZE, status: bytes = b"101 Switching Protocols") -> None:
    """As the client does."""
    reader = AnswerReader(Transport.TCP)
    data = b"HTTP/1.1 " + status + b"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" + data + b"\r\n\r\n"
    try:
        for start in range(0, len(data), piece):
            reader.receive(data[start : start + piece])
            if reader.next_event() is not None:
                return
    except Http2tcpError:
        pass


def read_proxy_answer(data: bytes, *, piece: int = SIZE) -> None:
    """As the client does with its proxy."""
    reader = Connect("a:1", user_agent="x", credentials=None)
    data = b"HTTP/1.1 407 No\r\n" + data + b"\r\n\r\n"
    try:
        for start in range(0, len(data), piece):
            reader.receive(data[start : start + piece])
            if reader.next_event() is not None:
                return
    except ProxyProtocolError:
        pass


def read_socks(data: bytes) -> None:
    """As a forwarder does, in pieces."""
    negotiation = Negotiation()
    try:
        for start in range(0, len(data), PIECE):
            negotiation.receive(data[start : start + PIECE])
            if negotiation.next_event() is not None:
                return
    except SocksError:
        pass


def read_proxy_header(data: bytes) -> None:
    """As the server does, in pieces."""
    reader = ProxyHeaderReader()
    try:
        for start in range(0, len(data), PIECE):
            if not reader.needed or reader.next_event() is not None:
                return
            reader.receive(data[start : start + min(PIECE, reader.needed)])
    except ProxyHeaderError:
        pass


def read_capsules(data: bytes, *, piece: int = SIZE) -> None:
    """As either side does."""
    reader = CapsuleReader()
    try:
        for start in range(0, len(data), piece):
            reader.receive(data[start : start + piece])
    except Http2tcpError:
        pass


def read_resuming(data: bytes, *, piece: int = SIZE) -> None:
    """As either side of a resumable tunnel does."""
    reader, first = Reader(), FirstCapsule()
    try:
        for start in range(0, len(data), piece):
            for _ in reader.read(data[start : start + piece]):
                pass
        for start in range(0, len(data), piece):
            if first.receive(data[start : start + piece]) is not None:
                return
    except Http2tcpError:
        pass


def forgiven(parse: Callable[[str], object], *errors: type[Exception]) -> Callable[[bytes], object]:
    """A parser of text that raises these."""

    def call(data: bytes) -> None:
        try:
            parse(data.decode("latin-1"))
        except errors:
            pass

    return call


def forgiven_der(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """A parser of certificates."""

    def call(data: bytes) -> None:
        try:
            parse(data)
        except CertificateError:
            pass

    return call


def field(name: bytes, value: bytes) -> bytes:
    """A line of a head, without what would end it."""
    return name + b": " + value.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n"


def der(contents: bytes) -> bytes:
    """A SEQUENCE of what is in it, three times."""
    for _ in range(3):
        contents = b"\x30\x83" + len(contents).to_bytes(3, "big") + contents
    return contents


ENTRIES: dict[str, Callable[[bytes], object]] = {
    "request": lambda data: read_head(data + b"\r\n\r\n"),
    "request's query": lambda data: read_head(b"GET /?" + data + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "request's path": lambda data: read_head(b"GET /.well-known/masque/tcp/" + data + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "request's fields": lambda data: read_head(request(data) + b"\r\n\r\n"),
    "request's Forwarded": lambda data: read_head(request(field(b"Forwarded", data)) + b"\r\n"),
    "request's Authorization": lambda data: read_head(request(field(b"Authorization", data)) + b"\r\n"),
    "request's Connection": lambda data: read_head(request(field(b"Connection", data)) + b"\r\n"),
    "request's Host": lambda data: read_head(b"GET / HTTP/1.1\r\n" + field(b"Host", data) + b"\r\n"),
    "request without an end, in pieces": lambda data: read_head(data, piece=PIECE),
    "request's fields without an end, in pieces": lambda data: read_head(request(data), piece=PIECE),
    "CONNECT's authority": lambda data: read_head(b"CONNECT " + data + b" HTTP/1.1\r\n\r\n"),
    "CONNECT": lambda data: read_head(request(data, connect=True) + b"\r\n\r\n"),
    "X-Forwarded-For": lambda data: client_address(ip, [data], header="X-Forwarded-For", trusted=everybody),
    "Forwarded": lambda data: client_address(ip, [data], header="Forwarded", trusted=everybody),
    "Forwarded in lines": lambda data: client_address(
        ip, [data[n : n + 64] for n in range(0, len(data), 64)], header="Forwarded", trusted=everybody
    ),
    "answer": lambda data: read_answer(data),
    "answer, in pieces": lambda data: read_answer(data, piece=PIECE),
    "answer's Proxy-Status": lambda data: read_answer(field(b"Proxy-Status", data)),
    "refusal's fields": lambda data: read_answer(data, status=b"404 No"),
    "refusal's Proxy-Status": lambda data: read_answer(field(b"Proxy-Status", data), status=b"404 No"),
    "refusal's body": lambda data: read_answer(b"Proxy-Status: http2tcp\r\n\r\n" + data, status=b"404 No"),
    "refusal's chunks": lambda data: read_answer(
        b"Proxy-Status: http2tcp\r\nTransfer-Encoding: chunked\r\n\r\n" + data, status=b"404 No", piece=PIECE
    ),
    "answer's first line": lambda data: read_answer(b"", status=data),
    "proxy's answer": lambda data: read_proxy_answer(data),
    "proxy's answer, in pieces": lambda data: read_proxy_answer(data, piece=PIECE),
    "proxy's challenge": lambda data: read_proxy_answer(field(b"Proxy-Authenticate", data)),
    "SOCKS": read_socks,
    "SOCKS methods": lambda data: read_socks(b"\5\xff" + data),
    "SOCKS name": lambda data: read_socks(b"\5\1\0\5\1\0\3\xff" + data),
    "PROXY": read_proxy_header,
    "PROXY 2": lambda data: read_proxy_header(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x40\x00" + data),
    "capsules": read_capsules,
    "capsules, in pieces": lambda data: read_capsules(data, piece=PIECE),
    "resuming": read_resuming,
    "resuming, in pieces": lambda data: read_resuming(data, piece=PIECE),
    "a HELLO": lambda data: read_resuming(b"\xb1\x6e\xef\x55\x44\x00" + data),
    "destination": forgiven(parse_destination, AddressError),
    "destination of a template": forgiven(lambda text: parse_target(text, "1"), AddressError),
    "port of a template": forgiven(lambda text: parse_target("a", text), AddressError),
    "where to listen": forgiven(parse_listen, AddressError),
    "endpoint, as in a redirect": forgiven(parse_endpoint, AddressError),
    "endpoint's path, as in a redirect": forgiven(lambda text: parse_endpoint("http://a/" + text), AddressError),
    "keepalive": forgiven(parse_keepalive),
    "certificate": forgiven_der(parse_certificate),
    "certificate's fields": lambda data: forgiven_der(parse_certificate)(der(data)),
    "key of a certificate": lambda data: forgiven_der(public_key)(der(data)),
}
# Each is one byte or a few that mean something in one of the formats.
BINARY = [
    b"\0", b"\xff", b"\x80", b"\x30\x00", b"\x30\x80", b"\x05\x00", b"\x40\x00", b"\xc0\0\0\0\0\0\0\0",
    b"\xa0\x28\xd7\xf2\x01x", b"\xa0\x28\xd7\xf2\x00", b"a: b\r\n", b"a:\r\n", b"a: b\r\n c\r\n", b"a: \r\n \r\n",
    b"for=1.1.1.1,", b"for=\"[::1]\",", b"for=\"\\\\\",", b"Basic a=\"\\\"\", ", b"1\r\na\r\n", b"addr=&", b"a&",
    b"http2tcp; error=\"\\\", ", b"upgrade,", b"\xc3\xa4", b"xn--a.", b"a;b=\"\\\"", b"0\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_parser_is_linear(entry: str) -> None:
    parse = ENTRIES[entry]
    # What is fed in pieces is fed whole by another entry: here only the pieces are new.
    beginnings = (b"",) if entry.endswith("in pieces") else (b"", b'"', b"a:")
    for unit in [*(unit.encode("latin-1") for unit in UNITS), *BINARY]:
        for beginning in beginnings:
            for ending in (b"", b"\0"):

                def once(size: int) -> None:
                    room = size - len(beginning) - len(ending)  # noqa: B023
                    parse(beginning + (unit * (room // len(unit) + 1))[:room] + ending)  # noqa: B023

                ratio = worse_than_linear(once)
                assert ratio < RATIO, (
                    f"{beginning!r} + many {unit!r} + {ending!r}: {ratio:.1f} times for twice the bytes"
                )


def test_a_quadratic_pattern_is_seen() -> None:
    """The test itself: it must be able to fail."""
    quadratic = re.compile(r'\\*"|,')
    assert doubled(lambda size: use(quadratic, "\\" * size, searched=True), SIZE, rounds=8) > RATIO


def test_a_quadratic_loop_is_seen() -> None:
    """As above, for a reader that looks at all it has at every byte."""

    def read(size: int) -> None:
        held = b""
        for _ in range(size // PIECE):
            held += b"x" * PIECE
            sum(held)

    assert doubled(read, SIZE, rounds=8) > RATIO
