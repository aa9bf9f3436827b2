"""Mends the head of an answer that h11 cannot read because of a few lines, by removing those lines.

It is loaded only after h11 has failed. A front end or a proxy may add a line that is not a header field: one with a
blank in the name (RFC 9112, section 5.1), or without a colon. For a client it is better to ignore the line than the
whole answer. Nothing is ever read from such a line. It is removed together with the lines that continue it. So a
malformed line may hide a field that we trust (Proxy-Status, Upgrade), but can never add or change one.
"""

from __future__ import annotations

import re

# How many malformed lines a head may have. With more, it is probably not an answer to our request.
MAX_MALFORMED = 4
# How many heads of one connection may be mended: those of an interim and the final answer, and one of them again.
MAX_MENDED = 3

# These patterns accept no more than h11 does, since h11 must be able to read the mended head.
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_CONTINUED = re.compile(rb"[ \t][\t\x20-\x7e\x80-\xff]*")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FRAMING = (b"content-length", b"transfer-encoding")


class MalformedHead(Exception):
    """The head cannot be mended. `str(error)` is the end of a sentence about the answer. It quotes no part of it."""


def mend(data: bytes, *, tunnel: bool) -> bytes | None:
    """Remove the malformed lines of the head at the beginning of `data`. Return None if no whole, valid head is there.

    `tunnel`: this is an answer to CONNECT, so a 2xx opens a tunnel, and a 101 is not valid. An answer that opens a
    tunnel has no body, so fields about a body are removed too (RFC 9110, section 9.3.6; RFC 9112, section 6.3). Raises
    MalformedHead if too many lines are malformed, or if there is no line to remove: then h11 must have failed for
    another reason.
    """
    blank = _BLANK_LINE.search(data)
    if blank is None:
        return None
    # A line ends in LF or in CR LF, as in h11.
    lines = [line.removesuffix(b"\r") for line in data[: blank.start()].split(b"\n")]
    status = _STATUS_LINE.fullmatch(lines[0])
    if status is None or (tunnel and status[1] == b"101"):
        return None
    opens = status[1] == b"101" or (tunnel and status[1].startswith(b"2"))
    kept, malformed, framing = [lines[0]], [], 0
    for number, group in _grouped(lines[1:]):
        field = _FIELD.fullmatch(group[0])
        if field is None or not all(map(_CONTINUED.fullmatch, group[1:])):
            malformed.append(number)
        elif opens and field[1].lower() in _FRAMING:
            framing += 1
        else:
            kept += group
    if len(malformed) > MAX_MALFORMED:
        raise MalformedHead(
            f"{len(malformed)} lines of its head are no header fields, the first of them line {malformed[0]}"
        )
    if not malformed and not framing:
        raise MalformedHead("its Content-Length or Transfer-Encoding makes no sense")
    return b"\r\n".join([*kept, b"", b""]) + data[blank.end() :]


def _grouped(lines: list[bytes]) -> list[tuple[int, list[bytes]]]:
    """Group each line with the lines that continue it, and add its number. The status line has number 1."""
    groups: list[tuple[int, list[bytes]]] = []
    for number, line in enumerate(lines, 2):
        if groups and line[:1] in (b" ", b"\t"):
            groups[-1][1].append(line)
        else:
            groups.append((number, [line]))
    return groups
