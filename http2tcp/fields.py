"""The characters that RFC 9110 allows in header fields. Pure."""

from __future__ import annotations

from http2tcp.errors import SettingsError

# RFC 9110, section 5.6.2.
TOKEN_CHARACTERS = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def check_token(token: str) -> None:
    """Raise SettingsError if no header field can carry the token unchanged."""
    if not token.strip():
        raise SettingsError("the token is empty: a secret was probably not set")
    if token != token.strip() or not token.isprintable():
        raise SettingsError("the token holds a control character, or begins or ends with a blank")


def check_field_name(text: str) -> None:
    """Raise SettingsError if `text` is not a valid name of a header field."""
    if not text or not TOKEN_CHARACTERS.issuperset(text):
        raise SettingsError(f"{text!a}: expected a field's name, such as X-Real-IP")
