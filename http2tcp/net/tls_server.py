"""The server's side of TLS, for hosts without a front end: load the certificate, and shake hands.

TLS 1.2 or newer, with OpenSSL's own choice of ciphers. There is one certificate, whatever name a client asks for. A
client that offers only HTTP/2 in ALPN gets a session without ALPN, since Python cannot refuse it there; its first
bytes are then refused because they are not HTTP/1.1.
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

# How long, in seconds, a client whose handshake failed may take to read the alert that says why.
_LINGER = 1.0


class HandshakeFailed(Exception):
    """The handshake failed. `str(error)` says why, in a few words that are fit for a log."""


def server_context(certificate: str, key: str | None = None) -> ssl.SSLContext:
    """Load a certificate and its key. Logs a warning if the certificate is not valid now or anybody can read the key.

    `certificate`: a PEM file with the server's own certificate first, then those that lead to its authority.
    `key`: the PEM file with its key; None: the key is in the same file. Raises SettingsError.
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
    # A client could keep the server busy with renegotiations, and TLS 1.3 has none.
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
        # OpenSSL gives no reason for bytes that are not DER.
        damaged = isinstance(error, ssl.SSLError) and not error.reason
        why = "OpenSSL cannot read one of them, which may be damaged" if damaged else _reason(error)
        raise SettingsError(f"cannot use the certificate and key of {files}: {why}") from None


def _tell_dates(path: str, base64: bytes) -> None:
    try:
        certificate = parse_certificate(b64decode(base64))
    except (CertificateError, ValueError):
        return  # our parser cannot read it, but OpenSSL could, and so may clients
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
    """Shake hands as a server, on a connection from which nothing has been read.

    The caller sets the deadline. Raises TLSRequired if the client speaks HTTP without TLS: the stream stays open, and
    all its bytes are still unread. Raises HandshakeFailed, or BrokenResourceError if the client left; the connection
    is then closed.
    """
    try:
        # A TLS handshake begins with the byte 22 (RFC 8446, section 5.1), and HTTP begins with a letter.
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
    """The key needs a passphrase."""


def _ask_nobody() -> NoReturn:
    # OpenSSL asks us for the passphrase; if we did not answer, it would ask on the terminal and wait.
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
    """Return the first byte, and leave it in the kernel's buffer; b"" is EOF."""
    while True:
        await trio.lowlevel.wait_readable(stream.socket)
        try:
            return stream.socket.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            continue


async def _deliver_alert(tls: ServerTLSStream) -> None:
    """Wait until the client has had time to read the alert that OpenSSL has sent, and close.

    Closing at once, while bytes from the client are unread, would make the kernel send a reset, which discards the
    alert.
    """
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

    No front end ends TLS here: the client itself reads the close_notify. Our own client then still sends the rest of
    its stdin. A client cannot half-close in this way, since it does not know what its front end does with a
    close_notify.
    """

    ends = TCP_ENDS

    async def send_eof(self) -> None:
        """Send close_notify and go on receiving (RFC 8446, section 6.1).

        Raises BrokenResourceError after a send that was cancelled half-way. If the client is gone, raises nothing:
        the next receive reports it.
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
        # Nothing may follow a close_notify, even one that is sent only in part.
        self._torn = True
        # Take the bytes that are decrypted already: if any are left, OpenSSL's shutdown fails with "application data
        # after close notify".
        while size := self.socket.pending():
            self._ahead += self.socket.recv(size)
        await self._send_close_notify()
        self._said_all = True

    async def finish(self) -> None:
        """See `Stream.finish`. Sends close_notify unless `send_eof` has sent it already."""
        await self._send_eof()

    async def linger(self) -> None:
        """See `Stream.linger`. Sends close_notify first, since the peer may be waiting for it."""
        await self._send_eof()
        await super().linger()
