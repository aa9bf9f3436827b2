"""Every spelling of an address that the command line, the settings and the wire take, and those they do not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from http2tcp.address import (
    MAX_UNIX_PATH,
    Address,
    Endpoint,
    TCPAddress,
    UnixAddress,
    normal_path,
    parse_destination,
    parse_endpoint,
    parse_host,
    parse_listen,
    parse_target,
)
from http2tcp.errors import AddressError


def is_a_sentence(error: AddressError) -> bool:
    """What a person reads: one printable line that says what to write instead."""
    text = str(error)
    return text.isprintable() and bool(re.search("expected|begins with|has no|has at most", text))


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:22", "localhost", 22),
        ("LocalHost:22", "localhost", 22),
        ("db_1.internal:5432", "db_1.internal", 5432),
        ("example.com.:443", "example.com.", 443),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("127.1:22", "127.1", 22),
        ("a:65535", "a", 65535),
        ("a:00022", "a", 22),
        ("[::1]:22", "::1", 22),
        ("[2001:DB8:0:0::1]:22", "2001:db8::1", 22),
        ("[fe80::1%eth0]:22", "fe80::1%eth0", 22),
        # ssh's %h:%p.
        ("::1:22", "::1", 22),
        ("2001:db8::1:22", "2001:db8::1", 22),
        ("::ffff:10.0.0.1:22", "::ffff:10.0.0.1", 22),
        ("[::FFFF:a00:1]:22", "::ffff:10.0.0.1", 22),
        (":22", "localhost", 22),
        ("bücher.example:80", "xn--bcher-kva.example", 80),
        ("１２７.0.0.1:80", "127.0.0.1", 80),
    ],
)
def test_a_destination_is_understood(text: str, host: str, port: int) -> None:
    assert parse_destination(text) == TCPAddress(host, port)


@pytest.mark.parametrize("parse", [parse_destination, parse_listen])
def test_a_unix_socket_is_a_destination_and_a_listener(parse: Callable[[str], Address]) -> None:
    assert parse("unix:/run/sshd 1.sock") == UnixAddress("/run/sshd 1.sock")
    assert str(parse("unix:/run/a:22")) == "unix:/run/a:22"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "localhost",
        "localhost:",
        "localhost:ssh",
        "localhost:0",
        "localhost:65536",
        "localhost:-1",
        "localhost:+22",
        "localhost: 22",
        "localhost:22 ",
        "localhost:22\n",
        "localhost:٢٢",
        "a b:22",
        "a/b:22",
        "user@host:22",
        "-oProxyCommand=x:22",
        "a..b:22",
        "a-:22",
        ".a:22",
        "a\0:22",
        "a\n:22",
        "a" * 254 + ":22",
        "ü" * 20_000 + ":22",
        "☃.example:22",
        "\udcff:22",
        "[::1]",
        "[::1:22",
        "::1]:22",
        "[]:22",
        "[localhost]:22",
        "[127.0.0.1]:22",
        "::g:22",
        "1:2:3:22",
        "[::1%]:22",
        "[::1%a b]:22",
        "[::1%25%]:22",
        "[::1%lo\nended session=0]:22",
        "[::1%lo\x1b[2J]:22",
        "unix:",
        "unix:run/a",
        "unix:~/a",
        "unix:/a\0b",
        "unix:/a\nopened session=0",
        "unix:/a\x1b]0;x\x07",
        "unix:/a\u2028b",
        "unix:/a\udcff",
        "unix:/" + "a" * MAX_UNIX_PATH,
        "unix:/" + "ü" * (MAX_UNIX_PATH // 2 + 1),
    ],
)
def test_a_bad_destination_gets_a_sentence_that_says_what_was_expected(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_destination(text)
    assert is_a_sentence(caught.value)


def test_a_unix_path_may_be_as_long_as_the_kernel_takes() -> None:
    path = "/" + "a" * (MAX_UNIX_PATH - 1)
    assert parse_destination(f"unix:{path}") == UnixAddress(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (":12345", TCPAddress("", 12345)),
        ("12345", TCPAddress("127.0.0.1", 12345)),
        ("0", TCPAddress("127.0.0.1", 0)),
        (":0", TCPAddress("", 0)),
        ("localhost:80", TCPAddress("localhost", 80)),
        ("[::]:80", TCPAddress("::", 80)),
        (":::80", TCPAddress("::", 80)),
        ("0.0.0.0:80", TCPAddress("0.0.0.0", 80)),
    ],
)
def test_a_listening_address_is_understood(text: str, expected: TCPAddress) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", ["", "localhost", "123456", "65536", "-1", "*:80", "host:", "host:a"])
def test_a_bad_listening_address_gets_a_sentence(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_listen(text)
    assert is_a_sentence(caught.value)


@pytest.mark.parametrize(("text", "host"), [("Example.com", "example.com"), ("[::1]", "::1"), ("::1", "::1")])
def test_a_host_alone_is_understood(text: str, host: str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize("text", ["", "a b", "[::1", "a:22"])
def test_a_bad_host_gets_a_sentence(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_host(text)
    assert is_a_sentence(caught.value)


# --- endpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tls", "host", "port", "path", "query", "authority"),
    [
        ("https://example.com/~http2tcp/", True, "example.com", 443, "/~http2tcp/", "", "example.com"),
        ("https://example.com", True, "example.com", 443, "/", "", "example.com"),
        ("https://example.com:8443/p", True, "example.com", 8443, "/p", "", "example.com:8443"),
        ("http://example.com", False, "example.com", 80, "/", "", "example.com"),
        ("http://example.com:443", False, "example.com", 443, "/", "", "example.com:443"),
        ("HTTPS://EXAMPLE.com/P", True, "example.com", 443, "/P", "", "example.com"),
        # As in the original: no scheme is http.
        ("example.com:8080/p?k=v", False, "example.com", 8080, "/p", "k=v", "example.com:8080"),
        ("example.com", False, "example.com", 80, "/", "", "example.com"),
        ("localhost:80", False, "localhost", 80, "/", "", "localhost"),
        ("example.com/p?next=http://other", False, "example.com", 80, "/p", "next=http://other", "example.com"),
        # A zone belongs to this machine: it is not in the Host field (RFC 6874).
        ("http://[fe80::1%25eth0]/", False, "fe80::1%eth0", 80, "/", "", "[fe80::1]"),
        ("http://[fe80::1%eth0]:8080/", False, "fe80::1%eth0", 8080, "/", "", "[fe80::1]:8080"),
        ("https://[FE80::1%25Eth0]/", True, "fe80::1%Eth0", 443, "/", "", "[fe80::1]"),
        ("http://[fe80::1%25]/", False, "fe80::1%25", 80, "/", "", "[fe80::1]"),
        ("http://[2001:db8::1]:8080/", False, "2001:db8::1", 8080, "/", "", "[2001:db8::1]:8080"),
        ("https://[::1]", True, "::1", 443, "/", "", "[::1]"),
        ("https://bücher.example/ü", True, "xn--bcher-kva.example", 443, "/%C3%BC", "", "xn--bcher-kva.example"),
        ("https://h/a%2Fb?c=%20d", True, "h", 443, "/a%2Fb", "c=%20d", "h"),
        ("http://h/\udcff", False, "h", 80, "/%FF", "", "h"),
    ],
)
def test_an_endpoint_is_taken_apart(
    text: str, tls: bool, host: str, port: int, path: str, query: str, authority: str
) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint == Endpoint(tls=tls, host=host, port=port, path=path, query=query)
    assert endpoint.authority == authority


def test_the_login_in_an_endpoint_is_unquoted_once() -> None:
    endpoint = parse_endpoint("https://us%40er:p%3Aa%2525s@example.com/")
    assert (endpoint.username, endpoint.password) == ("us@er", "p:a%25s")


def test_an_endpoint_with_a_zone_is_shown_as_a_url_that_can_be_given_again() -> None:
    for shown in ("http://[fe80::1%25eth0]:8080/", "https://[fe80::1%25eth0]/"):
        assert str(parse_endpoint(shown.replace("%25", "%"))) == str(parse_endpoint(shown)) == shown


def test_an_endpoint_shows_neither_its_login_nor_its_query() -> None:
    endpoint = parse_endpoint("https://user:hunter2@example.com/p?key=hunter3")
    assert str(endpoint) == "https://example.com/p"
    assert "hunter2" not in repr(endpoint)
    assert "user" not in repr(endpoint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        "https:///path",
        "https://user:hunter2@",
        "ftp://user:hunter2@example.com",
        "wss://example.com",
        "https://user:hunter2@example.com/#fragment",
        "https://user:hunter2@example.com:0/",
        "https://user:hunter2@example.com:65536/",
        "https://user:hunter2@example.com:ssh/",
        "https://user:hunter2/x@example.com/",
        "https://user:hunter2?x@example.com/",
        "https://user:hunter2@[::1/",
        "https://user:hunter2@exa mple.com/",
        "https://user:hunter2@example.com/\r\nX: y",
        "https://user:hunter2@a..b/",
        "https://user:hunter2@℀.example/",
    ],
)
def test_a_bad_endpoint_gets_a_sentence_without_the_password(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_endpoint(text)
    assert is_a_sentence(caught.value)
    assert "hunter2" not in str(caught.value)


# --- templates (RFC 6570), as connect-tcp uses them -------------------------------------------

VARIABLES = {"target_host": "%3A%3A1", "target_port": "22"}


@pytest.mark.parametrize(
    ("text", "path", "query", "bare"),
    [
        ("https://h/p{?target_host,target_port}", "/p", "target_host=%3A%3A1&target_port=22", ("/p", "")),
        ("https://h/p?k=v{&target_host,target_port}", "/p", "k=v&target_host=%3A%3A1&target_port=22", ("/p", "k=v")),
        ("https://h/p{?target_port,target_host}", "/p", "target_port=22&target_host=%3A%3A1", ("/p", "")),
        ("https://h/tcp/{target_host}/{target_port}/", "/tcp/%3A%3A1/22/", "", ("/tcp///", "")),
        ("https://h/p?h={target_host}&p={target_port}", "/p", "h=%3A%3A1&p=22", ("/p", "h=&p=")),
    ],
)
def test_a_template_is_filled_in(text: str, path: str, query: str, bare: tuple[str, str]) -> None:
    endpoint = parse_endpoint(text)
    assert endpoint.is_template
    assert endpoint.expand(VARIABLES) == (path, query)
    assert endpoint.expand({}) == bare
    assert endpoint.needs_target == ("?" not in text.partition("{")[2] and "&target" not in text)
    assert "{" not in str(endpoint)


def test_an_endpoint_without_a_template_is_left_as_it_is() -> None:
    endpoint = parse_endpoint("https://h/p?k=v")
    assert not endpoint.is_template
    assert not endpoint.needs_target
    assert endpoint.expand(VARIABLES) == ("/p", "k=v")


@pytest.mark.parametrize(
    "template",
    [
        "{target_host}",
        "{?target_host}",
        "{?target_host,target_host}",
        "{+target_host}/{target_port}",
        "{target_host:3}/{target_port}",
        "{}",
        "{",
        "}",
        "{{target_host}}/{target_port}",
        "{target_host}/{target_port}{",
        "{target_host}/{target_port}/{target_port}",
    ],
)
def test_a_template_that_cannot_be_filled_in_gets_a_sentence(template: str) -> None:
    for text in (f"https://h/{template}", f"https://h/p?k=v&{template}"):
        with pytest.raises(AddressError) as caught:
            parse_endpoint(text)
        assert is_a_sentence(caught.value)


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("db", "5432", TCPAddress("db", 5432)),
        ("::1", "22", TCPAddress("::1", 22)),
        ("192.0.2.1", "22", TCPAddress("192.0.2.1", 22)),
        ("DB", "022", TCPAddress("db", 22)),
    ],
)
def test_a_templates_variables_are_a_destination(host: str, port: str, expected: TCPAddress) -> None:
    assert parse_target(host, port) == expected


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("", "22"),
        ("db", ""),
        ("db", "ssh"),
        ("db", "0"),
        ("db", "65536"),
        ("db", "22 "),
        ("[::1]", "22"),
        ("unix:/run/docker.sock", "22"),
        ("unix", "/run"),
        ("db:22", "22"),
        ("a b", "22"),
        ("::1%a\nb", "22"),
    ],
)
def test_variables_that_are_no_destination_get_a_sentence(host: str, port: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_target(host, port)
    assert is_a_sentence(caught.value)


@pytest.mark.parametrize(
    ("template", "target"),
    [
        ("/m{/target_host,target_port}", "/m/db/22"),
        ("/m{;target_host,target_port}", "/m;target_host=db;target_port=22"),
        ("/m{?target_host,target_port,tenant}", "/m?target_host=db&target_port=22"),
        ("/m{?target_port}{&target_host}", "/m?target_port=22&target_host=db"),
        ("/{tenant}/m{?target_host,target_port}", "//m?target_host=db&target_port=22"),
    ],
)
def test_a_template_of_the_third_level_is_expanded(template: str, target: str) -> None:
    path, query = parse_endpoint(f"https://example.com{template}").expand({"target_host": "db", "target_port": "22"})
    assert path + ("?" + query if query else "") == target


@pytest.mark.parametrize("template", ["{+target_host,target_port}", "{.target_host,target_port}", "{?tenant}"])
def test_other_templates_are_refused(template: str) -> None:
    with pytest.raises(AddressError, match="template"):
        parse_endpoint(f"https://example.com/{template}")


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/%7Ehttp2tcp/", "/~http2tcp/"),
        ("/%7ehttp2tcp/", "/~http2tcp/"),
        ("/%41%5A%61%7A%30%39%2D%2E%5F", "/AZaz09-._"),
        # Reserved characters, and what was escaped twice, mean something else.
        ("/a%2Fb%2fc%3F%23%25%20%7B%7D%40%5B%60%3A%2C", "/a%2Fb%2fc%3F%23%25%20%7B%7D%40%5B%60%3A%2C"),
        ("/%257E", "/%257E"),
        ("/%7", "/%7"),
    ],
)
def test_escapes_of_unreserved_characters_alone_say_nothing(path: str, normal: str) -> None:
    assert normal_path(path) == normal
    assert parse_endpoint(f"https://example.com{path}").path == normal
