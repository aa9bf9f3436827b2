"""A peer's text for a terminal or a log. Pure."""

from __future__ import annotations

MAX_QUOTE = 200


def safe(text: str) -> str:
    """A peer's text for a terminal or a log: printable characters only, and not too many."""
    printable = "".join(character if character.isprintable() else "?" for character in text)
    return printable if len(printable) <= MAX_QUOTE else printable[:MAX_QUOTE] + "…"
