"""Hands an answer to h11 one head at a time, and refuses heads that would take h11 quadratic time. Pure.

When a row of blanks ends in a byte that a header field may not contain, h11's pattern tries every way to divide the
row, so 16 KiB of blanks take a second. Folded lines count too, since h11 joins them with blanks. No honest sender
writes so many blanks in a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# How many blanks may follow each other, line ends included. Some senders align values, but never this far.
MAX_BLANKS = 64

_TOO_MANY = b" " * (MAX_BLANKS + 1)
_BLANKS = bytes.maketrans(b"\t\r\n", b"   ")
_BLANK_LINE = re.compile(rb"\n\r?\n")
# How many bytes of a `_BLANK_LINE` may have arrived while its last byte is still missing.
_BEHIND = 2
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})")


class TooManyBlanks(Exception):
    """A head has more blanks in a row than any honest sender writes."""


class HeadFeed:
    """Takes an answer in pieces, and hands `feed` each head once it is whole, then everything after the last head.

    All bytes after a 101 belong to the tunnel. With `opens`, a 2xx opens a tunnel too. Any other answer has a body,
    which may end with header fields (RFC 9112, section 7.1.2). So a body with too many blanks in a row is cut off
    before them, and then `cut` is true.
    """

    def __init__(self, feed: Callable[[bytes], None], *, opens: bool = False) -> None:
        self._feed = feed
        self._opens = opens
        self._held = bytearray()
        self._looked = 0
        self._last_head_given = False
        self._scans = False
        self._blanks = 0
        #: Whether the rest of the body was cut off.
        self.cut = False

    def receive(self, data: bytes) -> None:
        """Take bytes; b"" means that the answer ends here. Raises TooManyBlanks."""
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
        """Give `feed` the part of a head that has arrived so far. Raises TooManyBlanks."""
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
