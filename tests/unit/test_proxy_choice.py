"""Which proxy is used, and which endpoints are reached without one."""

from __future__ import annotations

import pytest

from http2tcp.address import is_loopback, parse_endpoint
from http2tcp.client.proxy_choice import Proxy, choose, is_exception, parse_proxy
from http2tcp.errors import AddressError

HTTPS = "https://example.com/~http2tcp/"
HTTP = "http://example.com/~http2tcp/"
UPPER = {"HTTPS_PROXY": "http://s:1", "HTTP_PROXY": "http://p:2", "ALL_PROXY": "socks5h://a:3"}
LOWER = {"https_proxy": "http://ls:4", "http_proxy": "http://lp:5", "all_proxy": "socks5://la:6"}


def chosen(endpoint: str, **environ: str) -> str | None:
    proxy, _ = choose(parse_endpoint(endpoint), environ)
    return None if proxy is None else str(proxy)


# --- the variables ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "environ", "expected"),
    [
        (HTTPS, {}, None),
        (HTTPS, UPPER, "http://s:1"),
        (HTTP, UPPER, "http://p:2"),
        (HTTPS, UPPER | LOWER, "http://ls:4"),
        (HTTP, UPPER | LOWER, "http://lp:5"),
        (HTTPS, {"HTTP_PROXY": "http://p:2"}, None),
        (HTTP, {"HTTPS_PROXY": "http://s:1"}, None),
        (HTTPS, {"ALL_PROXY": "socks5h://a:3"}, "socks5h://a:3"),
        (HTTP, {"ALL_PROXY": "socks5h://a:3"}, "socks5h://a:3"),
        (HTTPS, {"ALL_PROXY": "socks5h://a:3", "all_proxy": "socks5://la:6"}, "socks5://la:6"),
        # The scheme's own variable beats the other in either case.
        (HTTPS, {"HTTPS_PROXY": "http://s:1", "all_proxy": "socks5://la:6"}, "http://s:1"),
        # What is set but empty is not set.
        (HTTPS, {"https_proxy": "", "HTTPS_PROXY": "http://s:1"}, "http://s:1"),
        (HTTPS, {"HTTPS_PROXY": "", "ALL_PROXY": "http://a:3"}, "http://a:3"),
        (HTTPS, {"HTTPS_PROXY": ""}, None),
        (HTTPS, {"HTTPS_PROXY": "s:1"}, "http://s:1"),
        # In a CGI program HTTP_PROXY comes from whoever sent the request.
        (HTTP, {"HTTP_PROXY": "http://p:2", "REQUEST_METHOD": "GET"}, None),
        (HTTP, {"HTTP_PROXY": "http://p:2", "http_proxy": "http://lp:5", "REQUEST_METHOD": "GET"}, "http://lp:5"),
        (HTTP, {"HTTP_PROXY": "http://p:2", "ALL_PROXY": "http://a:3", "REQUEST_METHOD": ""}, "http://a:3"),
        (HTTPS, {"HTTPS_PROXY": "http://s:1", "REQUEST_METHOD": "GET"}, "http://s:1"),
    ],
)
def test_the_endpoint_s_scheme_picks_the_variable(endpoint: str, environ: dict[str, str], expected: str | None) -> None:
    assert chosen(endpoint, **environ) == expected


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "db.localhost",
        "127.0.0.1",
        "127.9.8.7",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ],
)
def test_this_machine_is_never_reached_through_a_proxy(host: str) -> None:
    endpoint = parse_endpoint(f"https://{host}/")
    proxy, why = choose(endpoint, UPPER)
    assert proxy is None
    assert "this machine" in why


@pytest.mark.parametrize(
    "host", ["example.com", "mylocalhost", "localhost.example", "128.0.0.1", "::2", "::ffff:8.8.8.8"]
)
def test_another_machine_is_not_taken_for_this_one(host: str) -> None:
    assert not is_loopback(host)


def test_it_is_said_which_variable_names_the_proxy_and_which_makes_the_exception() -> None:
    endpoint = parse_endpoint(HTTPS)
    proxy, why = choose(endpoint, {"ALL_PROXY": "http://a:3"})
    assert proxy is not None
    assert (proxy.source, why) == ("ALL_PROXY", "ALL_PROXY")
    assert choose(endpoint, UPPER | {"NO_PROXY": ".com"}) == (None, "NO_PROXY has example.com")
    assert choose(endpoint, UPPER | {"NO_PROXY": "", "no_proxy": "*"}) == (None, "no_proxy has example.com")
    assert choose(endpoint, UPPER | {"NO_PROXY": "*", "no_proxy": "other"})[1] == "HTTPS_PROXY"
    assert choose(endpoint, {"HTTP_PROXY": "http://p:2"}) == (None, "no variable names one")


def test_a_variable_that_is_not_understood_is_named_and_its_password_is_not_shown() -> None:
    with pytest.raises(AddressError) as caught:
        choose(parse_endpoint(HTTPS), {"HTTPS_PROXY": "ftp://u:s3cret@p:1"})
    assert "HTTPS_PROXY: " in str(caught.value)
    assert "--no-proxy" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_variable_that_is_not_needed_is_not_read() -> None:
    assert chosen("https://localhost/", HTTPS_PROXY="ftp://p") is None
    assert chosen(HTTPS, HTTPS_PROXY="ftp://p", NO_PROXY="example.com") is None


