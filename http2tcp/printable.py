"""A peer's text, made fit for a terminal or a log. Pure."""

from __future__ import annotations

MAX_QUOTE = 200


def printable(text: str) -> str:
    """Return the text with a `?` in place of each unprintable character, such as those of a terminal's escape codes."""
    return "".join(character if character.isprintable() else "?" for character in text)


def safe(text: str) -> str:
    """Like `printable`, but also cut the text to MAX_QUOTE characters: a peer may send any amount."""
    words = printable(text)
    return words if len(words) <= MAX_QUOTE else words[:MAX_QUOTE] + "…"
