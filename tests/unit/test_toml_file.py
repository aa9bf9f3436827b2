"""The configuration file: what its keys become, and every mistake with its path."""

from __future__ import annotations

import hashlib
import math
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from http2tcp.address import TCPAddress, UnixAddress, parse_listen
from http2tcp.command.toml_file import Config, Key, new_token, parse_config, parse_name, read_config
from http2tcp.errors import ConfigError, SettingsError
from http2tcp.server.policy import digest
from http2tcp.server.rules import parse_rule
from http2tcp.units import parse_count, parse_duration

KEYS = {
    "listen": Key(parse_listen, many=True),
    "allow": Key(parse_rule, many=True),
    "path": Key(str),
    "connect": Key(str, "flag"),
    "grace": Key(parse_duration, "number"),
    "max_tunnels": Key(parse_count, "number"),
    "token_file": Key(str, "file"),
}
SHA256 = digest("s3cret").hex()
OTHER = digest("other").hex()
ALICE = f'[[token]]\nname = "alice"\nsha256 = "{SHA256}"\n'


def parsed(text: str, path: str = "/etc/http2tcp.toml") -> Config:
    return parse_config(text, KEYS, path)


def mistakes(text: str) -> list[str]:
    """All of them, without the file's name, which each begins with."""
    with pytest.raises(ConfigError) as error:
        parsed(text)
    assert all(mistake.startswith("/etc/http2tcp.toml") for mistake in error.value.mistakes)
    assert "\n" not in str(error.value)
    assert "s3cret" not in str(error.value.mistakes)
    return [re.sub(r"^/etc/http2tcp\.toml(: )?", "", mistake) for mistake in error.value.mistakes]


# --- values ---------------------------------------------------------------------------------------


def test_every_kind_of_key_has_the_value_that_its_option_would_have() -> None:
    config = parsed(
        """
        listen = ["127.0.0.1:1", "unix:/run/x.sock"]
        path = "/p"
        connect = true
        grace = 4.5
        max_tunnels = 20
        token_file = "token"
        """
    )
    assert config.values == {
        "listen": (TCPAddress("127.0.0.1", 1), UnixAddress("/run/x.sock")),
        "path": "/p",
        "connect": True,
        "grace": 4.5,
        "max_tunnels": 20,
        "token_file": "/etc/token",
    }
    assert config.tokens == []


def test_what_the_file_does_not_say_is_not_there() -> None:
    assert parsed("").values == {}
    assert parsed("# nothing\n").tokens == []


def test_a_list_of_one_needs_no_brackets_and_an_empty_one_is_a_value() -> None:
    assert parsed('listen = "5"').values["listen"] == (TCPAddress("127.0.0.1", 5),)
    assert parsed("allow = []").values["allow"] == ()


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5", 1.5), ('"90"', 90), ('"15m"', 900)])
def test_a_time_is_a_number_or_text_with_a_unit(text: str, seconds: float) -> None:
    assert parsed(f"grace = {text}").values["grace"] == seconds


def test_the_name_of_a_file_is_relative_to_the_configuration_s(tmp_path: Path) -> None:
    assert parsed('token_file = "a/b"', "conf/x.toml").values["token_file"] == "conf/a/b"
    assert parsed('token_file = "a/b"', "x.toml").values["token_file"] == "a/b"
    assert parsed('token_file = "/a/b"', "conf/x.toml").values["token_file"] == "/a/b"


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_has_its_name_its_time_and_its_rules() -> None:
    (token,) = parsed(
        ALICE + 'expires = 2027-01-31\nallow = ["bastion:22", "10.20.0.0/16:5432"]\n'
        'deny = "10.20.9.0/24:*"\nmax_tunnels = 20\n'
    ).tokens
    assert token.name == "alice"
    assert token.digest == digest("s3cret")
    assert list(map(str, token.allow or ())) == ["bastion:22", "10.20.0.0/16:5432"]
    assert list(map(str, token.deny)) == ["10.20.9.0/24:*"]
    assert token.max_tunnels == 20


def test_a_token_needs_a_name_and_a_hash_and_nothing_more() -> None:
    (token,) = parsed(ALICE).tokens
    assert token.expires == math.inf
    assert token.allow is None
    assert list(token.deny) == []
    assert token.max_tunnels is None


def test_no_rule_at_all_is_something_else_than_no_rules() -> None:
    assert parsed(ALICE + "allow = []").tokens[0].allow == ()


def test_a_hash_may_be_in_capitals() -> None:
    assert parsed(ALICE.replace(SHA256, SHA256.upper())).tokens[0].digest == digest("s3cret")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        # A date is good to the end of that day.
        ("2027-01-31", datetime(2027, 2, 1, tzinfo=UTC)),
        ("2028-02-29", datetime(2028, 3, 1, tzinfo=UTC)),
        ("2027-01-31T18:00:00Z", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        ("2027-01-31T18:00:00+02:00", datetime(2027, 1, 31, 16, tzinfo=UTC)),
        ("1969-01-01", datetime(1969, 1, 2, tzinfo=UTC)),
    ],
)
def test_a_token_expires_at_the_end_of_a_day_or_at_a_time(text: str, end: datetime) -> None:
    assert parsed(f"{ALICE}expires = {text}").tokens[0].expires == end.timestamp()


