"""The proof that lets a client go on with a session: what a client claims, what both sides prove, and the check.

A client that never loses its connection does not load this module.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import Enum

from http2tcp.protocol.resume_wire import Hello, NotYours, Stale


class Role(Enum):
    """Which side makes the proof. A proof covers its role, so neither side can use the other's proof."""

    CLIENT = b"client"
    SERVER = b"server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a proof covers: the side that makes it, the session, the attempt, and that side's `received` and `acked`."""

    role: Role
    session: str
    attempt: int
    received: int
    acked: int
    #: The server's nonce, from CHALLENGE, and the client's, from its HELLO.
    server_nonce: bytes = field(repr=False)
    client_nonce: bytes = field(repr=False)

    def prove(self, secret: bytes) -> bytes:
        """Make the proof: HMAC-SHA-256 over all fields.

        Each field has a fixed length or ends with a zero byte, so no two claims give the same input.
        """
        numbers = b"".join(number.to_bytes(8, "big") for number in (self.received, self.acked, self.attempt))
        names = b"http2tcp resume 1\0" + self.role.value + b"\0" + self.session.encode("ascii") + b"\0"
        return hmac.digest(secret, names + self.server_nonce + self.client_nonce + numbers, "sha256")

    def holds(self, secret: bytes, proof: bytes) -> bool:
        """Whether `proof` is the right proof of this claim. Compares in constant time."""
        return hmac.compare_digest(self.prove(secret), proof)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of the client to resume its session. Only the newest attempt can succeed."""

    number: int
    #: The client's `handed_on`, as the HELLO of this attempt states it.
    acked: int
    #: The whole HELLO to send.
    capsule: bytes = field(repr=False)
    server_nonce: bytes = field(repr=False)
    client_nonce: bytes = field(repr=False)


def verify(secret: bytes, session: str, attached: int, hello: Hello, server_nonce: bytes) -> None:
    """Check that a client's HELLO may take the session over. `attached` is the last attempt that attached.

    Raises NotYours and Stale.
    """
    received, acked, attempt = hello.received, hello.acked, hello.attempt
    if received is None or acked is None or attempt is None or hello.nonce is None or hello.proof is None:
        raise NotYours("the client's HELLO has no proof")
    claim = Claim(
        role=Role.CLIENT,
        session=session,
        attempt=attempt,
        received=received,
        acked=acked,
        server_nonce=server_nonce,
        client_nonce=hello.nonce,
    )
    if not claim.holds(secret, hello.proof):
        raise NotYours("the client does not prove that it has the session's secret")
    if attempt <= attached:
        raise Stale("a newer attempt was faster")
