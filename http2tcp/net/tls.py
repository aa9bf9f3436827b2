"""TLS over a plain socket: waits with trio for what `http2tcp.net.tls_session` needs.

Handshakes queue, so that the event loop does one step of one handshake in each turn. A handshake costs a millisecond of
public-key arithmetic, and hundreds of them in one turn would hold up the tunnels.

A stream that ends without close_notify was cut (RFC 8446, section 6.1). It is reported as broken, never as an EOF.
There is no half-close: a client cannot know what its front end does with a close_notify, and nginx ends both
directions. `http2tcp.net.tls_server` has half-close, for the side that knows its peer.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import trio

from http2tcp.address import without_zone
from http2tcp.errors import os_reason
from http2tcp.net.streams import (
    EOF_PATIENCE,
    UNSAID_END,
    Bytes,
    Ends,
    HalfCloseUnsupported,
    Queue,
    SocketStream,
    Stream,
    broken,
    check_size,
    delivered,
    queue_of,
    reset_on_close,
)
from http2tcp.net.tls_session import CHUNK, TLSSocket

# The files in which systems keep their authorities. A Python that was built for another system does not know them.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")

_HASHED = re.compile(r"[0-9a-f]{8}\.[0-9]+")

# How many bytes of a file `beginnings` reads. A certificate with its chain and key is shorter.
_ENOUGH = 64 * 1024

# The lock that a task holds while it does a step of its handshake: one step in each turn of the event loop.
_HANDSHAKE_TURN: trio.lowlevel.RunVar[trio.StrictFIFOLock] = trio.lowlevel.RunVar("http2tcp handshakes")

# How long, in seconds, closing may wait until the kernel has room for a close_notify.
_CLOSING = 1.0
_TORN = "an earlier send was cancelled half-way"

#: TLS without half-close: we cannot send the peer an EOF, and it may be waiting for one.
TLS_ENDS = Ends(half_close=False, eof_patience=EOF_PATIENCE)

_T = TypeVar("_T")


class PinMismatch(Exception):
    """The peer's public key is not one of the pinned keys. `str(error)` is its pin."""