def test_the_last_day_that_there_is_can_be_written() -> None:
    assert parsed(f"{ALICE}expires = 9999-12-31").tokens[0].expires == 253402300800
    assert parsed(f"{ALICE}expires = 0001-01-01T00:00:00+23:59").tokens[0].expires < 0


# --- mistakes -------------------------------------------------------------------------------------

TOKEN = 'name = "alice"\nsha256 = "' + SHA256 + '"\n'


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("max_tunels = 3", "max_tunels", "is max_tunnels meant?"),
        ("max-tunnels = 3", "max-tunnels", "is max_tunnels meant?"),
        ("Listen = '1'", "Listen", "is listen meant?"),
        ("xyz = 3", "xyz", "no such key"),
        ("'s p\\n' = 3", "'s p\\\\n'", "no such key"),
        ("[limits]\nmax_tunnels = 3", "limits", "no such section: keys stand at the top"),
        ("[server.limits]\nmax_tunnels = 3", "server", "no such section: keys stand at the top"),
        ("expires = 2027-01-31", "expires", "after a [[token]]"),
        ("path = 3", "path", "text in quotes, not a number"),
        ("path = true", "path", "not true or false"),
        ("path = 2027-01-31", "path", "not a date"),
        ("[path]", "path", "not a section"),
        ("connect = 1", "connect", "true or false, not a number"),
        ("connect = 'true'", "connect", "true or false, not text"),
        ("listen = 12345", "listen", "a list"),
        ("listen = ['1', 2]", "listen[1]", "text in quotes, not a number"),
        ("listen = ['1', '1:x']", "listen[1]", "port"),
        ("listen = 'x'", "listen", "expected"),
        ("allow = ['a:1', 'b']", "allow[1]", "HOST:PORT"),
        ("grace = true", "grace", "a number, not true or false"),
        ("grace = [1]", "grace", "a number, not a list"),
        ("grace = 0", "grace", "above 0"),
        ("grace = -1", "grace", "above 0"),
        ("grace = nan", "grace", "expected a time"),
        ("grace = inf", "grace", "expected a time"),
        ("grace = '15 minutes'", "grace", "15m"),
        ("max_tunnels = true", "max_tunnels", "a number, not true or false"),
        ("max_tunnels = 0", "max_tunnels", "from 1 on"),
        ("max_tunnels = 1.5", "max_tunnels", "whole number"),
        (f"max_tunnels = 0x{'f' * 5000}", "max_tunnels", "a smaller number"),
        ("max_tunnels = 99999999999999999999", "max_tunnels", "a smaller number"),
        ("token_file = ''", "token_file", "name of a file"),
        ("token_file = ['a']", "token_file", "not a list"),
        ("token = 's3cret'", "token", "never a token itself"),
        ("token = ['s3cret']", "token[0]", "[[token]]"),
        ("[token]\nname = 'alice'", "token", "two brackets"),
        ("[[tokens]]\nname = 'alice'", "tokens", "is token meant?"),
        (f"[[token]]\nsha256 = '{SHA256}'", "token[0].name", "is missing"),
        ("[[token]]\nname = 'alice'", "token[0].sha256 (alice)", "--new-token"),
        (f"[[token]]\nname = 3\nsha256 = '{SHA256}'", "token[0].name", "text in quotes, not a number"),
        (f"[[token]]\nname = ''\nsha256 = '{SHA256}'", "token[0].name", "such as alice"),
        (f"[[token]]\nname = '-'\nsha256 = '{SHA256}'", "token[0].name", "such as alice"),
        (f'[[token]]\nname = "a\\nb"\nsha256 = "{SHA256}"', "token[0].name", "such as alice"),
        (f"[[token]]\nname = 's3cret{'x' * 60}'\nsha256 = '{SHA256}'", "token[0].name", "up to 64"),
        ("[[token]]\nname = 'alice'\nsha256 = 's3cret'", "token[0].sha256 (alice)", "64 hexadecimal"),
        ("[[token]]\nname = 'alice'\nsha256 = 64", "token[0].sha256 (alice)", "64 hexadecimal"),
        (f"[[token]]\nname = 'alice'\nsha256 = '{SHA256}0'", "token[0].sha256 (alice)", "64 hexadecimal"),
        (f"[[token]]\nname = 'alice'\nsha256 = '{SHA256[:-1]}\n'", None, "line 3"),
        (
            f"[[token]]\nname = 'alice'\nsha256 = '{hashlib.sha256().hexdigest()}'",
            "token[0].sha256 (alice)",
            "hash of an empty text",
        ),
        (
            f"[[token]]\nname = 'alice'\nsha256 = '{digest(chr(10)).hex()}'",
            "token[0].sha256 (alice)",
            "hash of an empty text",
        ),
        (ALICE + "token = 's3cret'", "token[0].token (alice)", "is sha256 meant, the token's hash?"),
        (ALICE + "max-tunnels = 5", "token[0].max-tunnels (alice)", "is max_tunnels meant?"),
        (ALICE + "grace = 5", "token[0].grace (alice)", "before the first [[token]]"),
        (ALICE + "Listen = 's3cret'", "token[0].Listen (alice)", "before the first [[token]]"),
        (ALICE + "token-file = 's3cret'", "token[0].token-file (alice)", "before the first [[token]]"),
        (ALICE + "expire = 2027-01-31", "token[0].expire (alice)", "is expires meant?"),
        (ALICE + "expires = '2027-01-31'", "token[0].expires (alice)", "without the quotes"),
        (ALICE + "expires = 1800000000", "token[0].expires (alice)", "not a number"),
        (ALICE + "expires = 18:00:00", "token[0].expires (alice)", "not a date or a time"),
        (ALICE + "expires = 2027-01-31T18:00:00", "token[0].expires (alice)", "2027-01-31T18:00:00Z is in UTC"),
        (ALICE + "allow = ['a:1', 'b']", "token[0].allow[1] (alice)", "HOST:PORT"),
        (ALICE + "allow = ['10.1.2.3/8:22']", "token[0].allow[0] (alice)", "10.0.0.0/8"),
        (ALICE + "allow = 22", "token[0].allow (alice)", "a list"),
        (ALICE + "deny = ['a:1', 3]", "token[0].deny[1] (alice)", "text in quotes"),
        (ALICE + "max_tunnels = 0", "token[0].max_tunnels (alice)", "from 1 on"),
        (ALICE + "max_tunnels = true", "token[0].max_tunnels (alice)", "a number"),
        (ALICE + ALICE.replace(SHA256, OTHER), "token[1].name", "token[0] is called 'alice' too"),
        (ALICE + ALICE.replace("alice", "bob"), "token[1].sha256", "token[0]"),
    ],
)
def test_a_mistake_is_told_with_the_path_of_its_key(text: str, path: str | None, words: str) -> None:
    (mistake,) = mistakes(text)
    if path is not None:
        assert mistake.startswith(f"{path}: "), mistake
    assert words in mistake


