"""What a program finds in `http2tcp` itself, and what it needs no other module for."""

from __future__ import annotations

from pathlib import Path

import pytest

import http2tcp
from http2tcp import errors

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
# What ends the command line's own relay; a program has the stream, and trio's errors from it.
OF_THE_COMMAND = {errors.TunnelCut, errors.InputSilent, errors.StdioFailed}


@pytest.mark.parametrize("name", http2tcp.__all__)
def test_each_name_is_there_and_has_its_place_on_the_page(name: str) -> None:
    assert getattr(http2tcp, name) is not None
    assert name in PAGE or name == "__version__"


# A program's settings are made of these; what raises or is parsed is held by the tests below.
@pytest.mark.parametrize(
    "name", ["ClientSettings", "Limits", "Rule", "ServerSettings", "ServerTLS", "TLSSettings", "Token"]
)
def test_what_settings_are_made_of_is_public(name: str) -> None:
    assert name in http2tcp.__all__


def below(kind: type[errors.TunnelError]) -> set[type[errors.TunnelError]]:
    return {kind}.union(*map(below, kind.__subclasses__()))


@pytest.mark.parametrize("kind", sorted(below(errors.TunnelError) - {errors.TunnelError} - OF_THE_COMMAND, key=str))
def test_each_hop_s_error_can_be_caught_by_its_name(kind: type[errors.TunnelError]) -> None:
    assert getattr(http2tcp, kind.__name__) is kind
    assert f"| `{kind.__name__}` | {kind.hop} | {kind.exit_code} |" in PAGE


def test_whatever_a_program_gets_from_here_can_be_caught_as_one() -> None:
    public = [getattr(http2tcp, name) for name in http2tcp.__all__]
    raised = [each for each in public if isinstance(each, type) and issubclass(each, Exception)]
    assert http2tcp.HalfCloseUnsupported in raised
    assert all(issubclass(each, http2tcp.Http2tcpError) for each in raised)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        http2tcp.nonsense  # noqa: B018
