"""The head of an answer that h11 cannot read for a line or two, without those lines. Loaded where h11 has failed.

A front end or a proxy may add a line that is no header field: a name with a blank in it, or no colon. RFC 9112,
section 5.1 has a proxy remove a blank before the colon; a client that ignores the line loses less than one that
ignores the answer. Nothing is ever read out of such a line: it is left out with all the lines that continue it, so that
it can take a field away from what we trust (Proxy-Status, Upgrade), but never give or change one.
"""

from __future__ import annotations

import re

# Each of them is somebody's mistake. More are no answer to a request of ours.
MAX_MALFORMED = 4
# Heads on one connection: an interim answer's, the final one's, and a second look at one of them.
MAX_MENDED = 3

# What h11 takes, or less: what is left has to be read by it.
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_CONTINUED = re.compile(rb"[ \t][\t\x20-\x7e\x80-\xff]*")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_FRAMING = (b"content-length", b"transfer-encoding")


class MalformedHead(Exception):
    """It cannot be mended. `str(error)` says why, to follow on who sent it, and quotes nothing."""


def mend(data: bytes, *, tunnel: bool) -> bytes | None:
    """`data`, which begins with a head, without the lines that are no fields; None where it is no such head.

    `tunnel`: a 2xx opens a tunnel, as a 101 does. What such an answer says about its body is left out as well, since it
    has none (RFC 9110, section 9.3.6; RFC 9112, section 6.3). Raises MalformedHead where too much is wrong, or
    something else is.
    """
    blank = _BLANK_LINE.search(data)
    if blank is None:
        return None
    # As h11 takes lines apart: a CR is a line end's where it stands before an LF.
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
    """Each line with those that continue it, and its number; the status line is the first."""
    groups: list[tuple[int, list[bytes]]] = []
    for number, line in enumerate(lines, 2):
        if groups and line[:1] in (b" ", b"\t"):
            groups[-1][1].append(line)
        else:
            groups.append((number, [line]))
    return groups
