"""What is made from the command's options is up to date, and is what man takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from http2tcp.errors import TunnelError
from http2tcp.version import __version__
from tests.generate import ROOT, files
from tests.generate.described import describe
from tests.generate.manual import below
from tests.support.processes import environment, program

PAGE = ROOT / "docs" / "man" / "http2tcp.1"
FILES = files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_file_is_what_the_options_make_it(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == FILES[path], "`python -m tests.generate` makes it anew"


def run(*command: str) -> str:
    done = subprocess.run(
        [program(command[0]), *command[1:]],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment(LC_ALL="C.UTF-8"),
    )
    assert done.returncode in (0, 2, 3), done.stderr  # mandoc's way to say that it found something
    return done.stderr + done.stdout if command[0] != "man" else done.stdout


@pytest.fixture(scope="module", params=["groff", "mandoc"])
def shown(request: pytest.FixtureRequest) -> str:
    """The page as a person reads it."""
    if request.param == "groff":
        # Man's own way to call it. The escape sequences of bold and italics are left out.
        text = run("groff", "-man", "-Tutf8", "-P-c", "-ww", "-rLL=100n", str(PAGE))
    else:
        text = run("mandoc", "-T", "utf8", "-O", "width=100", str(PAGE))
    return re.sub(r".\x08", "", text)


def words(text: str) -> str:
    return " ".join(text.split())


def test_nothing_is_wrong_with_the_page_s_source() -> None:
    found = run("mandoc", "-T", "lint", "-W", "warning", str(PAGE)).splitlines()
    # A version that is not released has no date.
    assert [line for line in found if 'missing date, using "": TH' not in line] == []
    assert run("groff", "-man", "-Tutf8", "-ww", "-z", str(PAGE)) == ""


def test_every_option_is_in_the_manual_with_all_that_help_says(shown: str) -> None:
    page = words(shown)
    for option in describe():
        heading = ", ".join(option.names) + (f" {option.value}" if option.value else "")
        assert f" {heading} {option.help} " in page


def test_the_manual_has_the_sections_of_a_manual(shown: str) -> None:
    sections = re.findall(r"^[A-Z][A-Z ]+$", shown, re.MULTILINE)
    assert sections == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "ENVIRONMENT", "EXIT STATUS", "FILES", "EXAMPLES", "SEE ALSO")
    ]
    assert f"http2tcp {__version__}" in shown


def test_every_exit_status_is_in_the_manual(shown: str) -> None:
    status = words(shown.split("EXIT STATUS\n")[1].split("\nFILES\n")[0])
    documented = set(map(int, re.findall(r"^\| (\d+)", (ROOT / "docs" / "exit-codes.md").read_text(), re.MULTILINE)))
    codes = {kind.exit_code for kind in below(TunnelError)} | {0, 1, 2, 73, 130}
    assert {code for code in documented if code < 200} == codes
    for code in codes:
        assert re.search(rf"(^| ){code}[ ,]", status), code


def test_what_is_typed_can_be_copied_from_the_manual(shown: str) -> None:
    # Neither hyphens nor tildes or quotes that a terminal shows but no shell takes, and no line that is torn apart.
    assert "http2tcp -c -e https://example.com/~http2tcp/ -d db:5432 -l 5432\n" in shown
    assert not set("‐‑−–’‘˜ˆ") & set(shown)


# --- docs/options.md ----------------------------------------------------------------------------


def test_the_reference_has_every_option_with_its_variable_in_the_order_of_the_help() -> None:
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|", (ROOT / "docs" / "options.md").read_text(), re.MULTILINE)
    expected = []
    for option in describe():
        *names, last = option.names
        spelt = [f"`{name}`" for name in names] + [f"`{last} {option.value}`" if option.value else f"`{last}`"]
        expected.append((", ".join(spelt), f"`{option.variable}`" if option.variable else "none"))
    assert [(name.replace("\\|", "|"), variable) for name, variable in rows] == expected
