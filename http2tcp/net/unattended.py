"""The stream of a tunnel that comes back, for a program: nobody attends to it but who sends and who receives.

In the command, the relay reads all the time and a task of its own attends. A program may send for long and never
receive, and the acknowledgements that make room come with what it does not receive. So whoever waits for room reads
meanwhile, and whoever finds the connection lost makes another one.
"""

from __future__ import annotations

import trio

from http2tcp.net.resumable import ResumableStream
from http2tcp.protocol.resume import LAPSE_AFTER

#: What such a program promises to say something within, in seconds: nobody sends keepalives for it, and it may be
#: silent as long as it likes. A day is as good as never, and an interval has to be named.
SILENCE = 86400.0
# How many bytes are read ahead of a program that sends and does not receive.
_AHEAD = 1024 * 1024


class UnattendedStream(ResumableStream):
    """A resumable stream without `attend`."""

    _reading: trio.Lock | None = None
    # How often something was read.
    _reads = 0

    async def _receive(self) -> None:
        """As in ResumableStream; of those who come together, one reads, and what it reads is everybody's."""
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
        """See `ResumableStream.wait_for_room`. Reads meanwhile, up to a limit."""
        machine = self.machine
        await self._transmit()
        while self._failure is None and machine.broken is None and (self.attachment is None or machine.room <= 0):
            attachment = self.attachment
            if attachment is None or len(self._ahead) < _AHEAD:
                await self._receive()
            else:
                # The acknowledgement may stand behind what nobody takes.
                with trio.move_on_after(LAPSE_AFTER) as waited:
                    await self._room.wait()
                if waited.cancelled_caught and len(self._ahead) >= _AHEAD:
                    # Nobody reads, so nobody has noticed if the connection is gone: what is kept is needed then.
                    await self._write(attachment, self._keepalive_due)
                    if self.attachment is not None:
                        machine.lapse()
            await self._transmit()
        await super().wait_for_room()
