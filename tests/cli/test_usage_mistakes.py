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
