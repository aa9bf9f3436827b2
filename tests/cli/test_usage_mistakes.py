"""A mistake in the arguments is one sentence on stderr that says what was expected, exit 2, and no secret."""

from __future__ import annotations

import pytest

from .conftest import Run, complaint

CLIENT = ("-c", "-e", "https://example.com/")
SERVER = ("-s", "-t", "s3cret")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "-s"),
        (("-c",), "-e"),
        (("-c", "-t", "s3cret"), "-e"),
        (("-s", "-t"), "-t"),
        ((*CLIENT, "-e"), "-e"),
        (("--servr",), "--server"),
        ((*CLIENT, "--tokn=s3cret"), "--token"),
        ((*CLIENT, "--insecure=s3cret"), "--insecure"),
        ((*CLIENT, "-x"), "-x"),
        ((*SERVER, "-l", "foo"), "HOST:PORT"),
        ((*SERVER, "-l", "localhost:99999"), "65535"),
        ((*SERVER, "-l", "99999"), "65535"),
        ((*SERVER, "-l", ""), "HOST:PORT"),
        ((*SERVER, "-l", "unix:relative"), "unix:/"),
        ((*SERVER, "-d", "22"), "HOST:PORT"),
        ((*SERVER, "-d", "localhost:0"), "1 to 65535"),
        ((*SERVER, "-d", "[::1:22"), "IPv6"),
        ((*SERVER, "-d", "a b:22"), "host name"),
        ((*SERVER, "--path", "relative"), "/~http2tcp/"),
        ((*SERVER, "--path", "/a?b=s"), "ends before ? and #"),
        ((*SERVER, "--path", "/a#b"), "ends before ? and #"),
        ((*SERVER, "--path", "/a b"), "as it is sent, /a%20b"),
        ((*SERVER, "--path", "/bücher/"), "as it is sent, /b%C3%BCcher/"),
        ((*SERVER, "--allow-origin", "example.com"), "https://example.com"),
        ((*SERVER, "--allow-origin", "https://example.com/"), "as browsers send it"),
        ((*SERVER, "--allow-origin", "https://Example.com"), "as browsers send it"),
        ((*SERVER, "--allow-origin", "null"), "as browsers send it"),
        ((*SERVER, "--allow-origin", "*"), "as browsers send it"),
        ((*SERVER, "--allow-origin", ""), "as browsers send it"),
        ((*SERVER, "--grace", "soon"), "seconds"),
        ((*SERVER, "--grace", "0"), "above 0"),
        ((*SERVER, "--grace", "-1"), "above 0"),
        ((*SERVER, "--grace", "nan"), "seconds"),
        ((*SERVER, "--connect-timeout", "inf"), "seconds"),
        ((*CLIENT, "--transport", "udp"), "tcp"),
        ((*CLIENT, "-H", "Sec-WebSocket-Protocol: chat"), "set by http2tcp itself"),
        (("-c", "-e", "http://h/", "--fdpass", "--transport", "websocket"), "raw transport"),
        ((*CLIENT, "-L", "5432"), "[BIND:]PORT:HOST:HOSTPORT"),
        ((*CLIENT, "-L", "db:5432"), "[BIND:]PORT:HOST:HOSTPORT"),
        ((*CLIENT, "-L", "::1:5432:db:5432"), "brackets"),
        ((*CLIENT, "-L", "5432:db:0"), "1 to 65535"),
        ((*CLIENT, "-D", "nobody"), "[BIND:]PORT"),
        ((*CLIENT, "-D", "1080:db:22"), "[BIND:]PORT"),
        (("-c", "-e", "http://h/", "--fdpass", "-D", "1080"), "--fdpass"),
        (("-c", "-e", "http://h/", "--fdpass", "-l", "1080"), "--fdpass"),
        (("-c", "-e", "http://h/{target_host}/{target_port}", "-l", "1080"), "-d"),
        (("-c", "-e", "http://h/{target_host}/{target_port}", "-L", "1080:unix:/run/x"), "no place for a Unix socket"),
        (("-c", "-e", ""), "https://"),
        (("-c", "-e", "ftp://u:s3cret@h/"), "https://"),
        (("-c", "-e", "https://u:s3cret pw@h/"), "https://"),
        (("-c", "-e", "https://u:s3cret@h:99999/"), "https://"),
        (("-c", "-e", "https://u:s3cret@[::1/"), "https://"),
        (("-c", "-e", "https://u:s3cret@h/#fragment"), "https://"),
        (("-c", "-e", "https://u:s3cret@:443/"), "https://"),
        (("-c", "-e", "https://u:s3cret@h..x/"), "host name"),
        (("-c", "-e", "https:///path"), "https://"),
        (("-c", "-e", "https://h/\x1b[2J"), "control"),
        # Forgotten quotes and flags: each leaves a piece of something secret behind.
        ((*CLIENT, "-H", "Authorization:", "Bearer", "s3cret"), "quotes"),
        ((*CLIENT, "s3cret"), "quotes"),
        (("-c", "https://u:s3cret@h/"), "quotes"),
        ((*CLIENT, "--", "-t", "s3cret"), "quotes"),
        # A name of ours is no secret.
        (("client", "-e", "https://h/"), "unexpected argument: 'client'; is --client meant?"),
        ((*SERVER, "log-file", "s3cret"), "unexpected argument: 'log-file'; is --log-file meant?"),
    ],
)
def test_a_mistake_is_one_sentence_that_says_what_was_expected(
    http2tcp: Run, arguments: tuple[str, ...], expected: str
) -> None:
    sentence = complaint(http2tcp(*arguments))
    assert expected in sentence
    assert "s3cret" not in sentence
    assert "Traceback" not in sentence
    assert all(character.isprintable() for character in sentence)


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (("-s", "--servr"), {}, "no such option '--servr'. Did you mean '--server'?"),
        (("-s", "-x"), {}, "no such option '-x'"),
        (("-s", "-t"), {}, "option '-t' requires an argument"),
        ((*SERVER, "--grace", "soon"), {}, "--grace: 'soon': expected a time above 0, in seconds or as in 90s, 15m"),
        ((*CLIENT, "-d", "22"), {}, "-d: '22': expected HOST:PORT"),
        ((*CLIENT, "--destination", "22"), {}, "-d: '22': expected HOST:PORT"),
        ((*SERVER, "--log-format", "xml"), {}, "--log-format: 'xml': expected text or json"),
        # A unit's environment may be far from its command line.
        (SERVER, {"HTTP2TCP_GRACE": "soon"}, "HTTP2TCP_GRACE: 'soon': expected a time above 0"),
        ((*SERVER, "-d", "db:22"), {"HTTP2TCP_DESTINATION": "x"}, None),
        (CLIENT, {"HTTP2TCP_PIN_SHA256": "x"}, "HTTP2TCP_PIN_SHA256: expected the SHA-256 of a public key"),
        (CLIENT, {"HTTP2TCP_PIN_SHA256": " \n "}, "HTTP2TCP_PIN_SHA256 holds blanks alone: it was probably not filled"),
        ((), {"HTTP2TCP_SERVER": "maybe"}, "HTTP2TCP_SERVER: 'maybe': expected 1 or 0, true or false"),
    ],
)
def test_a_mistake_names_the_option_or_the_variable_that_it_was_made_in(
    http2tcp: Run, arguments: tuple[str, ...], variables: dict[str, str], expected: str | None
) -> None:
    ran = http2tcp(*arguments, **variables)
    if expected is None:
        assert ran.started
    else:
        sentence = complaint(ran)
        assert sentence.startswith(expected)
        assert not sentence.endswith(".")


def test_a_value_of_any_length_leaves_a_sentence_that_can_be_read(http2tcp: Run) -> None:
    sentence = complaint(http2tcp(*CLIENT, "-d", "a" * 70_000))
    assert sentence.startswith("-d: 'aaa")
    assert sentence.endswith("expected HOST:PORT, [IPv6]:PORT or unix:/PATH")
    assert len(sentence) < 1100


@pytest.mark.parametrize("character", ["\x1b[31m", "\r", "\n", "\x00", "\u202e", "\udcff"])
@pytest.mark.parametrize(
    "option", ["-d", "-l", "-L", "-D", "-e", "--path", "--transport", "--grace", "--ca-file", "--x"]
)
def test_no_argument_can_write_control_characters_to_the_terminal(http2tcp: Run, option: str, character: str) -> None:
    if option == "--x":
        sentence = complaint(http2tcp("-s", "-c", f"--x{character}"))
    else:
        sentence = complaint(http2tcp("-s", "-c", "-t", "x", option, f"a{character}b"))
    assert all(letter.isprintable() for letter in sentence), sentence
