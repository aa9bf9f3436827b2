"""No bytes make the reader of certificates raise anything but its own error."""

from __future__ import annotations

import ssl

import trustme
from hypothesis import given
from hypothesis import strategies as st

from http2tcp.protocol.certificate import CertificateError, parse_certificate, public_key

WHOLE = ssl.PEM_cert_to_DER_cert(trustme.CA().issue_cert("localhost", "127.0.0.1").cert_chain_pems[0].bytes().decode())


def read(der: bytes) -> None:
    for reader in (parse_certificate, public_key):
        try:
            reader(der)
        except CertificateError:
            pass


@given(st.binary(max_size=300))
def test_arbitrary_bytes(der: bytes) -> None:
    read(der)


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=4), st.integers(0, 4))
def test_a_certificate_with_some_bytes_changed(at: int, instead: bytes, drop: int) -> None:
    read(WHOLE[:at] + instead + WHOLE[at + drop :])


@given(st.integers(0, len(WHOLE)))
def test_a_certificate_that_was_cut(at: int) -> None:
    read(WHOLE[:at])
