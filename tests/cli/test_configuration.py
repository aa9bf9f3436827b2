"""`--config` on the command line: which keys there are, what wins over what, and how mistakes are told."""

from __future__ import annotations

import re
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import trustme

from http2tcp.address import TCPAddress, UnixAddress
from http2tcp.command import options
from http2tcp.command.server_settings import config_keys
from http2tcp.command.toml_file import TOKEN_KEYS
from http2tcp.net import descriptors
from http2tcp.server.policy import Token, digest

from .conftest import Ran, Run, complaint
from .test_options import VARIABLES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
EXAMPLE = (ROOT / "examples" / "http2tcp.toml").read_text()

TOKEN = "s3cret"
ALICE = f'[[token]]\nname = "alice"\nsha256 = "{digest(TOKEN).hex()}"\n'

# Not the server's, an action, or a secret that does not belong into a file of settings.
NO_KEYS = {"server", "config", "token", "new_token", "as", "check", "verbose", "quiet", "demo", "version", "help"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "http2tcp.toml"


def started(http2tcp: Run, file: Path, text: str, *arguments: str, **variables: str) -> Ran:
    file.write_text(text, encoding="utf-8")
    ran = http2tcp("-s", "--config", str(file), *arguments, **variables)
    assert ran.server_settings is not None, ran.err
    return ran


@pytest.fixture(autouse=True)
def descriptors_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check raises the limit of its process, and this one is other tests', too."""
    monkeypatch.setattr(descriptors, "allow_many", lambda: None)


# --- the keys -------------------------------------------------------------------------------------


def keys() -> dict[str, Any]:
    return config_keys()


def test_every_option_of_a_server_is_a_key() -> None:
    assert keys().keys() == {row.key for row in options.rows() if row.mode != "client"} - NO_KEYS


# What each key makes of a value that its variable would have.
VALUES = {
    "listen": (
        "['127.0.0.1:7', 'unix:/x']",
        lambda ran: list(ran.server.addresses),
        [TCPAddress("127.0.0.1", 7), UnixAddress("/x")],
    ),
    "destination": ('"db:5432"', lambda ran: ran.server.destination, TCPAddress("db", 5432)),
    "keepalive": ("7.5", lambda ran: ran.server.keepalive, 7.5),
    "token_file": ('"FILE"', lambda ran: ran.server.tokens[0], "in-the-file"),
}


def written(name: str) -> tuple[str, Any, Any]:
    """What to write into the file, where to look, and what is there then."""
    if name in VALUES:
        return VALUES[name]
    value, _, look, expected = VARIABLES[name]
    key = keys()[name]
    if key.kind == "flag":
        return "true", look, expected
    if key.many:
        return f"[{', '.join(map(quoted, value.splitlines()))}]", look, expected
    return quoted(value), look, expected


def quoted(text: str) -> str:
    return f"'{text}'"


@pytest.mark.parametrize("name", sorted(keys()))
def test_every_key_does_what_its_option_does(http2tcp: Run, file: Path, name: str) -> None:
    text, look, expected = written(name)
    secret = file.parent / "FILE"
    secret.write_text("in-the-file\n")
    secret.chmod(0o600)
    lines = [f"{name} = {text}"]
    if name == "tls_key":
        lines.append("tls_cert = 'FILE'")
    if name == "forwarded_header":
        lines.append("trusted_proxy = 'unix'")
    ran = started(http2tcp, file, "\n".join(lines) + "\n" + ALICE)
    found = look(ran)
    assert found == (str(secret) if expected == "FILE" else expected)


def test_every_key_is_documented_and_in_the_example() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Keys")[2].partition("\n## ")[0], re.MULTILINE)
    assert rows == sorted(rows, key=list(keys()).index), "in the order of the help"
    assert set(rows) == keys().keys()
    assert set(re.findall(r"^#?(\w+) = ", EXAMPLE.partition("[[token]]")[0], re.MULTILINE)) == keys().keys()


def test_the_keys_of_a_token_are_documented_and_in_the_example() -> None:
    section = PAGE.partition("## Tokens")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == TOKEN_KEYS
    alice = tomllib.loads(EXAMPLE)["token"][0]
    assert tuple(alice) == TOKEN_KEYS


def test_the_example_is_a_configuration(http2tcp: Run, file: Path) -> None:
    server = started(http2tcp, file, EXAMPLE).server
    assert [token.name for token in server.tokens if isinstance(token, Token)] == ["alice", "carol's laptop"]
    assert http2tcp("-s", "--check", "--config", str(file)).status == 0


def test_the_example_is_one_with_every_line_in_force_too(http2tcp: Run, file: Path) -> None:
    leaf = trustme.CA().issue_cert("example.com")
    leaf.cert_chain_pems[0].write_to_path(str(file.parent / "fullchain.pem"))
    leaf.private_key_pem.write_to_path(str(file.parent / "privkey.pem"))
    (file.parent / "token").write_text("another\n")
    (file.parent / "token").chmod(0o600)
    server = started(http2tcp, file, re.sub(r"^#(\w+ = )", r"\1", EXAMPLE, flags=re.MULTILINE)).server
    assert len(server.tokens) == 3
    assert server.tls is not None


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md"])
def test_a_server_takes_the_files_that_the_pages_show(http2tcp: Run, file: Path, page: str) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert started(http2tcp, file, block).server is not None


# --- what wins over what --------------------------------------------------------------------------


def test_the_command_line_beats_the_environment_and_that_beats_the_file(http2tcp: Run, file: Path) -> None:
    text = "path = '/file'\ngrace = 1\nconnect = true\nlisten = '1'\nallow = ['file:1']\nmax_tunnels = 1\n" + ALICE
    assert started(http2tcp, file, text).server.path == "/file"
    server = started(http2tcp, file, text, HTTP2TCP_PATH="/variable", HTTP2TCP_CONNECT="0").server
    assert (server.path, server.connect, server.grace) == ("/variable", False, 1)
    server = started(
        *(http2tcp, file, text, "--path", "/option", "-l", "2", "-l", "3", "--allow", "option:1", "--max-tunnels", "3"),
        HTTP2TCP_PATH="/variable",
        HTTP2TCP_GRACE="2",
        HTTP2TCP_ALLOW="variable:1",
    ).server
    assert (server.path, server.grace) == ("/option", 2)
    assert [address.port for address in server.addresses if isinstance(address, TCPAddress)] == [2, 3]
    # A list is one value: none is added to another's.
    assert list(map(str, server.allow or ())) == ["option:1"]
    assert server.limits is not None
    assert server.limits.max_tunnels == 3


def test_an_option_that_says_the_default_beats_the_file_too(http2tcp: Run, file: Path) -> None:
    assert started(http2tcp, file, "grace = 1\n" + ALICE, "--grace", "30").server.grace == 30


def test_an_empty_variable_leaves_the_file_s_word(http2tcp: Run, file: Path) -> None:
    server = started(
        http2tcp, file, "path = '/file'\nadmin = '1'\n" + ALICE, HTTP2TCP_PATH="", HTTP2TCP_ADMIN=""
    ).server
    assert server.path == "/file"
    assert server.admin == TCPAddress("127.0.0.1", 1)


def test_without_a_rule_there_is_no_policy_and_with_an_empty_list_there_is_one(http2tcp: Run, file: Path) -> None:
    assert started(http2tcp, file, ALICE).server.allow is None
    assert http2tcp("-s", "-t", "x").server.allow is None
    assert started(http2tcp, file, "allow = []\n" + ALICE).server.allow == ()


# --- tokens ---------------------------------------------------------------------------------------


def names(ran: Ran) -> list[str]:
    return [token if isinstance(token, str) else f"[{token.name}]" for token in ran.server.tokens]


def test_the_tokens_of_the_file_and_the_one_of_an_option_all_count(http2tcp: Run, file: Path) -> None:
    secret = file.parent / "token"
    secret.write_text("in-the-file")
    secret.chmod(0o600)
    text = "token_file = 'token'\n" + ALICE
    assert names(started(http2tcp, file, ALICE)) == ["[alice]"]
    assert names(started(http2tcp, file, ALICE, "-t", "option")) == ["option", "[alice]"]
    # Of the tokens without a name there is one, and the file's is the last to be asked for.
    assert names(started(http2tcp, file, text)) == ["in-the-file", "[alice]"]
    assert names(started(http2tcp, file, text, "-t", "option")) == ["option", "[alice]"]
    assert names(started(http2tcp, file, text, HTTP2TCP_TOKEN="variable")) == ["variable", "[alice]"]
    credentials = file.parent / "credentials"
    credentials.mkdir()
    (credentials / "http2tcp.token").write_text("unit")
    (credentials / "http2tcp.token").chmod(0o600)
    unit = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert names(started(http2tcp, file, text, **unit)) == ["in-the-file", "[alice]"]
    assert names(started(http2tcp, file, ALICE, **unit)) == ["unit", "[alice]"]


def test_a_token_that_is_given_twice_is_a_mistake_since_its_rules_would_be_a_guess(http2tcp: Run, file: Path) -> None:
    file.write_text(ALICE)
    sentence = complaint(http2tcp("-s", "--config", str(file), "-t", TOKEN))
    assert "alice" in sentence
    assert TOKEN not in sentence


def test_a_token_that_has_expired_earns_a_warning_with_its_name(http2tcp: Run, file: Path) -> None:
    ran = started(http2tcp, file, f"{ALICE}expires = 2020-01-31\n")
    assert ran.err == "http2tcp: the token of alice expired at the end of 2020-01-31 (UTC): it opens nothing\n"
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))
    assert started(http2tcp, file, f"{ALICE}expires = {tomorrow}\n").err == ""