# --- NO_PROXY -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_proxy", "host", "expected"),
    [
        ("*", "example.com", True),
        ("other, *", "10.1.2.3", True),
        ("example.com", "example.com", True),
        ("EXAMPLE.com", "example.com", True),
        ("example.com.", "example.com", True),
        ("example.com", "example.com.", True),
        ("example.com", "www.example.com", True),
        (".example.com", "www.example.com", True),
        (".example.com", "example.com", True),
        ("*.example.com", "www.example.com", True),
        ("example.com", "badexample.com", False),
        (".example.com", "badexample.com", False),
        ("www.example.com", "example.com", False),
        ("com", "example.com", True),
        ("a,b c\texample.com\n", "example.com", True),
        (" , ,", "example.com", False),
        ("", "example.com", False),
        (".", "example.com", False),
        ("*.", "example.com", False),
        # Ports: the endpoint's is 443.
        ("example.com:443", "example.com", True),
        ("example.com:8443", "example.com", False),
        (".example.com:443", "www.example.com", True),
        ("example.com:https", "example.com", False),
        ("example.com:", "example.com", True),
        ("*:443", "example.com", False),
        # Addresses and networks.
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.30", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.1.2.3/8", "10.9.9.9", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("0.0.0.0/0", "11.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("10.0.0.0/33", "10.1.2.3", False),
        ("10.0.0.0/x", "10.1.2.3", False),
        ("2.3", "10.1.2.3", False),
        (".3", "10.1.2.3", False),
        ("10.0.0.0/8", "ten.example", False),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("[2001:db8::1]", "2001:db8::1", True),
        ("[2001:db8::1]:443", "2001:db8::1", True),
        ("[2001:db8::1]:80", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("[2001:db8::]/32", "2001:db8::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("10.0.0.0/8", "2001:db8::1", False),
        ("::/0", "10.1.2.3", False),
    ],
)
def test_no_proxy_has_what_curl_says_it_has(no_proxy: str, host: str, expected: bool) -> None:
    assert is_exception(no_proxy, host, 443) is expected


# --- a proxy's URL ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://proxy.corp:3128", ("http", "proxy.corp", 3128, None)),
        ("http://proxy.corp:3128/", ("http", "proxy.corp", 3128, None)),
        ("proxy.corp:3128", ("http", "proxy.corp", 3128, None)),
        ("HTTPS://Proxy.Corp", ("https", "proxy.corp", 443, None)),
        ("http://proxy", ("http", "proxy", 80, None)),
        ("socks5://proxy", ("socks5", "proxy", 1080, None)),
        ("http://[fe80::1%25eth0]:9", ("http", "fe80::1%eth0", 9, None)),
        ("socks5h://[2001:db8::1]:9", ("socks5h", "2001:db8::1", 9, None)),
        ("http://us%65r:p%40%3A%2f@h:1", ("http", "h", 1, (b"user", b"p@:/"))),
        ("http://user:p:w@h:1", ("http", "h", 1, (b"user", b"p:w"))),
        ("http://us@er:pw@h:1", ("http", "h", 1, (b"us@er", b"pw"))),
        ("http://user@h:1", ("http", "h", 1, (b"user", b""))),
        ("http://:pw@h:1", ("http", "h", 1, (b"", b"pw"))),
        ("http://%FF:%C3%A4@h:1", ("http", "h", 1, (b"\xff", b"\xc3\xa4"))),
        ("socks5://a%3Ab:pw@h:1", ("socks5", "h", 1, (b"a:b", b"pw"))),
    ],
)
def test_a_proxy_is_read_in_every_spelling(text: str, expected: tuple[object, ...]) -> None:
    proxy = parse_proxy(text, "--proxy")
    assert (proxy.scheme, proxy.host, proxy.port, proxy.credentials) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://",
        "http://u:s3cret@",
        "ftp://u:s3cret@h:1",
        "socks4://u:s3cret@h:1",
        "http://u:s3cret@h:99999",
        "http://u:s3cret@h:0",
        "http://u:s3cret@[::1",
        "http://u:s3cret@h:1/path",
        "http://u:s3cret@h:1?q",
        "http://u:s3#cret@h:1",
        "http://u:s3/cret@h:1",
        "http://u:s3cret @h:1",
        "http://u:s3cret\x1b@h:1",
        "http://a%3Ab:s3cret@h:1",
        "socks5://:s3cret@h:1",
        "socks5://u:" + "s3cret" * 43 + "@h:1",
        "socks5://" + "u" * 256 + ":s3cret@h:1",
        "http://u:s3cret@h..x:1",
    ],
)
def test_what_is_no_proxy_is_one_sentence_without_its_password(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_proxy(text, "--proxy")
    sentence = str(caught.value)
    assert "s3" not in sentence
    assert "cret" not in sentence
    assert sentence.isprintable()
    assert "\n" not in sentence


def test_neither_a_log_nor_a_traceback_can_show_a_proxy_s_password() -> None:
    proxy = parse_proxy("socks5h://us3r:s3cret@proxy:1080", "HTTPS_PROXY")
    for shown in (str(proxy), repr(proxy), f"{proxy}", f"{(proxy,)}"):
        assert "socks5h://proxy:1080" in shown
        assert "s3cret" not in shown
        assert "us3r" not in shown


def test_who_looks_the_endpoint_s_name_up_depends_on_the_scheme() -> None:
    def resolves(scheme: str) -> bool:
        return Proxy(scheme, "h", 1).resolves

    assert [resolves(scheme) for scheme in ("http", "https", "socks5", "socks5h")] == [True, True, False, True]
