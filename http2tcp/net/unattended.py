"""A resumable stream for a program that runs no `attend`: the tasks that send and receive do its work.

In the http2tcp command, the relay reads all the time and a separate task runs `attend`. Another program may send for
long and never receive. Then the acknowledgements that make room to send are never read either. So a task that waits for
room reads meanwhile, and a task that finds the connection lost makes another one.
"""

from __future__ import annotations

import trio

from http2tcp.net.resumable import ResumableStream
from http2tcp.protocol.resume import LAPSE_AFTER

#: The keepalive interval, in seconds, that such a program announces. No task sends keepalives for it, so it may be
#: silent for any length of time; but some interval must be announced, and a day is as good as none.
SILENCE = 86400.0
# How many bytes to read ahead for a program that sends and does not receive.
_AHEAD = 1024 * 1024


class UnattendedStream(ResumableStream):
    """A resumable stream without `attend`."""

    _reading: trio.Lock | None = None
    # How many reads have ended.
    _reads = 0

    async def _receive(self) -> None:
        """Like `ResumableStream._receive`, but if several tasks call it at the same time, only one reads, for all."""
        if self._reading is None:
            self._reading = trio.Lock()
        seen = self._reads
        async with self._reading:
            if seen == self._reads:
                try:
                    await super()._receive()
                finally:
                    self._reads += 1

    async def wait_for_room(self) -> None:
        """See `ResumableStream.wait_for_room`. While it waits, it also reads ahead, up to a limit."""
        machine = self.machine
        await self._transmit()
        while self._failure is None and machine.broken is None and (self.attachment is None or machine.room <= 0):
            attachment = self.attachment
            if attachment is None or len(self._ahead) < _AHEAD:
                await self._receive()
            else:
                # The acknowledgement may come behind bytes that we cannot read, since the program does not receive.
                with trio.move_on_after(LAPSE_AFTER) as waited:
                    await self._room.wait()
                if waited.cancelled_caught and len(self._ahead) >= _AHEAD:
                    # Nobody reads, so nobody has noticed if the connection is gone: what is kept is needed then.
                    await self._write(attachment, self._keepalive_due)
                    if self.attachment is not None:
                        machine.lapse()
            await self._transmit()
        await super().wait_for_room()
