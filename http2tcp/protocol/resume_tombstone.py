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
    #: Both ends were acknowledged; otherwise `reset` says why not.
    finished: bool
    reset: Reset
    hello: Hello
    secret: bytes = field(repr=False)

    def freeze(self) -> str:
        """All of it, the secret too, as a line of JSON."""
        state = asdict(self) | {"version": VERSION, "secret": self.secret.hex()}
        state["hello"] = list(self.hello[:3]), self.hello.idle_timeout
        return json.dumps(state)

    @classmethod
    def thaw(cls, line: str) -> Tombstone:
        """The tombstone that was frozen. Raises StateError for what another version wrote."""
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
        """What to say to a client's HELLO, after which the connection is closed. Raises NotYours or Stale."""
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
