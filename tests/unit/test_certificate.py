"""What is read from a certificate is what its maker wrote, whoever made it."""

from __future__ import annotations

import datetime
import ssl
from ipaddress import ip_address

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from http2tcp.protocol.certificate import CertificateError, parse_certificate, public_key

KEY = ec.generate_private_key(ec.SECP256R1())


def name(**parts: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(getattr(NameOID, oid), value) for oid, value in parts.items()])


def certificate(
    subject: x509.Name,
    issuer: x509.Name,
    *,
    start: datetime.datetime = datetime.datetime(2026, 1, 2),
    end: datetime.datetime = datetime.datetime(2026, 4, 1, 12, 30, 5),
    names: list[x509.GeneralName] | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(KEY.public_key())
        .serial_number(2**150)
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256())


def der(made: x509.Certificate) -> bytes:
    return made.public_bytes(Encoding.DER)


def test_names_dates_and_the_issuer_are_read() -> None:
    made = certificate(
        name(COMMON_NAME="example.com"),
        name(COUNTRY_NAME="US", ORGANIZATION_NAME="Let's Encrypt", COMMON_NAME="R11"),
        names=[
            x509.DNSName("example.com"),
            x509.RFC822Name("a@b.example"),
            x509.DNSName("*.example.com"),
            x509.IPAddress(ip_address("192.0.2.1")),
            x509.IPAddress(ip_address("2001:db8::1")),
        ],
    )
    read = parse_certificate(der(made))
    assert read.subject == "example.com"
    assert read.issuer == "R11, Let's Encrypt"
    assert read.names == ("example.com", "*.example.com", "192.0.2.1", "2001:db8::1")
    assert read.not_before == datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    assert read.not_after == datetime.datetime(2026, 4, 1, 12, 30, 5, tzinfo=datetime.UTC)
    assert not read.self_signed


@pytest.mark.parametrize("year", [1951, 1999, 2049, 2050, 9999])
def test_a_year_is_read_in_either_form_of_time(year: int) -> None:
    # RFC 5280 has two digits up to 2049, and four from 2050 on.
    end = datetime.datetime(year, 12, 31, 23, 59, 59)
    made = certificate(name(COMMON_NAME="a"), name(COMMON_NAME="b"), start=datetime.datetime(1950, 1, 1), end=end)
    read = parse_certificate(der(made))
    assert read.not_after == end.replace(tzinfo=datetime.UTC)
    assert read.not_before.year == 1950


def test_a_self_signed_certificate_is_told() -> None:
    assert parse_certificate(der(certificate(name(COMMON_NAME="x"), name(COMMON_NAME="x")))).self_signed


def test_a_certificate_may_name_nobody() -> None:
    read = parse_certificate(der(certificate(x509.Name([]), name(COUNTRY_NAME="DE"))))
    assert (read.subject, read.issuer, read.names) == ("", "", ())


def test_a_name_that_is_no_latin_text_is_read() -> None:
    assert parse_certificate(der(certificate(name(COMMON_NAME="пример"), name(COMMON_NAME="例")))).subject == "пример"


def test_many_names_are_read_up_to_a_limit() -> None:
    names: list[x509.GeneralName] = [x509.DNSName(f"{number}.example") for number in range(500)]
    read = parse_certificate(der(certificate(name(COMMON_NAME="x"), name(COMMON_NAME="y"), names=names)))
    assert len(read.names) == 100


def test_the_public_key_is_the_one_that_is_pinned() -> None:
    expected = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert public_key(der(certificate(name(COMMON_NAME="x"), name(COMMON_NAME="y")))) == expected


def test_python_s_own_ssl_reads_the_same_names() -> None:
    leaf = trustme.CA().issue_cert("localhost", "127.0.0.1", "*.example.org")
    pem = leaf.cert_chain_pems[0].bytes().decode()
    assert parse_certificate(ssl.PEM_cert_to_DER_cert(pem)).names == ("localhost", "127.0.0.1", "*.example.org")


@pytest.mark.parametrize("junk", [b"", b"\x30", b"\x30\x00", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"hello"])
def test_what_is_no_certificate_is_an_error_of_ours(junk: bytes) -> None:
    with pytest.raises(CertificateError):
        parse_certificate(junk)
    with pytest.raises(CertificateError):
        public_key(junk)
