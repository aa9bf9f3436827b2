"""A front end is recognised by what it says, and its lines pass every token that the server knows."""

from __future__ import annotations

import re

import pytest

from http2tcp.advice import (
    APACHE,
    CADDY,
    CLOUDFLARE,
    ENVOY,
    FRONT_ENDS,
    GOOGLE,
    HAPROXY,
    NGINX,
    TRAEFIK,
    UNKNOWN_NOTE,
    FrontEnd,
    lines,
    recognise,
)
from http2tcp.protocol.transport import TOKENS, Transport

WITH_LINES = [front_end for front_end in FRONT_ENDS if front_end.template]

ANSWERS: dict[str, tuple[list[tuple[str, str]], FrontEnd, bool]] = {
    "nginx": ([("server", "nginx/1.22.1")], NGINX, True),
    "nginx without a version": ([("server", "nginx")], NGINX, True),
    "openresty": ([("server", "openresty/1.25.3.1")], NGINX, True),
    "Apache": ([("server", "Apache/2.4.71 (Debian)")], APACHE, True),
    "Apache without a version": ([("server", "Apache")], APACHE, True),
    "Caddy": ([("server", "Caddy")], CADDY, True),
    "Caddy that leaves the Server of what is behind it": ([("via", "1.1 Caddy"), ("server", "x")], CADDY, True),
    "Envoy": ([("date", "today"), ("server", "envoy")], ENVOY, True),
    "Istio": ([("server", "istio-envoy")], ENVOY, True),
    "Cloudflare": ([("server", "cloudflare"), ("cf-ray", "1-FRA")], CLOUDFLARE, True),
    "Google": ([("via", "1.1 google")], GOOGLE, True),
    "Google before others": ([("via", "1.0 fred, 1.1 google")], GOOGLE, True),
    "HAProxy's own page": (
        [("content-length", "107"), ("cache-control", "no-cache"), ("content-type", "text/html")],
        HAPROXY,
        False,
    ),
    "Traefik's own page": (
        [
            ("content-type", "text/plain; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("date", "Sat, 21 Nov 2026 10:15:48 GMT"),
            ("content-length", "19"),
        ],
        TRAEFIK,
        False,
    ),
}


@pytest.mark.parametrize(("fields", "front_end", "certain"), ANSWERS.values(), ids=ANSWERS.keys())
def test_a_front_end_is_recognised(fields: list[tuple[str, str]], front_end: FrontEnd, certain: bool) -> None:
    found = recognise(fields)
    assert found is not None
    assert (found.front_end, found.certain) == (front_end, certain)
    assert ("probably" in str(found)) is not certain


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("server", "Microsoft-IIS/10.0")],
        [("server", "Apache-Coyote/1.1")],
        [("server", "")],
        # Anybody may send these two; HAProxy's page has no Server.
        [("server", "x"), ("cache-control", "no-cache"), ("content-type", "text/html")],
        [("cache-control", "no-cache"), ("content-type", "text/html"), ("date", "today")],
        [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff"), ("content-length", "5")],
        [("via", "1.1 googlebot")],
    ],
)
def test_what_is_not_known_is_not_guessed(fields: list[tuple[str, str]]) -> None:
    assert recognise(fields) is None


@pytest.mark.parametrize("front_end", WITH_LINES, ids=lambda front_end: front_end.name)
def test_the_lines_are_for_the_path_that_was_asked_for(front_end: FrontEnd) -> None:
    text = "\n".join(lines(front_end, "/deep/place/"))
    assert "/deep/place/" in text
    assert "~http2tcp" not in text
    assert "127.0.0.1:12345" in text
    assert re.search("@[A-Z]+@", text) is None


@pytest.mark.parametrize("front_end", WITH_LINES, ids=lambda front_end: front_end.name)
def test_the_lines_pass_every_token_or_their_note_says_that_all_pass(front_end: FrontEnd) -> None:
    text = "\n".join(lines(front_end)).replace("[.]", ".")
    named = [token for token in TOKENS if re.search(rf"(?<![\w-]){re.escape(token)}(?![\w-])", text)]
    if front_end is TRAEFIK:
        assert "passes every upgrade" in front_end.note
    else:
        assert named == list(TOKENS)


def test_every_transport_and_both_spellings_of_connect_tcp_are_among_the_tokens() -> None:
    assert {transport.value for transport in Transport} | {"connect-tcp-12"} == set(TOKENS)
    for token in TOKENS:
        assert token in UNKNOWN_NOTE


def test_a_front_end_that_passes_websocket_alone_has_no_lines_and_says_so() -> None:
    for front_end in (CLOUDFLARE, GOOGLE):
        assert lines(front_end) == []
        assert "websocket" in front_end.note
