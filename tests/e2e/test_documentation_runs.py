"""The tutorial and the how-tos, typed in as they stand by a new user: what they print is what the pages say."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import front_ends
from tests.support.documented import FILE, LEFT_RUNNING, NOT_RUN, Machine, blocks
from tests.support.documented_machine import behind, documented_machine
from tests.support.processes import environment

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS / "tutorial.md"
README = DOCS.parent / "README.md"
# They begin where the tutorial ends.
HOW_TOS = [*sorted((DOCS / "how-to").glob("*.md")), DOCS / "deploy/nginx.md"]
# In nginx's place.
FRONT_ENDS = {
    DOCS / f"deploy/{front.name.lower()}.md": front for front in front_ends.FRONT_ENDS if front.name != "nginx"
}
PAGES = [TUTORIAL, *HOW_TOS, *FRONT_ENDS]

# Files. Commands are ```console, so that they are typed in here.
NO_COMMANDS = {"apache", "caddy", "haproxy", "ini", "nginx", "text", "toml", "yaml"}

pytestmark = pytest.mark.timeout(300)


def type_in(machine: Machine, page: Path) -> None:
    for block in blocks(page):
        if block.not_run is None:
            machine.run(block)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine of a reader who has followed the tutorial."""
    with documented_machine(tmp_path_factory.mktemp("documented")) as machine:
        type_in(machine, TUTORIAL)
        yield machine


def test_who_follows_the_tutorial_logs_in(machine: Machine) -> None:
    assert machine.left_running[0].poll() is None, "the tutorial's server runs on"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("example.com", True),
        ("example.com www.example.com", True),
        ("www.example.com example.com", True),
        ("www.example.com  example.com  example.org", True),
        ("www.example.com", False),
        ("example.community", False),
        ("exampleXcom", False),
    ],
)
def test_the_tutorial_s_line_finds_the_site_whatever_other_names_it_has(
    names: str, found: bool, tmp_path: Path
) -> None:
    (script,) = re.findall(
        r"^\$ sudo (sed .*) /etc/nginx/sites-available/example\.com$", TUTORIAL.read_text(), re.MULTILINE
    )
    site = tmp_path / "site"
    site.write_text(f"server {{\n    # server_name example.com;\n    server_name {names};\n}}\n")
    subprocess.run([*shlex.split(script), str(site)], check=True, env=environment())
    added = site.read_text().splitlines().count("    include snippets/http2tcp.conf;")
    assert added == found
    assert not found or site.read_text().splitlines()[3] == "    include snippets/http2tcp.conf;"


@pytest.mark.parametrize("page", HOW_TOS, ids=[page.name for page in HOW_TOS])
def test_a_how_to_does_what_it_says(machine: Machine, page: Path) -> None:
    try:
        type_in(machine, page)
    finally:
        machine.end(kept=1)


@pytest.mark.parametrize("page", FRONT_ENDS, ids=[page.name for page in FRONT_ENDS])
def test_a_front_end_is_checked_as_its_page_says(machine: Machine, page: Path, tmp_path: Path) -> None:
    with behind(machine, FRONT_ENDS[page], tmp_path / "front-end") as there:
        type_in(there, page)


def test_who_follows_the_readme_logs_in(tmp_path: Path) -> None:
    _, location = re.findall(r"^```nginx\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    with documented_machine(tmp_path / "machine") as machine:
        # What the page leaves to the hand that writes it into the site.
        site = machine.root / "etc/nginx/sites-available/example.com"
        site.write_text(site.read_text().replace("    location / {", machine.here(location) + "    location / {"))
        type_in(machine, README)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_no_command_is_hidden_from_this_test(page: Path) -> None:
    text = page.read_text()
    languages = re.findall(r"^ *```(.+)$", text, re.MULTILINE)
    assert set(languages) <= {"console", *NO_COMMANDS}
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(languages), "a block without a language"
    comments = re.findall(r"<!--.*?-->", text, re.DOTALL)
    files = [comment for comment in comments if FILE.fullmatch(comment)]
    assert len(blocks(page)) == languages.count("console") + len(files)
    for comment in comments:
        assert comment in (LEFT_RUNNING, *files) or NOT_RUN.fullmatch(comment), comment


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("$ echo one; echo two\none\n", True),
        ("$ echo one\none\ntwo\n", True),
        ("$ echo one two\none …ree\n", True),
        ("$ echo one | tee x\none\n$ cat x\ntwo\n", True),
        ("$ echo one two\none …o\n", False),
        ("$ cat <<END\n> one\n> END\none\n$ echo two; echo three\n…\nthree\n", False),
    ],
)
def test_a_page_that_tells_another_answer_fails(tmp_path: Path, page: str, wrong: bool) -> None:
    (tmp_path / "home/me").mkdir(parents=True)
    machine = Machine(tmp_path, replacements=[], printed=[], variables={})
    (tmp_path / "page.md").write_text(f"```console\n{page}```\n")
    (block,) = blocks(tmp_path / "page.md")
    if wrong:
        with pytest.raises(AssertionError, match=r"page\.md, line"):
            machine.run(block)
    else:
        machine.run(block)