def test_a_configuration_that_everybody_can_read_earns_no_warning(http2tcp: Run, file: Path) -> None:
    file.write_text(ALICE)
    file.chmod(0o644)
    assert http2tcp("-s", "--config", str(file)).err == ""


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path = 'x'", "path: 'x': a path begins with /"),
        ("log_format = 'xml'", "log_format: 'xml': expected text or json"),
        ("tls_cert = 'none.pem'", "tls_cert: '{directory}/none.pem': no such file"),
        ("token_file = 'none'", "token_file: cannot read the token file {directory}/none: no such file or directory"),
        ("allow_origin = 'https://a/b'", "allow_origin: 'https://a/b': expected an origin"),
        ("trusted_proxy = ['10.0.0.0/8', 'x']", "trusted_proxy[1]: 'x': expected an address or a network"),
        ("max_rate = '10T'", "max_rate: '10T': expected bytes a second"),
        (f"forwarded_header = 'X Real'\n{ALICE}", "forwarded_header: 'X Real': expected a field's name"),
        ("endpoint = 'https://x/'", "endpoint: there is no such key"),
        ("token_file = 'x'\nlisten = [", "line 2, its end: "),
        (
            ALICE.replace("[[", "log_file = 'no/log'\n[["),
            "log_file: cannot write the log file {directory}/no/log: no such",
        ),
        (
            ALICE.replace("[[", "log_file = '..'\n[["),
            "log_file: cannot write the log file {directory}/..: is a directory",
        ),
        ("trusted_proxy = 'unix:/run/x'", "or unix, for connections by a Unix socket"),
    ],
)
def test_a_mistake_in_the_file_is_told_by_its_key_and_not_by_an_option(
    http2tcp: Run, file: Path, text: str, expected: str
) -> None:
    file.write_text(text)
    for check in ([], ["--check"]):
        sentence = complaint(http2tcp("-s", "--config", str(file), *check))
        assert sentence.startswith(str(file))
        assert expected.format(directory=file.parent) in sentence
        assert "--" not in sentence


