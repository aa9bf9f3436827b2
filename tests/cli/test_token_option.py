"""The token: from where it comes, which source wins, and that an empty one is never 'no token'."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from .conftest import Run, complaint

CLIENT = ("-c", "-e", "https://example.com/")
# -d would let a server start without a token: an empty one must not be taken for that.
SERVER = ("-s", "-d", "localhost:22")
BOTH = pytest.mark.parametrize("mode", [SERVER, CLIENT], ids=["server", "client"])
BLANK = pytest.mark.parametrize("blank", ["", " ", "\t \n"], ids=["empty", "blank", "white"])


def token_of(ran: object) -> str | None:
    server, client = getattr(ran, "server_settings", None), getattr(ran, "client_settings", None)
    if server is not None:
        return cast("str | None", next(iter(server.tokens), None))
    assert client is not None, ran
    return cast("str | None", client.token)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    path.chmod(0o600)
    return path


@BOTH
@BLANK
def test_an_empty_token_argument_is_a_mistake(http2tcp: Run, mode: tuple[str, ...], blank: str) -> None:
    assert "the token is empty (-t)" in complaint(http2tcp(*mode, "-t", blank))


@BOTH
@BLANK
def test_an_empty_token_variable_is_a_mistake(http2tcp: Run, mode: tuple[str, ...], blank: str) -> None:
    assert "the token is empty (HTTP2TCP_TOKEN)" in complaint(http2tcp(*mode, HTTP2TCP_TOKEN=blank))


@BOTH
@pytest.mark.parametrize("text", ["", "\n", "  \n", "\nsecond-line\n", "\r\n"])
def test_an_empty_first_line_of_a_token_file_is_a_mistake(
    http2tcp: Run, mode: tuple[str, ...], file: Path, text: str
) -> None:
    file.write_text(text, newline="")
    names_the_file = f"the token is empty (the first line of {file})"
    assert names_the_file in complaint(http2tcp(*mode, "--token-file", str(file)))
    assert names_the_file in complaint(http2tcp(*mode, HTTP2TCP_TOKEN_FILE=str(file)))


@BOTH
def test_a_file_option_without_a_file_is_a_mistake(http2tcp: Run, mode: tuple[str, ...]) -> None:
    assert "token file" in complaint(http2tcp(*mode, "--token-file", ""))
    assert "token file" in complaint(http2tcp(*mode, HTTP2TCP_TOKEN_FILE=""))


@BOTH
def test_the_first_line_of_the_file_counts_stripped(http2tcp: Run, mode: tuple[str, ...], file: Path) -> None:
    file.write_text(" \tthe token \r\nand a comment\n", newline="")
    assert token_of(http2tcp(*mode, "--token-file", str(file))) == "the token"


@BOTH
def test_without_a_token_there_is_none(http2tcp: Run, mode: tuple[str, ...]) -> None:
    assert token_of(http2tcp(*mode)) is None


@BOTH
@pytest.mark.parametrize("variable", ["from-env", "", " "])
def test_a_token_on_the_command_line_beats_the_environment(
    http2tcp: Run, mode: tuple[str, ...], file: Path, variable: str
) -> None:
    by_value, by_file = ("-t", "spoken"), ("--token-file", str(file))
    other = str(file.with_name("nothing")) if variable else ""
    for environment in ({"HTTP2TCP_TOKEN": variable}, {"HTTP2TCP_TOKEN_FILE": other}):
        assert token_of(http2tcp(*mode, *by_value, **environment)) == "spoken"
        assert token_of(http2tcp(*mode, *by_file, **environment)) == "from-file"
    both = {"HTTP2TCP_TOKEN": variable, "HTTP2TCP_TOKEN_FILE": other}
    assert token_of(http2tcp(*mode, *by_value, **both)) == "spoken"


@BOTH
def test_two_tokens_of_one_rank_are_a_conflict(http2tcp: Run, mode: tuple[str, ...], file: Path) -> None:
    for arguments, environment in (
        (("-t", "s3cret", "--token-file", str(file)), {}),
        ((), {"HTTP2TCP_TOKEN": "s3cret", "HTTP2TCP_TOKEN_FILE": str(file)}),
        ((), {"HTTP2TCP_TOKEN": "", "HTTP2TCP_TOKEN_FILE": str(file)}),
    ):
        sentence = complaint(http2tcp(*mode, *arguments, **environment))
        assert "one token" in sentence
        assert "s3cret" not in sentence


@BOTH
def test_a_token_file_that_everybody_can_read_earns_a_warning_and_works(
    http2tcp: Run, mode: tuple[str, ...], file: Path
) -> None:
    file.chmod(0o644)
    ran = http2tcp(*mode, "--token-file", str(file))
    assert token_of(ran) == "from-file"
    assert ran.err.count("\n") == 1
    assert "chmod" in ran.err
    assert str(file) in ran.err
    assert "from-file" not in ran.err


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_token_file_that_is_kept_from_others_earns_none(http2tcp: Run, file: Path, mode: int) -> None:
    file.chmod(mode)
    assert http2tcp(*CLIENT, "--token-file", str(file)).err == ""


@BOTH
def test_a_token_file_that_cannot_be_read_is_named_with_the_reason(
    http2tcp: Run, mode: tuple[str, ...], tmp_path: Path
) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"t\xe4ken\n")
    latin.chmod(0o600)
    for path, reason in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path, "is a directory"),
        (latin, "UTF-8"),
    ):
        sentence = complaint(http2tcp(*mode, "--token-file", str(path)))
        assert str(path) in sentence
        assert reason in sentence


@BOTH
def test_a_token_that_no_header_field_can_carry_is_refused_unseen(http2tcp: Run, mode: tuple[str, ...]) -> None:
    for token in ("s3cret\r\nX: 1", "s3cret\x00", "s3c\tret", "s3cret\udcff"):
        sentence = complaint(http2tcp(*mode, "-t", token))
        assert "s3c" not in sentence


def test_a_token_file_may_be_a_pipe_as_a_shell_gives_for_a_command(http2tcp: Run) -> None:
    read, write = os.pipe()
    os.write(write, b"piped\n")
    os.close(write)
    try:
        assert http2tcp(*CLIENT, "--token-file", f"/dev/fd/{read}").client.token == "piped"
    finally:
        os.close(read)


def test_a_server_with_neither_token_nor_destination_says_which_to_add(http2tcp: Run) -> None:
    sentence = complaint(http2tcp("-s"))
    assert "--token-file" in sentence
    assert "-d" in sentence


def test_a_server_without_a_token_serves_its_one_destination(http2tcp: Run) -> None:
    assert list(http2tcp(*SERVER).server.tokens) == []


# --- a unit's credential ------------------------------------------------------------------------


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """What systemd makes of LoadCredential=http2tcp.token:FILE, and of a credential of somebody else's."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    for name, text in (("http2tcp.token", "from-unit\n"), ("token", "s3cret")):
        (directory / name).write_text(text)
        (directory / name).chmod(0o400)
    return directory