def client_context(
    *, ca_file: str | None = None, cert: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """Make a client's context, which verifies against `ca_file`, or else the system's authorities. Raises OSError."""
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        context.load_verify_locations(ca_file)
    else:
        _load_system_authorities(context)
    if cert is not None:
        # Pass a password, even an empty one, so that an encrypted key is an error. Without a password, OpenSSL would
        # ask for one on the terminal.
        context.load_cert_chain(cert, key, password="")
    return context


def bare_context(protocol: int) -> ssl.SSLContext:
    """Make a context for either side, without certificates.

    ALPN has only http/1.1, and an end without close_notify is an error.
    """
    context = ssl.SSLContext(protocol)
    # Python before 3.11.4 makes OpenSSL 3 treat an end without close_notify as a clean one.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    # HTTP/2 has no Upgrade: a front end that spoke it would drop the field (RFC 9113, section 8.2.2).
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_system_authorities(context: ssl.SSLContext) -> None:
    paths = ssl.get_default_verify_paths()
    named = os.environ.get(paths.openssl_cafile_env) or os.environ.get(paths.openssl_capath_env)
    if not named and paths.capath is not None and any(_HASHED.fullmatch(name) for name in os.listdir(paths.capath)):
        # From a directory of hashed names, OpenSSL reads only the authority that it needs. That takes 27 ms; reading
        # all 140 takes 48 ms.
        context.load_verify_locations(capath=paths.capath)
        return
    context.load_default_certs()
    if not named and paths.cafile is None and paths.capath is None:
        for bundle in filter(os.path.exists, _BUNDLES):
            context.load_verify_locations(bundle)
            return


def unusable_authorities() -> str:
    """Say which environment variable of OpenSSL names an unusable file or directory of CAs, and why; "" if none.

    OpenSSL itself ignores such a variable silently.
    """
    paths = ssl.get_default_verify_paths()
    if named := os.environ.get(paths.openssl_cafile_env):
        try:
            with open(named, "rb") as file:
                problem = "" if b"CERTIFICATE-----" in file.read() else "no certificate in PEM"
        except OSError as error:
            problem = os_reason(error)
        if problem:
            return f"{paths.openssl_cafile_env} names {named} ({problem})"
    named = os.environ.get(paths.openssl_capath_env)
    if named and not any(map(os.path.isdir, named.split(os.pathsep))):
        return f"{paths.openssl_capath_env} names {named} (no such directory)"
    return ""


def beginnings(files: Sequence[tuple[str, str | None]]) -> list[tuple[str, str, bytes]]:
    """Return each option with its file and the file's first bytes, to find out which file is wrong.

    Leaves out the files that cannot be read.
    """
    found = []
    for option, path in files:
        try:
            if path is not None and os.path.isfile(path):
                with open(path, "rb") as file:
                    found.append((option, path, file.read(_ENOUGH)))
        except OSError:
            continue  # the caller already has an error that says so
    return found


class TLSStream(Stream):
    """A TLS session on a socket that it owns. Make one with `open_tls`."""

    ends = TLS_ENDS

    def __init__(self, tls: TLSSocket) -> None:
        self.socket = tls
        self._reader: trio.Event | None = None
        self._writer: trio.Event | None = None
        self._receiving = False
        self._ended = False
        self._torn = False
        # Whether the last receive returned a full CHUNK: then more bytes are probably ready.
        self._bulky = False
        #: Whether our close_notify has been sent.
        self._said_all = False

    def version(self) -> str | None:
        """The protocol's version, as OpenSSL names it."""
        return self.socket.version()

    def certificate(self) -> bytes | None:
        """The peer's certificate, in DER."""
        return self.socket.certificate()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive up to `max_bytes`, at most 64 KiB; b"": the peer sent close_notify. Raises BrokenResourceError."""
        check_size(max_bytes)
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was already closed")
        # trio would not notice a second receiver, since `_readable` lets two tasks wait for the same readiness.
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        self._receiving = True
        try:
            return await self._receive_some(max_bytes)
        finally:
            self._receiving = False

    async def _receive_some(self, max_bytes: int | None) -> bytes:
        if self._ahead or self._ended:
            await trio.lowlevel.checkpoint()
            return self.take_ahead(max_bytes)
        wanted = min(max_bytes or CHUNK, CHUNK)
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this stream was already closed")
            # Always let other tunnels run between two reads. In the middle of a bulk transfer the kernel usually has
            # more bytes already, and trying to read costs less than waiting for readiness.
            if self.socket.buffered or self._bulky:
                await trio.lowlevel.checkpoint()
            elif self.socket.owes:
                await self._writable()
            else:
                await self._readable()
            data = await self._when_ready(lambda: self._receive(wanted))
            self._bulky = len(data) == CHUNK
            if data or self._ended:
                return data

    def _receive(self, wanted: int) -> bytes:
        # While this task waited, `send_eof` may have moved decrypted bytes to `_ahead`: they come first.
        if self._ahead or self._ended:
            return self.take_ahead(wanted)
        try:
            data = self.socket.receive(wanted)
        except ssl.SSLZeroReturnError:
            self._ended = True  # the peer's close_notify came after ours
            return b""
        self._ended = self.socket.ended
        return data

    async def send_all(self, data: Bytes) -> None:
        """Send everything. If it is cancelled while it waits for room, nothing more can be sent on this stream."""
        self._begin_sending()
        try:
            await self._send(data)
        finally:
            self._sending = False

    async def _send(self, data: Bytes) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.socket.fileno() < 0 or self._said_all:
            raise trio.ClosedResourceError("this stream was already closed")
        if self._torn:
            raise trio.BrokenResourceError(_TORN)
        with memoryview(data) as view:
            sent = 0
            self._torn = True
            while sent < len(view):
                # Compute `rest` only once for each send, since a retry must pass the same bytes again.
                rest = view[sent:]
                try:
                    sent += await self._when_ready(lambda: self.socket.send(rest))  # noqa: B023
                except ssl.SSLZeroReturnError:
                    raise trio.BrokenResourceError("the other side had ended TLS already") from None
            self._torn = False
        # All bytes are sent, so a cancellation must not make the send look unfinished.
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel has room."""
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was already closed")
        self._begin_sending()
        try:
            await self._writable()
        finally:
            self._sending = False
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this stream was already closed")

    async def send_eof(self) -> None:
        """Raises HalfCloseUnsupported, always."""
        raise HalfCloseUnsupported("TLS has no half-close here")

    async def flush(self) -> None:
        """See `Stream.flush`. Returns at once on systems whose kernel does not say what the peer's kernel has."""
        await delivered(self.socket)

    def queue(self) -> Queue:
        """See `Stream.queue`."""
        return queue_of(self.socket)

    async def finish(self) -> None:
        """Send close_notify as soon as the kernel has room, without waiting for the peer's close_notify."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._said_all:
            return
        if self._torn:
            raise trio.BrokenResourceError(_TORN)
        await self._send_close_notify()
        # The session is over: from now on, return nothing that arrives, and refuse to send.
        self._said_all = self._ended = self._torn = True

    async def _send_close_notify(self) -> None:
        """Send close_notify as soon as the kernel has room.

        If the peer is gone, raise nothing: the next receive reports it.
        """
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this stream was already closed")
            try:
                self.socket.unwrap()
            except ssl.SSLWantWriteError:
                # Calling `unwrap` again sends the same close_notify: OpenSSL makes only one.
                await self._writable()
            except OSError:
                return  # SSLWantReadError: ours is sent, and the peer's has not come. Other errors: the peer is gone
            else:
                return  # ours is sent, and the peer's has come

    def abort(self) -> None:
        """Close without close_notify, with RST."""
        if self.socket.fileno() >= 0:
            reset_on_close(self.socket)
            self._close()

    async def aclose(self) -> None:
        """Send close_notify and close, without waiting for the peer's close_notify.

        If the kernel has no room for it in time, reset the connection instead and raise BrokenResourceError.
        """
        try:
            if self.socket.fileno() >= 0 and not self._torn:
                with trio.move_on_after(_CLOSING):
                    await self.finish()
                if not self._said_all:
                    self.abort()
                    raise trio.BrokenResourceError(UNSAID_END)
        finally:
            if self.socket.fileno() >= 0:
                self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        trio.lowlevel.notify_closing(self.socket)
        self.socket.close()

    async def handshake(self) -> None:
        """Shake hands; must come before everything else. Raises ssl.SSLError or OSError."""
        queue = _handshake_turn()
        while True:
            done, wait = False, trio.lowlevel.checkpoint
            async with queue:
                try:
                    done = self.socket.do_handshake()
                except ssl.SSLWantReadError:
                    wait = self._readable
                except ssl.SSLWantWriteError:
                    wait = self._writable
                finally:
                    # Keep the lock until the next turn of the event loop, also after an error.
                    await trio.lowlevel.cancel_shielded_checkpoint()
            if done:
                return
            await wait()

    async def _when_ready(self, operation: Callable[[], _T]) -> _T:
        # Because of key updates and renegotiations, a read may have to wait until it can write, and the reverse.
        while True:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this stream was already closed")
            try:
                return operation()
            except ssl.SSLWantReadError:
                await self._readable()
            except ssl.SSLWantWriteError:
                await self._writable()
            except ssl.SSLZeroReturnError:
                raise
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(what_broke(error)) from error
            except OSError as error:
                raise broken(error) from error

    async def _readable(self) -> None:
        # The sender and the receiver may both wait for this, but trio lets only one task wait: the second task waits
        # for the first.
        if self._reader is not None:
            await self._reader.wait()
            return
        self._reader = trio.Event()
        try:
            await trio.lowlevel.wait_readable(self.socket)
        finally:
            self._reader.set()
            self._reader = None

    async def _writable(self) -> None:
        if self._writer is not None:
            await self._writer.wait()
            return
        self._writer = trio.Event()
        try:
            await trio.lowlevel.wait_writable(self.socket)
        finally:
            self._writer.set()
            self._writer = None


def _handshake_turn() -> trio.StrictFIFOLock:
    try:
        return _HANDSHAKE_TURN.get()
    except LookupError:
        lock = trio.StrictFIFOLock()
        _HANDSHAKE_TURN.set(lock)
        return lock


def what_broke(error: ssl.SSLError) -> str:
    """Say what broke a session, in a few words."""
    if is_cut(error):
        return "TLS ended without close_notify"
    return f"TLS failed: {error.reason or 'unknown error'}"


def is_cut(error: ssl.SSLError) -> bool:
    """Whether the connection ended without a close_notify."""
    # Python before 3.11.4 raises another class of SSLError for such an end, with the reason below.
    return isinstance(error, ssl.SSLEOFError) or error.reason == "UNEXPECTED_EOF_WHILE_READING"


def name_to_verify(server_name: str) -> bytes:
    """The name that a certificate must have: without the final dot of a host name, or the zone of an IPv6 address.

    It is bytes, since ssl puts a str through the idna codec, whose import costs milliseconds.
    """
    return without_zone(server_name).rstrip(".").encode()


async def open_tls(
    stream: SocketStream, context: ssl.SSLContext, server_name: str, pins: Collection[bytes] = ()
) -> TLSStream:
    """Shake hands as a client, and check the peer's public key against `pins` (SHA-256 digests), if there are any.

    The caller sets the deadline. Raises ssl.SSLError, OSError or PinMismatch, after it has closed the socket.
    """
    try:
        tls = TLSStream(TLSSocket(stream.socket, context, server_hostname=name_to_verify(server_name)))
    except BaseException:
        stream.abort()
        raise
    try:
        await tls.handshake()
        check_pin(tls.certificate(), pins)
    except BaseException:
        tls.abort()
        raise
    return tls


def check_pin(certificate: bytes | None, pins: Collection[bytes]) -> None:
    """Check the public key of a DER certificate against `pins`, if there are any. Raises PinMismatch."""
    if pins:
        # Imported late: few clients pin a key, and from Python 3.14 on nothing else here imports hashlib.
        import hashlib

        from http2tcp.protocol.certificate import pin, public_key

        digest = hashlib.sha256(public_key(certificate or b"")).digest()
        if digest not in pins:
            raise PinMismatch(pin(digest))