def test_a_check_of_the_log_s_file_leaves_none_behind(http2tcp: Run, file: Path) -> None:
    log = file.with_name("log")
    file.write_text(f"log_file = 'log'\n{ALICE}")
    assert http2tcp("-s", "--config", str(file), "--check").status == 0
    assert not log.exists()
    assert "cannot write the log file" in complaint(http2tcp("-s", "-t", "x", "--check", "--log-file", f"{log}/x"))


def test_every_mistake_has_a_line_of_its_own(http2tcp: Run, file: Path) -> None:
    file.write_text("path = 3\ngrace = 0\n[[token]]\nname = 's'\n")
    ran = http2tcp("-s", "--config", str(file))
    assert (ran.status, ran.out, ran.started) == (2, "", False)
    lines = ran.err.splitlines()
    assert [line.removeprefix(f"http2tcp: {file}: ").partition(":")[0] for line in lines] == [
        *("path", "grace", "token[0].sha256 (s)")
    ]


def test_a_file_without_a_token_and_a_destination_is_told_what_it_needs(http2tcp: Run, file: Path) -> None:
    file.write_text("path = '/p'\n")
    assert "[[token]]" in complaint(http2tcp("-s", "--config", str(file)))


def test_a_client_is_told_that_the_file_is_a_server_s(http2tcp: Run, file: Path) -> None:
    assert "server" in complaint(http2tcp("-c", "-e", "http://h/", "--config", str(file)))
    # A variable may be there for both.
    assert http2tcp("-c", "-e", "http://h/", HTTP2TCP_CONFIG=str(file)).client_settings is not None


