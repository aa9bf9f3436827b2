"""A front end is recognised by what it says, and its lines pass every token that the server knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from http2tcp.client.front_ends import (
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

EXAMPLES = Path(__file__).parents[2] / "examples"

# A front end's example, the pattern of the parts that its lines repeat, and what is in one of the two alone.
SAME: dict[str, tuple[FrontEnd, str, str, set[str], set[str]]] = {
    "nginx": (
        NGINX,
        "nginx.conf",
        r"map \$http_upgrade .*?\}|location /~http2tcp/ \{.*?\n        \}",
        {"http {", "server {"},
        {"access_log /var/log/nginx/http2tcp.log http2tcp;"},
    ),
    "HAProxy": (
        HAPROXY,
        "haproxy.cfg",
        r"use_backend [^\n]*|\nbackend http2tcp.*",
        {"frontend THE-ONE-THAT-BINDS-THE-PORT", "mode http"},
        set(),
    ),
    "Apache": (APACHE, "apache.conf", r"<Location .*</Location>", set(), set()),
    "Caddy": (CADDY, "Caddyfile", r"\thandle .*\n\t\}", set(), set()),
    "Envoy": (
        ENVOY,
        "envoy.yaml",
        r"route_config:.*?\n\n  # --- 2",
        {"- name: YOURS"},
        {"- name: site"},
    ),
    "Traefik": (
        TRAEFIK,
        "traefik/http2tcp.yml",
        r"\{\{ \$tokens.*:12345",
        set(),
        {"entryPoints: [site]", "tls: {}"},
    ),
}

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


# The examples have them in the order in which they are explained.
IN_EXAMPLES = ["tcp", "http2tcp/1.0", "connect-tcp", "connect-tcp-12", "websocket"]


def directives(text: str) -> set[str]:
    """The lines without their comments and spacing."""
    for separator in (" ", '" "', "|"):
        text = text.replace(separator.join(IN_EXAMPLES), separator.join(TOKENS))
        text = text.replace(separator.join(IN_EXAMPLES).replace(".", "[.]"), separator.join(TOKENS).replace(".", "[.]"))
    found = (" ".join(line.split()).replace('"/~http2tcp/"', "/~http2tcp/") for line in text.splitlines())
    return {line for line in found if line and not line.startswith("# ")}


@pytest.mark.parametrize(
    ("front_end", "example", "parts", "of_the_lines", "of_the_example"), SAME.values(), ids=SAME.keys()
)
def test_the_lines_are_those_of_the_example(
    front_end: FrontEnd, example: str, parts: str, of_the_lines: set[str], of_the_example: set[str]
) -> None:
    """Whoever follows --check gets what a reader of the examples gets: nobody can forge an address."""
    shown = directives("\n".join(lines(front_end)))
    there = directives("\n".join(re.findall(parts, (EXAMPLES / example).read_text(), re.DOTALL)))
    assert shown - there == of_the_lines
    assert there - shown == of_the_example


def test_every_front_end_with_lines_is_compared_with_its_example() -> None:
    assert {front_end.name for front_end, *_ in SAME.values()} == {front_end.name for front_end in WITH_LINES}
    assert sorted(IN_EXAMPLES) == sorted(TOKENS)


@pytest.mark.parametrize("front_end", WITH_LINES, ids=lambda front_end: front_end.name)
def test_the_lines_drop_what_a_client_claims_to_be(front_end: FrontEnd) -> None:
    text = "\n".join(lines(front_end)).lower()
    assert "forwarded" in text.replace("x-forwarded-for", "")
    # Caddy and Traefik replace the other field by themselves.
    assert "x-forwarded-for" in text or front_end in (CADDY, TRAEFIK)
