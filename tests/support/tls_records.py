"""Records of TLS 1.3 made by hand, such as Python's ssl does not send: key updates, padding."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HANDSHAKE, DATA = 22, 23


class HandMade:
    """One direction of a session with TLS_AES_256_GCM_SHA384, from its first record after the handshake on."""

    def __init__(self, keylog: Path, side: str) -> None:
        """`keylog`: what `SSLContext.keylog_filename` wrote for one session; `side`: who sends, CLIENT or SERVER."""
        lines = [line.split() for line in keylog.read_text().splitlines()]
        (secret,) = {line[2] for line in lines if line[0] == f"{side}_TRAFFIC_SECRET_0"}
        self._use(bytes.fromhex(secret))

    def _use(self, secret: bytes) -> None:
        self._secret, self._count = secret, 0
        self._cipher = AESGCM(_expand(secret, b"key", 32))
        self._nonce = int.from_bytes(_expand(secret, b"iv", 12), "big")

    def record(self, kind: int, content: bytes, *, padded: int = 0) -> bytes:
        """RFC 8446, section 5.2. `padded`: to so many bytes of content."""
        inner = content + bytes([kind])
        inner += bytes(max(0, padded + 1 - len(inner)))
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (self._nonce ^ self._count).to_bytes(12, "big")
        self._count += 1
        return head + self._cipher.encrypt(nonce, inner, head)

    def data(self, content: bytes) -> bytes:
        """Payload in one record."""
        return self.record(DATA, content)

    def key_update(self, *, requested: bool = False, padded: int = 0) -> bytes:
        """RFC 8446, section 4.6.3; what is made after it has the new key. `requested`: it is to be answered."""
        record = self.record(HANDSHAKE, b"\x18\x00\x00\x01" + bytes([requested]), padded=padded)
        self._use(_expand(self._secret, b"traffic upd", 48))
        return record


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446, section 7.1, without a context."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\x00"
    return HKDFExpand(SHA384(), size, info).derive(secret)