def test_a_client_has_one_listening_address_of_its_own(http2tcp: Run) -> None:
    assert "-L" in complaint(http2tcp("-c", "-e", "http://h/", "-l", "1", "-l", "2"))


# --- --new-token ----------------------------------------------------------------------------------


def test_a_new_token_goes_to_stderr_and_the_lines_that_let_it_in_to_stdout(http2tcp: Run, file: Path) -> None:
    made = http2tcp("--new-token", "carol's laptop")
    assert made.status == 0
    assert made.err.count("\n") == 1
    token = made.err.strip()
    assert token not in made.out
    (known,) = started(http2tcp, file, made.out).server.tokens
    assert isinstance(known, Token)
    assert (known.name, known.digest) == ("carol's laptop", digest(token))
    # They go on after what is there.
    assert names(started(http2tcp, file, f"path = '/p'\n{ALICE.rstrip()}\n{made.out}")) == [
        "[alice]",
        "[carol's laptop]",
    ]


def test_a_new_token_without_a_name_is_one_line_for_a_section_that_is_there(http2tcp: Run) -> None:
    made = http2tcp("-s", "--new-token")
    assert made.out == f'sha256 = "{digest(made.err.strip()).hex()}"\n'


@pytest.mark.parametrize("name", ["-", " x", "a\nb", "\x1b[2J"])
def test_a_new_token_s_name_is_one_that_the_file_takes(http2tcp: Run, name: str) -> None:
    assert "such as alice" in complaint(http2tcp("--new-token", name))


