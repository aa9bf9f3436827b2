"""Shows a check: line by line for a person while it runs, or as one JSON document for a program at its end."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from http2tcp.client.check.hops import Hop, Report, State, Verdict
from http2tcp.errors import StdioFailed, os_reason

#: The version of the JSON document. Increase it when a key is renamed or removed; a new key may be added at any time.
JSON_VERSION = 1

_MARKS = {State.OK: "✓", State.NOTE: "!", State.FAILED: "✗"}
_PLAIN_MARKS = {State.OK: "ok", State.NOTE: "! ", State.FAILED: "no"}
# Terminal codes for styles and colours: ECMA-48, section 8.3.117 (SGR).
_BOLD, _DIM, _RED, _GREEN, _YELLOW = "1", "2", "31", "32", "33"
_COLOURS = {State.OK: _GREEN, State.NOTE: _YELLOW, State.FAILED: _RED}
_CLEAR_LINE = "\r\033[2K"

_LABEL = 17
_MAX_WIDTH = 100


class TextReport:
    """Shows a check to a person, line by line."""

    def __init__(self, out: TextIO, *, quiet: bool = False, live: bool = True) -> None:
        """`quiet`: show only a failure. Without `live`, do not show the hop that the check is waiting for."""
        self._out = out
        self._quiet = quiet
        self._live = live
        self._terminal = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        # https://no-color.org/
        self._coloured = self._terminal and not os.environ.get("NO_COLOR")
        # Fold lines only on a terminal. In a file or a pipe, one line stays one line, for grep.
        self._width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) if self._terminal else None
        self._marks = _MARKS if _can_show(out, "".join(_MARKS.values())) else _PLAIN_MARKS
        self._indent = " " * (2 + len(self._marks[State.OK]) + 1 + _LABEL)
        self._pending = False

    def begin(self, endpoint: str, destinations: Sequence[str]) -> None:
        """Write the heading, before the first hop."""
        if not self._quiet:
            where = ", ".join(destinations)
            self._wrapped(f"The way to {where or 'the default destination'} by {endpoint}")
            self._line("")

    def waiting(self, label: str, text: str) -> None:
        """Show which hop comes next, on a terminal only. The hop's own line replaces this one."""
        if self._terminal and self._live and not self._quiet:
            line = f"{self._indent[:-_LABEL]}{label:<{_LABEL}}{text} ..."[: (self._width or _MAX_WIDTH) - 1]
            self._write(_CLEAR_LINE + self._painted(line, _DIM))
            self._pending = True

    def hop(self, hop: Hop) -> None:
        """Write the hop's line, and its further lines below it."""
        if self._quiet:
            return
        mark = self._painted(self._marks[hop.state], _COLOURS[hop.state])
        time = "" if hop.seconds is None else _milliseconds(hop.seconds)
        first, *rest = self._folded(hop.text, len(self._indent), len(time) + 2)
        gap = 2 if self._width is None else max(2, self._width - len(self._indent) - len(first) - len(time))
        shown_time = " " * gap + self._painted(time, _DIM) if time else ""
        self._line(f"  {mark} {hop.label:<{_LABEL}}{first}{shown_time}")
        for text in rest:
            self._line(self._indent + text)
        for more in hop.more:
            for text in self._folded(more, len(self._indent), 0):
                self._line(self._indent + self._painted(text, _DIM))

    def end(self, verdict: Verdict) -> None:
        """Write the advised configuration first, since it may be long: then the verdict stays on the screen."""
        works = verdict.exit_status == 0
        if self._quiet and works:
            return
        found = verdict.advice
        if found is not None and found.lines:
            self._line("")
            for line in found.lines:
                # Never fold a line of configuration: the user will copy it.
                self._line(f"    {line}".rstrip())
        self._line("")
        self._wrapped(verdict.sentence, _BOLD, _GREEN if works else _RED)
        if found is not None:
            self._line("")
            self._wrapped(found.note)

    def interrupted(self) -> None:
        """End the unfinished line, if there is one, so that the cursor is at the beginning of a line."""
        if self._pending:
            self._write("\n")

    def _wrapped(self, text: str, *colours: str) -> None:
        for line in self._folded(text, 0, 0):
            self._line(self._painted(line, *colours))

    def _folded(self, text: str, indent: int, reserve: int) -> list[str]:
        if self._width is None:
            return [text]
        return textwrap.wrap(
            text, max(20, self._width - indent - reserve), break_long_words=False, break_on_hyphens=False
        ) or [""]

    def _painted(self, text: str, *colours: str) -> str:
        return f"\033[{';'.join(colours)}m{text}\033[0m" if self._coloured and colours else text

    def _line(self, text: str) -> None:
        self._write((_CLEAR_LINE if self._pending else "") + text + "\n")
        self._pending = False

    def _write(self, text: str) -> None:
        try:
            encoding = self._out.encoding or "utf-8"
            self._out.write(text.encode(encoding, "replace").decode(encoding))
            self._out.flush()
        except OSError:
            pass  # stdout is closed or broken; the exit status still has the result


class JSONReport:
    """Writes a check as one JSON document. docs/check.md describes its keys."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._document: dict[str, Any] = {}
        self._hops: list[dict[str, Any]] = []

    def begin(self, endpoint: str, destinations: Sequence[str]) -> None:
        """Start the document, before the first hop."""
        self._document = {"version": JSON_VERSION, "endpoint": endpoint, "destinations": list(destinations)}

    def waiting(self, label: str, text: str) -> None:
        """Write nothing: a program waits for the whole document."""

    def hop(self, hop: Hop) -> None:
        """Add the hop to the document."""
        ms = None if hop.seconds is None else round(hop.seconds * 1000, 3)
        self._hops.append({"hop": hop.key, "state": hop.state.value, "ms": ms, "text": hop.text, **hop.facts})

    def end(self, verdict: Verdict) -> None:
        """Write the document. Raises StdioFailed if all works but the document cannot be written."""
        found = verdict.advice
        advice = found and {"front_end": found.front_end, "note": found.note, "lines": list(found.lines)}
        self._document |= {
            "works": verdict.exit_status == 0,
            "exit_status": verdict.exit_status,
            "failed_hop": verdict.failed_hop,
            "transport": verdict.transport,
            "sentence": verdict.sentence,
            "hops": self._hops,
            "advice": advice,
        }
        try:
            self._out.write(json.dumps(self._document, indent=2) + "\n")
            self._out.flush()
        except BrokenPipeError:
            pass  # stdout is closed or broken; the exit status still has the result
        except OSError as error:
            # The status must not be 0 if the program got half a document.
            if verdict.exit_status == 0:
                raise StdioFailed(f"cannot write to stdout: {os_reason(error)}") from None

    def interrupted(self) -> None:
        """Write nothing: half a document is of no use."""


def _milliseconds(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:.1f} ms" if ms < 10 else f"{ms:,.0f} ms"


def _can_show(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


_: list[type[Report]] = [TextReport, JSONReport]
