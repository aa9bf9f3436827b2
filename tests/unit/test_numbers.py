"""No parser of a port or a number takes what int() and float() take beside digits: signs, blanks, other scripts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from http2tcp.address import parse_destination, parse_endpoint, parse_listen, parse_target
from http2tcp.client.forwards import parse_dynamic_forward, parse_local_forward
from http2tcp.client.proxy_choice import parse_proxy
from http2tcp.command.values import KEEPALIVE
from http2tcp.errors import Http2tcpError
from http2tcp.protocol.transport import parse_keepalive
from http2tcp.server.rules import parse_rule
from http2tcp.server.settings import parse_trusted_proxy
from http2tcp.units import parse_count, parse_duration, parse_rate

PARSERS: dict[str, Callable[[str], object]] = {
    "destination": lambda text: parse_destination(f"db:{text}"),
    "destination by ssh": lambda text: parse_destination(f"2001:db8::1:{text}"),
    "variables of a template": lambda text: parse_target("db", text),
    "listen": lambda text: parse_listen(f"127.0.0.1:{text}"),
    "listen on every interface": lambda text: parse_listen(f":{text}"),
    "listen on loopback": parse_listen,
    "endpoint": lambda text: parse_endpoint(f"https://example.com:{text}/"),
    "raw endpoint": lambda text: parse_endpoint(f"example.com:{text}/"),
    "endpoint by IPv6": lambda text: parse_endpoint(f"http://[::1]:{text}/"),
    "proxy": lambda text: parse_proxy(f"http://proxy:{text}", "--proxy"),
    "raw proxy": lambda text: parse_proxy(f"proxy:{text}", "--proxy"),
    "rule": lambda text: parse_rule(f"db:{text}"),
    "first of a range": lambda text: parse_rule(f"db:{text}-99"),
    "last of a range": lambda text: parse_rule(f"db:1-{text}"),
    "network": lambda text: parse_rule(f"10.0.0.0/{text}:22"),
    "trusted proxy": lambda text: parse_trusted_proxy(f"0.0.0.0/{text}"),
    "-L": lambda text: parse_local_forward(f"{text}:db:22"),
    "-L with an address": lambda text: parse_local_forward(f"127.0.0.1:{text}:db:22"),
    "-L to": lambda text: parse_local_forward(f"22:db:{text}"),
    "-D": parse_dynamic_forward,
    "-D with an address": lambda text: parse_dynamic_forward(f"127.0.0.1:{text}"),
    "time": parse_duration,
    "time with a unit": lambda text: parse_duration(f"{text}m"),
    "rate": parse_rate,
    "rate with a unit": lambda text: parse_rate(f"{text}K"),
    "count": parse_count,
    "--keepalive": lambda text: KEEPALIVE.parse(text),
    "the peer's keepalive": parse_keepalive,
}
ODD = ["+9", "-9", "1_0", " 9", "9 ", "\uff19", "\u0669", "\u00b2", "9\n", "+", ""]


@pytest.mark.parametrize("text", ODD, ids=ascii)
@pytest.mark.parametrize("name", PARSERS)
def test_a_number_is_digits(name: str, text: str) -> None:
    if text == "" and name in ("endpoint", "raw endpoint", "endpoint by IPv6", "proxy", "raw proxy"):
        return  # RFC 3986, section 3.2.3: an empty port is the scheme's own
    try:
        assert PARSERS[name](text) is None
    except Http2tcpError:
        pass


@pytest.mark.parametrize("name", PARSERS)
def test_and_digits_are_a_number(name: str) -> None:
    assert PARSERS[name]("9") is not None