def test_a_new_token_is_not_made_where_it_could_not_be_shown(http2tcp: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    ran = http2tcp("--new-token", "alice")
    assert (ran.status, ran.out) == (2, "")


# --- --check and --as -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-s", "-t", "x", "--as", "alice", "db:22"), "-s --check --as"),
        (("-c", "-e", "http://h/", "--check", "--as", "alice", "db:22"), "-s --check --as"),
        (("-s", "-t", "x", "--check", "--as", "alice", "db"), "HOST:PORT"),
        (("-s", "-t", "x", "--check", "--as", "alice"), "--as"),
        (("-s", "-t", "x", "--check", "--as", "alice", "db:22"), "'alice'; the server knows - (the one of -t"),
        (("-s", "-t", "x", "--check", "--json"), "-c --check"),
        (("-s", "--check"), "needs a token"),
    ],
)
def test_a_question_that_makes_no_sense_is_told_how_to_ask(
    http2tcp: Run, arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in complaint(http2tcp(*arguments))


def test_a_check_lists_the_tokens_that_it_does_not_know(http2tcp: Run, file: Path) -> None:
    file.write_text(ALICE + ALICE.replace("alice", "bob").replace(digest(TOKEN).hex(), digest("b").hex()))
    sentence = complaint(http2tcp("-s", "--check", "--config", str(file), "--as", "eve", "db:22"))
    assert "alice, bob" in sentence


def test_a_check_reads_the_certificate_as_the_start_does(http2tcp: Run, file: Path) -> None:
    (file.parent / "cert.pem").write_text("no certificate")
    file.write_text("tls_cert = 'cert.pem'\n" + ALICE)
    assert "no certificate in PEM" in complaint(http2tcp("-s", "--check", "--config", str(file)))


RULES = """
deny = ["192.0.2.0/24:*"]
[[token]]
name = "alice"
sha256 = "{}"
allow = ["localhost:22", "127.0.0.0/8:80", "192.0.2.1:80", "nowhere.invalid:22", "unix:/run/a.sock"]
[[token]]
name = "old"
sha256 = "{}"
expires = 2020-01-31
""".format(digest("a").hex(), digest("o").hex())


@pytest.mark.parametrize(
    ("name", "destination", "status", "first", "rest"),
    [
        (
            "alice",
            "localhost:22",
            0,
            "alice may go to localhost:22: allow localhost:22",
            ["127.0.0.1 open", "::1 open"],
        ),
        (
            *("alice", "localhost:80", 0, "alice may go to localhost:80: allow 127.0.0.0/8:80"),
            ["127.0.0.1 open: allow 127.0.0.0/8:80", "::1 closed: no rule of allow opens it"],
        ),
        ("alice", "localhost:23", 69, "alice may not go to localhost:23: no rule of allow opens it", []),
        ("alice", "[::1]:80", 69, "alice may not go to [::1]:80: no rule of allow opens it", []),
        ("alice", "192.0.2.1:80", 69, "alice may not go to 192.0.2.1:80: deny 192.0.2.0/24:*", []),
        ("alice", "unix:/run/a.sock", 0, "alice may go to unix:/run/a.sock: allow unix:/run/a.sock", []),
        (
            *("alice", "unix:/run/b.sock", 69),
            *("alice may not go to unix:/run/b.sock: no rule of allow names this Unix socket", []),
        ),
        (
            *("alice", "nowhere.invalid:22", 70),
            *("alice may go to nowhere.invalid:22: allow nowhere.invalid:22; but from here {unknown}", []),
        ),
        (
            *("alice", "nowhere.invalid:80", 69),
            *("alice may not go to nowhere.invalid:80: no rule of allow names it, and from here {unknown}", []),
        ),
        (
            *("old", "localhost:22", 68),
            *("old may not go to localhost:22: the token expired at the end of 2020-01-31 (UTC)", []),
        ),
        (
            *("-", "169.254.169.254:80", 69, "the token without a name may not go to 169.254.169.254:80: none of its"),
            ["169.254.169.254 closed: link-local and metadata addresses are closed to everybody"],
        ),
    ],
)
def test_a_question_is_answered_with_the_rule_and_the_status_that_a_client_would_have(
    http2tcp: Run, file: Path, name: str, destination: str, status: int, first: str, rest: list[str]
) -> None:
    file.write_text(RULES)
    ran = http2tcp("-s", "-t", "x", "--check", "--config", str(file), "--as", name, destination)
    assert ran.status == status
    sentence, *addresses = ran.out.splitlines()
    # Without a network there is no name server; with one, it says that the name is none.
    unknown = sentence.partition("from here ")[2]
    assert sentence.startswith(first.format(unknown=unknown))
    assert [" ".join(line.split()) for line in addresses] == rest


def test_where_no_token_is_asked_for_a_dash_asks_for_everybody(http2tcp: Run) -> None:
    pinned = ("-s", "-d", "localhost:22", "--check", "--as", "-")
    ran = http2tcp(*pinned, "localhost:22")
    assert (ran.status, ran.out.splitlines()[0]) == (
        0,
        "a client may go to localhost:22: it is the default destination, which is open to everybody",
    )
    ran = http2tcp(*pinned, "localhost:23")
    assert ran.status == 69
    assert "the default destination alone" in ran.out


def test_quiet_shows_what_fails_alone(http2tcp: Run, file: Path) -> None:
    file.write_text(RULES)
    check = ("-q", "-s", "--check", "--config", str(file))
    assert http2tcp(*check) == Ran(0)
    assert http2tcp(*check, "--as", "alice", "localhost:22") == Ran(0)
    assert http2tcp(*check, "--as", "alice", "localhost:23").out.startswith("alice may not")
