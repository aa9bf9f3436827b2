"""The files that are made from the command's own options: the man page, and completions for three shells.

`python -m tests.generate` writes them; tests/cli/test_generated.py fails where they are not what it would write.
They are committed, so that a package is built without running anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from http2tcp.version import __version__
from tests.generate import bash, fish, manual, zsh
from tests.generate.described import describe

ROOT = Path(__file__).parents[2]

HEADER = "Made from http2tcp/cli.py by `python -m tests.generate`: change that, not this file."


def files() -> dict[Path, str]:
    """Each file with its text."""
    options = describe()
    completions = ROOT / "docs" / "completions"
    return {
        ROOT / "docs" / "man" / "http2tcp.1": manual.page(options, HEADER, _released()),
        completions / "http2tcp.bash": bash.script(options, HEADER),
        completions / "_http2tcp": zsh.script(options, HEADER),
        completions / "http2tcp.fish": fish.script(options, HEADER),
    }


def _released() -> str:
    """The day of this version, as CHANGELOG.md has it; nothing before that."""
    heading = re.search(rf"^## {re.escape(__version__)} \(([^)]*)\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None, f"CHANGELOG.md has no heading `## {__version__} (DATE)`"
    return heading[1] if heading[1][0].isdigit() else ""
