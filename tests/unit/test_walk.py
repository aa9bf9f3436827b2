"""Which lines the attempts of a check make, as playbooks: what the client tells >> what the report is told."""

from __future__ import annotations

from typing import Any

import pytest

from http2tcp.address import TCPAddress, parse_endpoint
from http2tcp.client.check import walk
from http2tcp.client.check.hops import Hop, Verdict
from http2tcp.client.connector import Tunnel
from http2tcp.client.forwards import Forward
from http2tcp.client.observer import Progress
from http2tcp.client.proxy_choice import parse_proxy
from http2tcp.client.settings import ClientSettings
from http2tcp.errors import ConnectFailed, ResolveFailed, TLSFailed, TunnelError, UpgradeNotPassed
from http2tcp.net.streams import Ends
from http2tcp.protocol.client_handshake import Refused, Switched
from http2tcp.protocol.transport import Transport

ADDRESS = TCPAddress("192.0.2.1", 443)
PROXY = parse_proxy("http://proxy:3128", "--proxy")
BELOW_HTTP = {"name!": ResolveFailed("x"), "tcp!": ConnectFailed("x"), "tls!": TLSFailed("x")}


class Stream:
    """A tunnel whose target ends at once."""

    ends = Ends(half_close=False)

    async def receive_some(self, _max_bytes: int) -> bytes:
        return b""

    async def aclose(self) -> None:
        pass

    def abort(self) -> None:
        pass


def play(progress: Progress, attempt: str) -> TunnelError | None:
    """One attempt, as in `tcp: name tcp tls 404 again`; a hop with a ! fails. What it ended with."""
    transport, _, steps = attempt.partition(": ")
    progress.attempting(Transport(transport))
    again = steps.endswith(" again")
    error: TunnelError | None = None
    for step in steps.removesuffix(" again").split():
        match step:
            case "name":
                progress.resolved("example.com", ["192.0.2.1"])
            case "tcp":
                progress.connected(ADDRESS)
            case "proxy":
                progress.proxied(PROXY, ADDRESS)
            case "tls":
                progress.secured("TLSv1.3", None)
            case "101":
                progress.answered(Switched(Transport(transport), from_http2tcp=True), ())
            case "404":
                progress.answered(Refused(404, None), ())
                error = UpgradeNotPassed("x", passing=again)
            case _:
                error = BELOW_HTTP[step]
    if error is not None:
        progress.failed(error, again=again)
    return error


