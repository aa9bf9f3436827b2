"""Hands an answer to h11 head by head, so that h11 sees no head that costs it more than its length. Pure.

h11's pattern for a header field tries every way to divide blanks that end in a byte which it refuses, and folded lines
are joined by blanks: 16 KiB of them take a second. Nobody means so many; the server's own reader refuses them as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# In a row, line ends included. A field's value is seldom aligned, and never so far.
MAX_BLANKS = 64

_TOO_MANY = b" " * (MAX_BLANKS + 1)
_BLANKS = bytes.maketrans(b"\t\r\n", b"   ")
_BLANK_LINE = re.compile(rb"\n\r?\n")
# How far back the beginning of a blank line may be, where its end has just come.
_BEHIND = 2
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})")


class TooManyBlanks(Exception):
    """A head with a row of blanks that no sender means."""


class HeadFeed:
    """Takes an answer in pieces and gives `feed` each head once it is whole, then all that follows the last one.

    What follows 101, or any 2xx where it `opens` a tunnel, is the tunnel's. Of another answer's body the part before
    too many blanks is given, since fields may stand behind it (RFC 9112, section 7.1.2); then `cut` is true.
    """

    def __init__(self, feed: Callable[[bytes], None], *, opens: bool = False) -> None:
        self._feed = feed
        self._opens = opens
        self._held = bytearray()
        self._looked = 0
        self._last_head_given = False
        self._scans = False
        self._blanks = 0
        #: The rest of the body is left out.
        self.cut = False

    def receive(self, data: bytes) -> None:
        """Take bytes; b"" is their end. Raises TooManyBlanks."""
        if not data:
            self._give_rest()
            self._feed(b"")
            return
        if self._last_head_given:
            self._give(data)
            return
        self._held += data
        while not self._last_head_given:
            blank = _BLANK_LINE.search(self._held, self._looked)
            if blank is None:
                self._looked = max(0, len(self._held) - _BEHIND)
                return
            head = bytes(self._held[: blank.end()])
            del self._held[: blank.end()]
            self._looked = 0
            self._give_head(head)
        self._give_rest()

    def give_all(self) -> None:
        """Give what there is of a head without an end. Raises TooManyBlanks."""
        if not self._last_head_given:
            self._give_rest()

    def _give_head(self, head: bytes) -> None:
        if head.translate(_BLANKS).find(_TOO_MANY) >= 0:
            raise TooManyBlanks
        status = _STATUS.match(head)
        if status is None or not status[1].startswith(b"1") or status[1] == b"101":
            self._last_head_given = True
            tunnel = status is None or status[1] == b"101" or (self._opens and status[1].startswith(b"2"))
            self._scans = not tunnel
        self._feed(head)

    def _give_rest(self) -> None:
        rest = bytes(self._held)
        self._held.clear()
        if not rest:
            return
        if self._last_head_given:
            self._give(rest)
        elif rest.translate(_BLANKS).find(_TOO_MANY) >= 0:
            raise TooManyBlanks
        else:
            self._feed(rest)

    def _give(self, data: bytes) -> None:
        if self.cut:
            return
        if self._scans:
            blanks = data.translate(_BLANKS)
            if (b" " * self._blanks + blanks).find(_TOO_MANY) >= 0:
                self.cut = True
                return
            stripped = blanks.rstrip(b" ")
            self._blanks = (0 if stripped else self._blanks) + len(blanks) - len(stripped)
        self._feed(data)
