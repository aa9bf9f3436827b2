"""Getting a lost tunnel its next connection: when to try, by which way, what to say, when to give up.

Loaded where a connection was lost. Each attempt goes the way of the first one: the same proxy, pins and certificates;
the token is read anew from where it came from.
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

# Pauses before the attempts, in seconds, each longer or shorter by a quarter: what many clients lost together, they
# should not all ask for at the same moment. Google IAP's client ends at 20 s, Teleport's at 10 s.
_FIRST = 0.25
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_SPREAD = 0.25
# While the user waits for what was typed, pauses are no longer than this.
_IMPATIENT = 3.0
# Fresh input starts an attempt at once, but not sooner than this after the last one.
_AT_ONCE = 1.0
# An outage shorter than this is nobody's business.
_QUIET = 3.0
# How long a refused token is tried again: it may be in the middle of being renewed.
_TOKEN_PATIENCE = 60.0
# How long another node is asked for, which the front end may not find by the session's id.
_NODE_PATIENCE = 60.0
_NODE_TRIES = 10
# How long the server may take from the challenge to its HELLO.
_HELLO_TIMEOUT = 5.0

#: Opens a connection for the session of this id: the stream that the capsules travel on.
Open = Callable[[str], Awaitable[Stream]]


class Reconnector:
    """Brings one tunnel back, any number of times."""

    def __init__(self, stream: ResumableStream, open: Open) -> None:
        self._stream = stream
        self._open = open
        self._tried = 0
        self._started = self._last_end = -math.inf
        self._cause = ""
        # The causes that the user was told of in this outage.
        self._said: set[str] = set()
        self._elsewhere = 0

    async def revive(self) -> None:
        """Try until the tunnel is back. Raises BrokenResourceError where it cannot come back."""
        self._started, self._last_end = trio.current_time(), -math.inf
        self._tried = self._elsewhere = 0
        self._cause, self._said = self._stream.lost_words, set()
        logger.debug("connection lost: %s", self._cause)
        failure: trio.BrokenResourceError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            try:
                await self._try_until_back()
            except trio.BrokenResourceError as error:  # out of the nursery without a group around it
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
                # The file of the token cannot be read now: it may be in the middle of being replaced.
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
            # At once, but for a moment: the connection that a lid's closing cut is best not tried in the last
            # milliseconds before the machine sleeps.
            await trio.sleep(random.uniform(0, _FIRST))  # noqa: S311
            return
        pause = _PAUSES[min(self._tried, len(_PAUSES)) - 1] * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311
        if self._stream.has_unsent:
            pause = min(pause, _IMPATIENT)
        with trio.move_on_after(pause):
            await self._stream.wait_for_input()
            await trio.sleep_until(self._last_end + _AT_ONCE)

    def _judge(self, error: TunnelError) -> None:
        """Raises BrokenResourceError for what another attempt would not change."""
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
        """After a while, and for each new cause, one line. Causes that take turns are said once."""
        await trio.sleep_until(self._started + _QUIET)
        while True:
            if self._cause not in self._said:
                again = (
                    "still reconnecting" if self._said else "connection lost, reconnecting (ssh: ~. ends the session)"
                )
                logger.warning("%s: %s", again, self._cause)
                self._said.add(self._cause)
            await trio.sleep(1)
