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
    """Each call reports one event of an attempt. Text that a peer wrote is not yet safe to print."""

    def attempting(self, transport: Transport) -> None:
        """An attempt by this transport begins, with a new connection."""

    def resolved(self, host: str, addresses: Sequence[str]) -> None:
        """The endpoint's name was looked up, or the endpoint is an address. Not called if a proxy looks the name up."""

    def connected(self, address: Address) -> None:
        """The TCP connection to this address of the endpoint is open."""

    def proxied(self, proxy: Proxy, address: Address) -> None:
        """The proxy, at this address, has connected us to the endpoint."""

    def secured(self, version: str | None, certificate: bytes | None) -> None:
        """The TLS session with the endpoint is open. `certificate` is the endpoint's, in DER."""

    def answered(self, answer: Answer, fields: Sequence[tuple[str, str]]) -> None:
        """The endpoint answered. `fields` are the header fields of its answer, with their names in lower case."""

    def failed(self, error: TunnelError, *, again: bool) -> None:
        """The attempt failed. `again`: the client will repeat it after a pause."""
