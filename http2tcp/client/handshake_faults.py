"""Why a TLS handshake failed, read from Python's and OpenSSL's errors. Only this module knows their codes.

`diagnosis` has the sentences about the site, and `through_proxy` has the sentences about a proxy.
"""

from __future__ import annotations

import re
import ssl
from enum import Enum, auto

from http2tcp.errors import os_reason
from http2tcp.printable import safe


class HandshakeFault(Enum):
    """Why a TLS handshake failed."""

    EXPIRED = auto()
    NOT_YET_VALID = auto()
    OTHER_NAME = auto()
    #: The certificate, or the last one of its chain, is self-signed, and this machine does not trust it.
    SELF_SIGNED = auto()
    #: The issuer's certificate is neither in the chain that the peer sent nor among the authorities trusted here.
    UNKNOWN_ISSUER = auto()
    #: The certificate is not valid for another reason.
    INVALID = auto()
    #: The peer does not speak TLS.
    NOT_TLS = auto()
    #: The peer closed the connection during the handshake.
    ENDED = auto()
    #: The peer refused http/1.1, the only protocol that we offer (ALPN).
    NO_HTTP_1 = auto()
    #: Another OpenSSL error.
    OTHER = auto()
    #: The connection broke: the error is the system's, not OpenSSL's.
    BROKEN = auto()


# OpenSSL's codes for an invalid certificate: X509_V_ERR_* in openssl/x509_vfy.h.
_BY_VERIFY_CODE = {
    9: HandshakeFault.NOT_YET_VALID,
    10: HandshakeFault.EXPIRED,
    18: HandshakeFault.SELF_SIGNED,
    19: HandshakeFault.SELF_SIGNED,
    20: HandshakeFault.UNKNOWN_ISSUER,
    21: HandshakeFault.UNKNOWN_ISSUER,
    62: HandshakeFault.OTHER_NAME,
    64: HandshakeFault.OTHER_NAME,
}


def fault_of(error: OSError) -> HandshakeFault:
    """Return why the handshake that raised `error` failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _BY_VERIFY_CODE.get(error.verify_code, HandshakeFault.INVALID)
    if not isinstance(error, ssl.SSLError):
        return HandshakeFault.BROKEN
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return HandshakeFault.NOT_TLS
    if isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING":
        return HandshakeFault.ENDED
    # Before Python 3.13, the error for this alert has no `reason`.
    if "no application protocol" in str(error):
        return HandshakeFault.NO_HTTP_1
    return HandshakeFault.OTHER


def words_of(error: OSError) -> str:
    """Return OpenSSL's or the system's own words for the error, safe to print."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return safe(error.verify_message)
    if not isinstance(error, ssl.SSLError):
        return os_reason(error)
    if error.reason:
        return error.reason.lower().replace("_", " ")
    # Python has no name for some OpenSSL errors. Their text is like "[SSL] unknown error (_ssl.c:1006)".
    words = re.search(r"\] (.+?) \(_ssl\.c:", str(error))
    return safe(words[1]) if words else "unknown error"
