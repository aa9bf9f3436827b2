"""The rules of the package's layout that import-linter cannot hold: what docstrings claim, who uses trio, loggers."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "http2tcp"

#: Besides all of `net`: the stories, and what keeps their time.
MAY_IMPORT_TRIO = {
    "http2tcp.server.server",
    "http2tcp.server.state",
    "http2tcp.server.connection",
    "http2tcp.server.session",
    "http2tcp.server.attempt",
    "http2tcp.server.resumption",
    "http2tcp.server.admin",
    "http2tcp.server.service",
    "http2tcp.server.systemd",
    "http2tcp.client.connector",
    "http2tcp.client.reconnect",
    "http2tcp.client.proxy_command",
    "http2tcp.client.forwarder",
    "http2tcp.client.through_proxy",
    "http2tcp.client.check.walk",
    "http2tcp.command.process",
    "http2tcp.command.awake_clock",
    "http2tcp.command.policy_question",
    "http2tcp.command.demo",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_that_says_it_is_pure_stands_in_the_contract_about_purity() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["name"] == "what is pure does no I/O"]
    assert {"trio", "socket", "ssl", "click", "logging"} <= set(contract["forbidden_modules"])
    held = set(contract["source_modules"])
    assert held <= set(MODULES)
    claims = {name for name, module in MODULES.items() if re.search(r"\bpure\b", docstring(module), re.IGNORECASE)}
    assert claims, "no module says so at all"
    assert {name for name in claims if not held & {name, *parents(name)}} == set()


def parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def docstring(module: ast.Module) -> str:
    return ast.get_docstring(module) or ""


def test_only_the_network_and_the_stories_import_trio() -> None:
    importing = {
        name for name, module in MODULES.items() if "trio" in {each.partition(".")[0] for each in imports(module)}
    }
    assert {name for name in importing if not name.startswith("http2tcp.net.")} - MAY_IMPORT_TRIO == set()
    assert MAY_IMPORT_TRIO - set(MODULES) == set()


def imports(module: ast.Module) -> Iterator[str]:
    """The names of all modules that are imported, in functions and for types alone too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield node.module or ""


@pytest.mark.parametrize("folder", sorted({path.parent for path in PACKAGE.rglob("*.py")}), ids=name_of)
def test_every_folder_says_what_lives_in_it_what_it_may_import_and_where_to_start(folder: Path) -> None:
    words = docstring(MODULES[name_of(folder / "__init__.py")])
    assert words.count(".") >= 3
    if folder != PACKAGE:
        assert "import" in words
        assert "Start with" in words


def test_every_module_has_a_docstring() -> None:
    assert [name for name, module in MODULES.items() if not docstring(module)] == []


def test_loggers_keep_their_names_wherever_their_module_lives() -> None:
    """docs/log.md promises them: a name made of __name__ would change with every move."""
    loggers: dict[str, set[str]] = {}
    for name, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("logging.getLogger", "getLogger"):
                argument = node.args[0] if node.args else None
                if argument is None:
                    continue  # the root
                assert isinstance(argument, ast.Constant), f"{name}: {ast.unparse(node)} is no literal"
                loggers.setdefault(str(argument.value), set()).add(name)
    assert all(re.fullmatch(r"http2tcp(\.[a-z]+)?|trio.*", logger) for logger in loggers), sorted(loggers)
    assert "http2tcp.server.audit" in loggers["http2tcp.audit"]
