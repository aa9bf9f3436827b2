"""docs/troubleshooting.md quotes messages that the program has, and has an entry for each way to fail."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import http2tcp
from http2tcp import errors

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
# ssh's words are compared with the real ssh, by tests/e2e; the last section quotes nobody.
NOT_OURS = ("What ssh says", "It works, but …")


def quoted(section: str) -> list[str]:
    """The messages in the first column of a section's table."""
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    return [words for cell in cells[1:] for words in re.findall(r"`([^`]+)`", cell)]


QUOTED = [words for title, section in SECTIONS.items() if title not in NOT_OURS for words in quoted(section)]


def texts(source: str) -> set[str]:
    """Every text of a module that is no docstring; of an f-string, what stands between its values."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return {node.value for node in constants if isinstance(node.value, str)}


PROGRAM = "\n".join(text for file in Path(http2tcp.__file__).parent.rglob("*.py") for text in texts(file.read_text()))


def fragments(words: str) -> list[str]:
    """What stands between the parts that differ from case to case."""
    parts = (part.strip(" :;,?") for part in words.split("…"))
    return [part for part in parts if part]


def test_the_page_is_read() -> None:
    assert set(NOT_OURS) < set(SECTIONS)
    assert len(QUOTED) > 60
    assert min(len(max(fragments(words), key=len)) for words in QUOTED) > 7


@pytest.mark.parametrize("words", QUOTED)
def test_a_quoted_message_is_one_that_the_program_has(words: str) -> None:
    assert [part for part in fragments(words) if part not in PROGRAM] == []


def test_a_message_that_the_program_has_not_would_be_found() -> None:
    assert "the certificate is not for" in PROGRAM
    assert "the certificate is not against" not in PROGRAM
    assert texts('"""a docstring"""\nx = f"one {y} two"; "a statement"') == {"one ", " two"}


def test_every_exit_code_of_a_client_has_its_place() -> None:
    def below(kind: type[errors.Http2tcpError]) -> set[int]:
        return {kind.exit_code}.union(*map(below, kind.__subclasses__()))

    codes = below(errors.TunnelError) | {errors.ListenError.exit_code, errors.SettingsError.exit_code}
    headings = {int(code) for title in SECTIONS for code in re.findall(r"\d+", title)}
    # stdio's own failures say in words all there is to say; 1 is a bug, and stands below the log.
    assert headings == codes - {errors.StdioFailed.exit_code, errors.TunnelError.exit_code}