@BOTH
def test_a_unit_s_credential_is_the_token_where_no_other_is_given(
    http2tcp: Run, mode: tuple[str, ...], credentials: Path, file: Path
) -> None:
    where = str(credentials)
    assert token_of(http2tcp(*mode, CREDENTIALS_DIRECTORY=where)) == "from-unit"
    assert token_of(http2tcp(*mode, "-t", "x", CREDENTIALS_DIRECTORY=where)) == "x"
    assert token_of(http2tcp(*mode, HTTP2TCP_TOKEN="x", CREDENTIALS_DIRECTORY=where)) == "x"
    assert token_of(http2tcp(*mode, "--token-file", str(file), CREDENTIALS_DIRECTORY=where)) == "from-file"


@BOTH
def test_a_unit_s_credentials_for_others_are_not_for_us(
    http2tcp: Run, mode: tuple[str, ...], credentials: Path
) -> None:
    (credentials / "http2tcp.token").unlink()
    assert token_of(http2tcp(*mode, CREDENTIALS_DIRECTORY=str(credentials))) is None
    assert token_of(http2tcp(*mode, CREDENTIALS_DIRECTORY="")) is None


@BOTH
def test_an_empty_credential_is_a_mistake(http2tcp: Run, mode: tuple[str, ...], credentials: Path) -> None:
    (credentials / "http2tcp.token").chmod(0o600)
    (credentials / "http2tcp.token").write_text("\n")
    complained = complaint(http2tcp(*mode, CREDENTIALS_DIRECTORY=str(credentials)))
    assert f"the token is empty (the first line of the credential {credentials}" in complained


def test_a_credential_that_cannot_be_read_is_named(http2tcp: Run, credentials: Path) -> None:
    (credentials / "http2tcp.token").unlink()
    (credentials / "http2tcp.token").mkdir()
    said = complaint(http2tcp(*SERVER, CREDENTIALS_DIRECTORY=str(credentials)))
    assert "cannot read the credential" in said
    assert "http2tcp.token" in said
