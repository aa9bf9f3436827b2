"""What a server remembers of a session that is over, for a client that comes back late."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from http2tcp.protocol.capsule import Reset, reset
from http2tcp.protocol.resume_proof import Claim, Role, verify
from http2tcp.protocol.resume_wire import VERSION, Hello, StateError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A session that is over, as the server remembers it."""

    session: str
    attempt: int
    received: int
    acked: int
    #: Whether both ends were acknowledged. If not, `reset` says why the session is over.
    finished: bool
    reset: Reset
    hello: Hello
    secret: bytes = field(repr=False)

    def freeze(self) -> str:
        """Save the tombstone, its secret included, as a line of JSON."""
        state = asdict(self) | {"version": VERSION, "secret": self.secret.hex()}
        state["hello"] = list(self.hello[:3]), self.hello.idle_timeout
        return json.dumps(state)

    @classmethod
    def thaw(cls, line: str) -> Tombstone:
        """Restore a tombstone that `freeze` saved. Raises StateError if it is damaged, or of another version."""
        try:
            state = json.loads(line)
            if state.pop("version") != VERSION:
                raise StateError(f"expected a tombstone of version {VERSION}")
            state["secret"] = bytes.fromhex(state["secret"])
            state["reset"] = Reset(*state["reset"])
            (keepalive, window, grace), idle = state["hello"]
            state["hello"] = Hello(keepalive=keepalive, window=window, grace=grace, idle_timeout=idle)
            return cls(**state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StateError("the state of a tombstone cannot be read") from error

    def answer(self, hello: Hello, server_nonce: bytes) -> bytes:
        """Return the capsule that answers a client's HELLO. Then close the connection. Raises NotYours or Stale."""
        verify(self.secret, self.session, self.attempt, hello, server_nonce)
        if not self.finished:
            return reset(*self.reset)
        assert hello.attempt is not None
        assert hello.nonce is not None
        claim = Claim(
            role=Role.SERVER,
            session=self.session,
            attempt=hello.attempt,
            received=self.received,
            acked=self.acked,
            server_nonce=server_nonce,
            client_nonce=hello.nonce,
        )
        said = self.hello._replace(received=self.received, acked=self.acked, proof=claim.prove(self.secret))
        return said.capsule()
