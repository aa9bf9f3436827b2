"""The server's side of TLS, for hosts without a front end: handshakes, with a certificate that can be replaced.

TLS 1.2 or newer, with OpenSSL's own choice of ciphers. Every name that a client asks for gets the one
certificate. A client that offers HTTP/2 alone in ALPN is answered without ALPN, since Python has no way to
refuse it there; what it then sends is refused as no HTTP/1.1.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
import stat
from base64 import b64decode
from datetime import UTC, datetime
from typing import NoReturn

import trio

from http2tcp.errors import SettingsError, TLSRequired, os_reason
from http2tcp.net.streams import TCP_ENDS, SocketStream, broken
from http2tcp.net.tls import TLSStream, bare_context, is_cut
from http2tcp.net.tls_session import TLSSocket
from http2tcp.protocol.certificate import CertificateError, parse_certificate

logger = logging.getLogger("http2tcp.tls")

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]+)-----END CERTIFICATE-----")
_KEY = b"PRIVATE KEY-----"

# How long a client whose handshake failed may take to read the alert that says why.
_LINGER = 1.0


class HandshakeFailed(Exception):
    """No TLS session. `str(error)` says why, in a few words that are fit for a log."""


def server_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Load a certificate and its key. Warns of what clients or operators will not like. Raises SettingsError.

    `certificate`: a PEM file, the server's own before those that lead to its authority.
    `key`: the PEM file with its key; None: the same file.
    """
    chain = _read(certificate, "certificate")
    first = _CERTIFICATE.search(chain)
    if first is None:
        raise SettingsError(f"{certificate} holds no certificate in PEM")
    if key is None and _KEY not in chain:
        raise SettingsError(f"{certificate} holds no private key in PEM; --tls-key names the file that does")
    if key is not None and _KEY not in _read(key, "key"):
        raise SettingsError(f"{key} holds no private key in PEM")
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A client could keep us busy with it, and TLS 1.3 has none.
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load(context, certificate, key or certificate)
    if _everybody_can_read(key or certificate):
        logger.warning("the key in %s can be read by everybody on this machine: chmod o-r it", key or certificate)
    _tell_dates(certificate, first[1])
    return context


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_ask_nobody)
    except _Encrypted:
        words = "is encrypted, and nobody is there to be asked for its passphrase: store it without one"
        raise SettingsError(f"the key in {key} {words}") from None
    except OSError as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            words = f"the key in {key} is not that of the first certificate in {certificate}"
            raise SettingsError(words) from None
        files = certificate if key == certificate else f"{certificate} with {key}"
        # What is no DER has no reason of OpenSSL's.
        damaged = isinstance(error, ssl.SSLError) and not error.reason
        why = "OpenSSL cannot read one of them, which may be damaged" if damaged else _reason(error)
        raise SettingsError(f"cannot use the certificate and key of {files}: {why}") from None


def _tell_dates(path: str, base64: bytes) -> None:
    try:
        certificate = parse_certificate(b64decode(base64))
    except (CertificateError, ValueError):
        return  # OpenSSL takes it, and so may clients
    now, day = datetime.now(UTC), "%Y-%m-%d"
    if certificate.not_after < now:
        words = "the certificate in %s expired on %s: clients refuse it until it is renewed"
        logger.warning(words, path, certificate.not_after.strftime(day))
    elif certificate.not_before > now:
        words = "the certificate in %s is not valid before %s: clients refuse it until then"
        logger.warning(words, path, certificate.not_before.strftime(day))
    else:
        logger.info("the certificate in %s is good until %s", path, certificate.not_after.strftime(day))


async def accept_tls(stream: SocketStream, context: ssl.SSLContext) -> ServerTLSStream:
    """Shake hands as a server, on a connection from which nothing was read too far.

    The caller sets the deadline. Raises TLSRequired, which leaves the stream and all its bytes; HandshakeFailed; or
    BrokenResourceError where the client left. The connection is closed then.
    """
    try:
        # RFC 8446, section 5.1: a handshake begins with 22, which is no letter.
        if (await _peek(stream)).isalpha():
            raise TLSRequired
        tls = ServerTLSStream(TLSSocket(stream.socket, context, server_side=True))
    except TLSRequired:
        raise
    except OSError as error:
        stream.abort()
        raise broken(error) from error
    except BaseException:
        stream.abort()
        raise
    try:
        await tls.handshake()
    except ssl.SSLError as error:
        if is_cut(error):
            tls.abort()
            raise trio.BrokenResourceError("it ended in the handshake") from error
        await _deliver_alert(tls)
        raise HandshakeFailed(_reason(error)) from error
    except OSError as error:
        tls.abort()
        raise broken(error) from error
    except BaseException:
        tls.abort()
        raise
    return tls


class _Encrypted(Exception):
    """A key wants a passphrase."""


def _ask_nobody() -> NoReturn:
    # Without an answer of ours OpenSSL would ask for it on the terminal, and wait.
    raise _Encrypted


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise SettingsError(f"cannot read the {what} {path}: {_reason(error)}") from None


def _everybody_can_read(path: str) -> bool:
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "unknown error").lower().replace("_", " ")
    return os_reason(error)


async def _peek(stream: SocketStream) -> bytes:
    """The first byte, which stays where it is; b"" is EOF."""
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            return stream.socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            continue


async def _deliver_alert(tls: ServerTLSStream) -> None:
    """OpenSSL has sent an alert where there is one. Closing with bytes unread would reset it away."""
    raw = SocketStream(socket.socket(fileno=tls.socket.detach()))
    try:
        with trio.move_on_after(_LINGER):
            await raw.linger()
    except trio.BrokenResourceError:
        pass
    finally:
        raw.abort()


class ServerTLSStream(TLSStream):
    """A TLS session that has half-close. Make one with `accept_tls`.

    A client cannot have it, since it does not know what its front end makes of it. Here a close_notify leads
    to whoever reads it: our own client, for one, which still sends what its stdin has.
    """

    ends = TCP_ENDS

    async def send_eof(self) -> None:
        """Send close_notify and go on receiving (RFC 8446, section 6.1).

        Raises BrokenResourceError after a send that was cancelled half-way. A client that is gone is no error here:
        receiving tells.
        """
        self._begin_sending()
        try:
            await self._send_eof()
        finally:
            self._sending = False

    async def _send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was already closed")
        if self._said_all:
            return
        if self._torn:
            raise trio.BrokenResourceError("an earlier send was cancelled half-way")
        # There is nothing to send after it, whether it is sent whole or not.
        self._torn = True
        # OpenSSL takes decrypted bytes that nobody has fetched yet for a breach of the protocol.
        while size := self.socket.pending():
            self._ahead += self.socket.recv(size)
        await self._send_close_notify()
        self._said_all = True

    async def finish(self) -> None:
        """As `send_eof`, which the peer may have been told before."""
        await self._send_eof()

    async def linger(self) -> None:
        """See `Stream.linger`. It says close_notify first, which the peer may be waiting for."""
        await self._send_eof()
        await super().linger()
