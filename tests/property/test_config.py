"""Whatever is written into the configuration file, the answer is a configuration or a mistake that is told."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from http2tcp.command.toml_file import Key, parse_config
from http2tcp.errors import ConfigError
from http2tcp.server.rules import parse_rule
from http2tcp.units import parse_count, parse_duration

KEYS = {
    "allow": Key(parse_rule, many=True),
    "path": Key(str),
    "connect": Key(str, "flag"),
    "grace": Key(parse_duration, "number"),
    "max_tunnels": Key(parse_count, "number"),
    "token_file": Key(str, "file"),
}
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.just("a:1"), st.dates()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "sha256", "a"]), inner),
    max_leaves=6,
)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml(item)}' for key, item in value.items())}}}"
    return str(value)


@given(st.dictionaries(st.sampled_from([*KEYS, "token", "other"]), VALUES))
def test_whatever_a_key_holds_there_is_a_configuration_or_a_mistake(document: dict[str, Any]) -> None:
    try:
        parse_config("\n".join(f"{key} = {toml(value)}" for key, value in document.items()), KEYS, "x.toml")
    except ConfigError:
        pass


@given(st.text())
def test_whatever_the_text_is_there_is_a_configuration_or_a_mistake(text: str) -> None:
    try:
        parse_config(text, KEYS, "x.toml")
    except ConfigError:
        pass
