"""docs/security.md: every promise has a row in the table of tests, and every test in the table exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
TABLE = "Which test holds each promise"
UNDEFENDED = "What is not defended"

SECTIONS = {
    section.partition("\n")[0]: section.partition("\n\n")[2]
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
}
# An item of a list, or a paragraph.
PROMISES = [
    promise
    for title, section in SECTIONS.items()
    if title not in (TABLE, UNDEFENDED)
    for promise in re.split(r"^- |\n\n(?!- )", section, flags=re.MULTILINE)
    if promise.strip()
]
ROWS = re.findall(r"^\| (.+?) \| (`.+`) \|$", SECTIONS[TABLE], re.MULTILINE)


def title(promise: str) -> str:
    """The words in bold that a promise begins with."""
    found = re.match(r"\*\*(.+?)\.\*\*", promise)
    assert found is not None, f"a promise without a name: {promise[:60]}"
    return found[1]


def test_the_page_is_read() -> None:
    assert UNDEFENDED in SECTIONS
    assert len(PROMISES) > 40


def test_every_promise_has_one_row_in_the_table_and_the_table_has_no_other() -> None:
    assert [title(promise) for promise in PROMISES] == [name for name, _ in ROWS]


def test_no_test_is_named_in_the_prose() -> None:
    assert [name for name, section in SECTIONS.items() if name != TABLE and NAMED.search(section)] == []


@pytest.mark.parametrize(("promise", "tests"), ROWS, ids=[name for name, _ in ROWS])
def test_every_test_in_the_table_exists(promise: str, tests: str) -> None:
    named = NAMED.findall(tests)
    assert named
    assert len(named) == len(tests.split("<br>"))
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert name in [function.name for function in functions], f"{promise}: no {name} in tests/{file}"