class Told:
    """A report of which only the order is kept: the hops, and in brackets what is waited for."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def begin(self, endpoint: str, destinations: object) -> None:
        pass

    def waiting(self, label: str, text: str) -> None:
        self.lines.append(f"({label}{' again' if text == 'again' else ''})")

    def hop(self, hop: Hop) -> None:
        failed = "!" if hop.state.value == "failed" else ""
        self.lines.append(f"+{hop.label}{failed}" if hop.key == "transport" else f"{hop.key}{failed}")

    def end(self, verdict: Verdict) -> None:
        pass


FULL = "connect-tcp: name tcp tls"
BEGIN = "(name) name (TCP) tcp (TLS) tls (front end)"
END = "server authorisation target"
BEST = "connect-tcp: name tcp tls 101"


def rest(*transports: str) -> list[list[str]]:
    """The transports that the client did not try, which do not get through."""
    return [[f"{transport}: name tcp tls 404"] for transport in transports]


@pytest.mark.parametrize(
    ("connections", "lines"),
    [
        # A line for each hop of the first attempt; of the further ones, what became of the transport.
        (
            [[BEST], *rest("tcp", "http2tcp/1.0", "websocket")],
            f"{BEGIN} front_end +connect-tcp (tcp) +tcp! (http2tcp/1.0) +http2tcp/1.0! (websocket) +websocket! {END}",
        ),
        # The first attempt fails below HTTP: its hops, the one that failed, and no transport.
        ([["connect-tcp: name!"]], "(name) name!"),
        ([["connect-tcp: name tcp!"]], "(name) name (TCP) tcp!"),
        ([["connect-tcp: name tcp tls!"]], "(name) name (TCP) tcp (TLS) tls!"),
        # All tries of a transport are one line, and what lies below HTTP is told by the first.
        (
            [[f"{FULL} 404 again", f"{FULL} 404 again", BEST], *rest("tcp", "http2tcp/1.0", "websocket")],
            f"{BEGIN} (connect-tcp again) (connect-tcp) (connect-tcp again) (connect-tcp) front_end +connect-tcp "
            f"(tcp) +tcp! (http2tcp/1.0) +http2tcp/1.0! (websocket) +websocket! {END}",
        ),
        # A repetition that fails below HTTP is the transport's failure.
        (
            [[f"{FULL} 404 again", "connect-tcp: name tcp!"]],
            f"{BEGIN} (connect-tcp again) (connect-tcp) front_end +connect-tcp!",
        ),
        # So is a further transport's.
        (
            [[f"{FULL} 404", "tcp: name tcp tls 101"], ["http2tcp/1.0: name tcp!"], ["websocket: name!"]],
            f"{BEGIN} front_end +connect-tcp! (tcp) +tcp (http2tcp/1.0) +http2tcp/1.0! (websocket) +websocket! {END}",
        ),
        # Nothing gets through: a line each, and no hop behind the front end.
        (
            [[f"{FULL} 404", "tcp: name tcp tls 404", "http2tcp/1.0: name 404", "websocket: name tcp tls 404"]],
            f"{BEGIN} front_end +connect-tcp! (tcp) +tcp! (http2tcp/1.0) +http2tcp/1.0! (websocket) +websocket!",
        ),
    ],
)
async def test_the_attempts_of_a_check_make_these_lines(
    connections: list[list[str]], lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ClientSettings(endpoint=parse_endpoint("https://example.com/"))
    assert await told(settings, connections, monkeypatch) == lines


async def test_a_further_destination_is_one_more_line(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = TCPAddress("127.0.0.1", 0)
    forwards = [Forward(listen, TCPAddress(name, 22)) for name in ("one", "two", "three")]
    settings = ClientSettings(
        endpoint=parse_endpoint("https://example.com/"), forwards=forwards, transport=Transport.CONNECT_TCP
    )
    # Also where it is answered in another way than the first, and where it needs a second try.
    connections = [[BEST], [BEST], [f"{FULL} 404 again", f"{FULL} tls!"]]
    lines = f"{BEGIN} front_end +connect-tcp {END} (target) target (target) target!"
    assert await told(settings, connections, monkeypatch) == lines


@pytest.mark.parametrize(
    ("proxy", "steps", "lines"),
    [
        ("http://proxy:3128", "proxy tls 101", "(proxy) proxy (TLS) tls (front end)"),
        ("socks5://proxy:1080", "name proxy tls 101", "(name) name (proxy) proxy (TLS) tls (front end)"),
    ],
)
async def test_a_proxy_takes_the_place_of_tcp(
    proxy: str, steps: str, lines: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ClientSettings(
        endpoint=parse_endpoint("https://example.com/"),
        proxy=parse_proxy(proxy, "--proxy"),
        transport=Transport.CONNECT_TCP,
    )
    expected = f"{lines} front_end +connect-tcp {END}"
    assert await told(settings, [[f"connect-tcp: {steps}"]], monkeypatch) == expected


async def told(settings: ClientSettings, connections: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the report of a check is told whose client makes these attempts, connection by connection."""
    scripts = iter(connections)

    class Scripted:
        def __init__(self, settings: ClientSettings, progress: Any = None) -> None:
            self._progress = progress

        async def connect(self, destination: object = None) -> Tunnel:
            error = None
            for attempt in next(scripts):
                error = play(self._progress, attempt)
            if error is not None:
                raise error
            return Tunnel(Stream(), Transport.CONNECT_TCP, target_accepted=True)  # type: ignore[arg-type]

    monkeypatch.setattr(walk, "Connector", Scripted)
    report = Told()
    await walk.check(settings, report)
    assert next(scripts, None) is None
    return " ".join(report.lines)
