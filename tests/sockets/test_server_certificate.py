"""The server's certificate and key: what is wrong with them is said, with the file's name."""

from __future__ import annotations

import datetime
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from http2tcp.errors import SettingsError
from http2tcp.net.tls_server import server_context

CA = trustme.CA()
LEAF = CA.issue_cert("localhost")
CHAIN = b"".join(pem.bytes() for pem in LEAF.cert_chain_pems)
KEY = LEAF.private_key_pem.bytes()
OTHER_KEY = CA.issue_cert("localhost").private_key_pem.bytes()
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
DAMAGED = "OpenSSL cannot read one of them, which may be damaged"


def encrypted(encoding: PrivateFormat) -> bytes:
    key = load_pem_private_key(KEY, None)
    return key.private_bytes(Encoding.PEM, encoding, BestAvailableEncryption(b"secret"))


def file(path: Path, contents: bytes) -> str:
    path.touch(0o600)
    path.write_bytes(contents)
    return str(path)


def test_a_chain_and_its_key_are_loaded_from_one_file_or_from_two(tmp_path: Path) -> None:
    server_context(file(tmp_path / "both.pem", KEY + CHAIN))
    server_context(file(tmp_path / "chain.pem", CHAIN), file(tmp_path / "key.pem", KEY))
    old_form = load_pem_private_key(KEY, None).private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )
    # A person may write above it whose it is.
    server_context(
        file(tmp_path / "c.pem", b"example.com\n" + CHAIN), file(tmp_path / "old.pem", b"# of 2026\n" + old_form)
    )


@pytest.mark.parametrize(
    ("chain", "key", "words"),
    [
        (None, KEY, "cannot read the certificate {chain}: no such file or directory"),
        (CHAIN, None, "cannot read the key {key}: no such file or directory"),
        (b"not PEM", KEY, "{chain} holds no certificate in PEM"),
        (KEY, KEY, "{chain} holds no certificate in PEM"),
        (CHAIN, CHAIN, "{key} holds no private key in PEM"),
        (CHAIN, OTHER_KEY, "the key in {key} is not that of the first certificate in {chain}"),
        (CA.cert_pem.bytes() + CHAIN, KEY, "the key in {key} is not that of the first certificate in {chain}"),
        *(
            (
                CHAIN,
                encrypted(encoding),
                "the key in {key} is encrypted, and nobody is there to be asked for its passphrase: "
                "store it without one",
            )
            for encoding in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
        ),
        (CHAIN.replace(b"MII", b"@@@", 1), KEY, "cannot use the certificate and key of {chain} with {key}: " + DAMAGED),
        (
            CHAIN,
            KEY.replace(b"\n", b"\nAAAA", 2),
            "cannot use the certificate and key of {chain} with {key}: " + DAMAGED,
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_files_name(
    chain: bytes | None, key: bytes | None, words: str, tmp_path: Path
) -> None:
    chain_file, key_file = tmp_path / "chain.pem", tmp_path / "key.pem"
    if chain is not None:
        file(chain_file, chain)
    if key is not None:
        file(key_file, key)
    with pytest.raises(SettingsError) as caught:
        server_context(str(chain_file), str(key_file))
    said = str(caught.value)
    expected = words.format(chain=chain_file, key=key_file)
    assert said == expected
    assert "ssl.c" not in said
    assert "\n" not in said


def test_a_file_without_the_key_leads_to_the_option_that_names_it(tmp_path: Path) -> None:
    path = file(tmp_path / "chain.pem", CHAIN)
    with pytest.raises(SettingsError) as caught:
        server_context(path)
    assert str(caught.value) == f"{path} holds no private key in PEM; --tls-key names the file that does"


def test_a_directory_is_no_certificate(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read the certificate .*: is a directory"):
        server_context(str(tmp_path))


def test_a_key_that_openssl_thinks_too_weak_is_told_as_that(tmp_path: Path) -> None:
    path = tmp_path / "weak.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-subj", "/CN=localhost", "-days", "9"]
    subprocess.run([*request, "-keyout", str(path), "-out", str(tmp_path / "cert")], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (tmp_path / "cert").read_bytes())
    with pytest.raises(SettingsError) as caught:
        server_context(str(path))
    assert str(caught.value) == f"cannot use the certificate and key of {path}: ee key too small"


def issued(not_after: datetime.datetime, not_before: datetime.datetime | None = None) -> Callable[[Path], str]:
    leaf = CA.issue_cert("localhost", not_before=not_before, not_after=not_after)
    return lambda path: file(path, leaf.private_key_and_cert_chain_pem.bytes())


@pytest.mark.parametrize(
    ("write", "level", "words"),
    [
        (issued(not_after=NOW + 30 * DAY), logging.INFO, f"is good until {NOW + 30 * DAY:%Y-%m-%d}"),
        (
            issued(not_before=NOW - 9 * DAY, not_after=NOW - DAY),
            logging.WARNING,
            f"expired on {NOW - DAY:%Y-%m-%d}: clients refuse it until it is renewed",
        ),
        (
            issued(not_before=NOW + DAY, not_after=NOW + 9 * DAY),
            logging.WARNING,
            f"is not valid before {NOW + DAY:%Y-%m-%d}: clients refuse it until then",
        ),
    ],
)
def test_the_dates_are_told_and_warn_where_clients_will_refuse(
    write: Callable[[Path], str], level: int, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "server.pem")
    server_context(path)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (level, f"the certificate in {path} {words}")


def test_a_key_that_everybody_can_read_earns_a_warning_and_a_certificate_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain, key = file(tmp_path / "chain.pem", CHAIN), file(tmp_path / "key.pem", KEY)
    Path(chain).chmod(0o644)
    server_context(chain, key)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    Path(key).chmod(0o644)
    server_context(chain, key)
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage() == f"the key in {key} can be read by everybody on this machine: chmod o-r it"
