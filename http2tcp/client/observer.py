"""The events of an attempt to open a tunnel, for code that shows them. Only type checkers load this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from http2tcp.address import Address
from http2tcp.client.proxy_choice import Proxy
from http2tcp.errors import TunnelError
from http2tcp.protocol.client_handshake import Answer
from http2tcp.protocol.transport import Transport


class Progress(Protocol):
    """Each call reports that a hop was passed. What a peer wrote is not yet safe to print."""

    def attempting(self, transport: Transport) -> None:
        """A connection of its own begins for this transport."""

    def resolved(self, host: str, addresses: Sequence[str]) -> None:
        """The endpoint's name was looked up, or it is an address. Not called if a proxy looks the name up."""

    def connected(self, address: Address) -> None:
        """TCP to this address of the endpoint."""

    def proxied(self, proxy: Proxy, address: Address) -> None:
        """The proxy, at this address, has connected us to the endpoint."""

    def secured(self, version: str | None, certificate: bytes | None) -> None:
        """A TLS session with the endpoint; its certificate in DER."""

    def answered(self, answer: Answer, fields: Sequence[tuple[str, str]]) -> None:
        """The endpoint's answer and the fields of its head, names in lower case."""

    def failed(self, error: TunnelError, *, again: bool) -> None:
        """The attempt has failed. `again`: the same one will be made once more, after a pause."""
