"""What an X.509 certificate says (RFC 5280), read from its DER. Pure; it verifies nothing.

`ssl` only describes certificates that it has verified, but --check also shows certificates that failed. The texts come
from the certificate's maker, and are not safe to print.
"""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple

# X.690: the tags of the elements that this module reads.
_OID, _UTC_TIME, _GENERALIZED_TIME, _BMP_STRING = 0x06, 0x17, 0x18, 0x1E
# RFC 5280, section 4.1: the tags of the version (which a certificate of version 1 leaves out) and of the extensions.
_VERSION, _EXTENSIONS = 0xA0, 0xA3
# RFC 5280, section 4.2.1.6: the tags of two kinds of alternative names.
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87

_COMMON_NAME = bytes.fromhex("550403")
_ORGANIZATION = bytes.fromhex("55040a")
_ALTERNATIVE_NAMES = bytes.fromhex("551d11")

# A certificate may have thousands of names; a person reads only a few.
_MAX_NAMES = 100


class CertificateError(Exception):
    """The bytes are not a certificate, or not one that this module understands."""


class Certificate(NamedTuple):
    """What a certificate says about itself."""

    #: The common name and the organization, if the certificate has them; may be empty.
    subject: str
    issuer: str
    not_before: datetime
    not_after: datetime
    #: The DNS names and IP addresses that the certificate is for.
    names: tuple[str, ...]
    #: Whether issuer and subject are the same.
    self_signed: bool


class _Element(NamedTuple):
    tag: int
    contents: bytes
    #: The bytes of the whole element, including its tag and length.
    whole: bytes


def parse_certificate(der: bytes) -> Certificate:
    """Parse the DER of a certificate. Raises CertificateError."""
    try:
        return _parse(der)
    except (IndexError, ValueError):
        raise CertificateError("this is not an X.509 certificate") from None


def public_key(der: bytes) -> bytes:
    """Return a certificate's SubjectPublicKeyInfo, which is the part that RFC 7469 pins. Raises CertificateError."""
    try:
        return _fields(der)[5].whole
    except (IndexError, ValueError):
        raise CertificateError("this is not an X.509 certificate") from None


def _parse(der: bytes) -> Certificate:
    _, _, issuer, validity, subject, _, *rest = _fields(der)
    not_before, not_after = map(_time, _elements(validity.contents))
    names = [name for element in rest if element.tag == _EXTENSIONS for name in _alternative_names(element)]
    return Certificate(
        subject=_name(subject),
        issuer=_name(issuer),
        not_before=not_before,
        not_after=not_after,
        names=tuple(names[:_MAX_NAMES]),
        self_signed=issuer == subject,
    )


def _fields(der: bytes) -> list[_Element]:
    """Return the fields of a certificate, beginning with the serial number."""
    (certificate, *_) = _elements(der)
    to_be_signed = _elements(_elements(certificate.contents)[0].contents)
    return to_be_signed[1:] if to_be_signed[0].tag == _VERSION else to_be_signed


def _elements(der: bytes) -> list[_Element]:
    """Return the elements of a sequence (X.690, section 8.1). Raises IndexError or ValueError."""
    found = []
    position = 0
    while position < len(der):
        tag, length, start = der[position], der[position + 1], position + 2
        if length & 0x80:
            octets = length & 0x7F
            length, start = int.from_bytes(der[start : start + octets], "big"), start + octets
        end = start + length
        if end > len(der):
            raise ValueError("an element ends beyond its container")
        found.append(_Element(tag, der[start:end], der[position:end]))
        position = end
    return found


def _time(element: _Element) -> datetime:
    # RFC 5280, section 4.1.2.5: both forms end in Z, and the two digits of UTCTime's year mean 1950 to 2049.
    text = element.contents.decode("ascii")
    if element.tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    elif element.tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _name(name: _Element) -> str:
    found: dict[bytes, str] = {}
    for part in _elements(name.contents):
        for attribute in _elements(part.contents):
            oid, value = _elements(attribute.contents)
            encoding = "utf-16-be" if value.tag == _BMP_STRING else "utf-8"
            found.setdefault(oid.contents, value.contents.decode(encoding, "replace"))
    parts = [found[oid] for oid in (_COMMON_NAME, _ORGANIZATION) if oid in found]
    return ", ".join(dict.fromkeys(parts))


def _alternative_names(extensions: _Element) -> list[str]:
    found = []
    for extension in _elements(_elements(extensions.contents)[0].contents):
        oid, *_, value = _elements(extension.contents)
        if oid.tag == _OID and oid.contents == _ALTERNATIVE_NAMES:
            for name in _elements(_elements(value.contents)[0].contents):
                if name.tag == _DNS_NAME:
                    found.append(name.contents.decode("ascii", "replace"))
                elif name.tag == _IP_ADDRESS:
                    found.append(str(ip_address(name.contents)))
    return found


def pin(digest: bytes) -> str:
    """Write the SHA-256 digest of a public key in the form that --pin-sha256 and curl take."""
    return "sha256//" + b64encode(digest).decode("ascii")
