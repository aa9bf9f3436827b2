"""Every promise of docs/security.md names a test, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text()
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
DEFENDED = [section for section in SECTIONS if not section.startswith("What is not defended")]
# An item of a list, or a paragraph between lists.
PROMISES = [
    promise
    for section in DEFENDED
    for promise in re.split(r"^- |\n\n(?!- )", section.partition("\n\n")[2], flags=re.MULTILINE)
    if promise.strip()
]


def test_the_page_is_read() -> None:
    assert len(DEFENDED) == len(SECTIONS) - 1
    assert len(PROMISES) > 30


@pytest.mark.parametrize("promise", PROMISES, ids=[promise.partition("\n")[0][:60] for promise in PROMISES])
def test_a_promise_names_a_test_that_holds_it(promise: str) -> None:
    named = NAMED.findall(promise)
    assert named
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        assert name in [function.name for function in functions], f"no {name} in tests/{file}"
