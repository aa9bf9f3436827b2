"""Reconnect a tunnel that lost its connection: when to try, what to report to the user, when to give up.

Loaded only after a connection was lost. Each attempt takes the route of the first connection: the same proxy, pins and
certificates. The token is read again from its source.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from http2tcp.errors import CredentialsRefused, DestinationForbidden, SettingsError, TunnelError
from http2tcp.net.resumable import ResumableStream
from http2tcp.net.resume_handshake import AttemptRefused, resume
from http2tcp.net.streams import Stream
from http2tcp.printable import safe
from http2tcp.protocol.capsule import ResetCode
from http2tcp.protocol.resume_wire import Gap, ResumeError, Violation, parse_gone

logger = logging.getLogger("http2tcp.client")

# Pauses before the attempts, in seconds. Each is made longer or shorter by up to a quarter, so that many clients that
# lost their connections together do not all return at the same moment. Google IAP's client waits 20 s at most,
# Teleport's 10 s.
_FIRST = 0.25
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_SPREAD = 0.25
# The longest pause while typed bytes wait to be sent, in seconds: the user waits for the echo.
_IMPATIENT = 3.0
# New input starts an attempt at once, but not sooner than this many seconds after the last one ended.
_AT_ONCE = 1.0
# An outage shorter than this, in seconds, is not reported to the user.
_QUIET = 3.0
# How long to try again with a refused token, in seconds: its owner may just be renewing it.
_TOKEN_PATIENCE = 60.0
# How long, in seconds, and how often to try again if a wrong node answers. The front end may be unable to find the
# session's own node by the session's id.
_NODE_PATIENCE = 60.0
_NODE_TRIES = 10
# How long the server may take on a new connection until its HELLO has come, in seconds.
_HELLO_TIMEOUT = 5.0

#: Opens a connection for the session with this id. Returns the stream that carries the capsules.
Open = Callable[[str], Awaitable[Stream]]


class Reconnector:
    """Reconnects one tunnel, any number of times."""

    def __init__(self, stream: ResumableStream, open: Open) -> None:
        self._stream = stream
        self._open = open
        self._tried = 0
        self._started = self._last_end = -math.inf
        self._cause = ""
        # The causes that were reported to the user in this outage.
        self._said: set[str] = set()
        self._elsewhere = 0

    async def revive(self) -> None:
        """Try until the tunnel is back. Raises BrokenResourceError if it cannot come back."""
        self._started, self._last_end = trio.current_time(), -math.inf
        self._tried = self._elsewhere = 0
        self._cause, self._said = self._stream.lost_words, set()
        logger.debug("connection lost: %s", self._cause)
        failure: trio.BrokenResourceError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            try:
                await self._try_until_back()
            except trio.BrokenResourceError as error:  # raised below, outside the nursery: not wrapped in a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        away = trio.current_time() - self._started
        logger.log(logging.WARNING if self._said else logging.DEBUG, "connected again after %.0f s", away)

    async def _try_until_back(self) -> None:
        while True:
            await self._pause()
            try:
                await self._attempt()
                return
            except TunnelError as error:
                self._judge(error)
                self._cause = f"{error.hop}: {error}"
            except SettingsError as error:
                # The token's file cannot be read now, perhaps because it is just being replaced: try again.
                self._cause = str(error)
            except AttemptRefused as refused:
                self._judge_refusal(refused)
            except (Gap, Violation) as error:
                self._give_up(f"the tunnel could not be resumed: {error}")
            except ResumeError as error:
                self._cause = str(error)
            except trio.TooSlowError:
                self._cause = f"the server did not resume the session within {_HELLO_TIMEOUT:g} s"
            except trio.BrokenResourceError as error:
                self._cause = str(error)
            self._last_end = trio.current_time()
            self._stream.lost_words = self._cause
            logger.debug("attempt %d failed: %s", self._tried, self._cause)

    async def _attempt(self) -> None:
        self._tried += 1
        carrier = await self._open(self._stream.machine.session)
        try:
            with trio.fail_after(_HELLO_TIMEOUT):
                await resume(self._stream, carrier)
        except BaseException:
            carrier.abort()
            raise

    async def _pause(self) -> None:
        if not self._tried:
            # Make the first attempt almost at once. The short pause is for a connection that was lost because the lid
            # of a laptop was closed: an attempt in the last milliseconds before the machine sleeps would be wasted.
            await trio.sleep(random.uniform(0, _FIRST))  # noqa: S311
            return
        pause = _PAUSES[min(self._tried, len(_PAUSES)) - 1] * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311
        if self._stream.has_unsent:
            pause = min(pause, _IMPATIENT)
        with trio.move_on_after(pause):
            await self._stream.wait_for_input()
            await trio.sleep_until(self._last_end + _AT_ONCE)

    def _judge(self, error: TunnelError) -> None:
        """Raise BrokenResourceError if another attempt would fail in the same way."""
        since = trio.current_time() - self._started
        if isinstance(error, DestinationForbidden) or error.lasting:
            self._give_up(str(error))
        if isinstance(error, CredentialsRefused) and since > _TOKEN_PATIENCE:
            self._give_up(str(error))

    def _judge_refusal(self, refused: AttemptRefused) -> None:
        said = refused.said
        self._cause = f"the server does not resume it now: {safe(said.words)}"
        if self._stream.machine.may_retry(said):
            if said.code == ResetCode.GONE:
                self._elsewhere += 1
                late = trio.current_time() - self._started > _NODE_PATIENCE
                if self._elsewhere >= _NODE_TRIES or late:
                    node = parse_gone(said.words).node
                    self._give_up(f"the front end leads to the server {node}, which does not have this session")
            return
        match said.code:
            case ResetCode.GONE:
                words = "the server no longer knows the session: it was restarted, or the session is over there"
            case ResetCode.NOT_YOURS:
                words = "the server does not take this client for the owner of the session"
            case ResetCode.GAP:
                words = "bytes were lost while both directions were stuck"
            case _:
                words = f"the server ended the tunnel meanwhile: {safe(said.words) or f'code {said.code}'}"
        self._give_up(words)

    def _give_up(self, words: str) -> NoReturn:
        raise trio.BrokenResourceError(words)

    async def _tell(self) -> None:
        """Log a line once the outage has lasted `_QUIET`, then one for each new cause. Repeat no cause."""
        await trio.sleep_until(self._started + _QUIET)
        while True:
            if self._cause not in self._said:
                again = (
                    "still reconnecting" if self._said else "connection lost, reconnecting (ssh: ~. ends the session)"
                )
                logger.warning("%s: %s", again, self._cause)
                self._said.add(self._cause)
            await trio.sleep(1)