def test_all_mistakes_are_found_at_once_and_the_first_says_how_many_there_are() -> None:
    text = f"grace = 0\nlisten = ['x', 'y']\n{ALICE}allow = ['b']\n[[token]]\nname = 'bob'\nexpires = 3\n"
    found = mistakes(text)
    paths = [mistake.partition(":")[0] for mistake in found]
    assert sorted(paths) == [
        *("grace", "listen[0]", "listen[1]", "token[0].allow[0] (alice)"),
        *("token[1].expires (bob)", "token[1].sha256 (bob)"),
    ]
    with pytest.raises(ConfigError, match=r"and 5 more, which -s --check lists"):
        parsed(text)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("path = ", "line 1, its end", "invalid value"),
        ("# fine\npath = 's3cret", "line 2, its end", "expected"),
        ("path = '/a'\n\ns3cret\n", "line 3, column", "expected '='"),
        ("path = '/a'\npath = '/b'\n", "line 2, column", "overwrite"),
        ('path = "\\s3cret"', "line 1, column", "unescaped"),
        ("a = 2027-02-30", "line 1, column", "invalid date"),
        (f"a = {'9' * 5000}", "", "digits"),
        (f"a = {'[' * 100000}", "", "recursion"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line_and_without_its_text(text: str, where: str, words: str) -> None:
    (mistake,) = mistakes(text)
    assert where in mistake
    assert words in mistake


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# fine\npath = '\xe4'\n")
    for path, words in (
        (tmp_path / "none.toml", "no such file"),
        (tmp_path, "directory"),
        (latin, "line 2: it is not"),
    ):
        with pytest.raises(ConfigError) as error:
            read_config(str(path), KEYS)
        assert str(path) in str(error.value)
        assert words in str(error.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes("\ufeffpath = '/ä'\r\n".encode())
    assert read_config(str(path), KEYS).values == {"path": "/ä"}


def test_what_is_shown_of_a_configuration_holds_no_hash() -> None:
    assert SHA256 not in repr(parsed(ALICE))
    assert repr(digest("s3cret")) not in repr(parsed(ALICE))


# --- new tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alice", "alice's laptop", 'a "b" \\ c', "müller", "a=b"])
def test_the_lines_of_a_new_token_let_it_in_under_its_name(name: str) -> None:
    token, lines = new_token(name)
    (known,) = parsed(lines).tokens
    assert (known.name, known.digest) == (name, digest(token))
    assert token not in lines


def test_without_a_name_the_line_is_for_a_section_that_is_there() -> None:
    token, line = new_token()
    assert parsed(f"[[token]]\nname = 'bob'\n{line}").tokens[0].digest == digest(token)
    assert line.count("\n") == 1


def test_no_two_tokens_are_the_same_and_each_is_long() -> None:
    tokens = {new_token()[0] for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x1b[2J", "-", "x" * 65])
def test_a_name_that_would_break_a_line_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="such as alice"):
        parse_name(name)
