"""What is made from the table of options: the man page, completions for three shells, tables of the documentation, and
the example of a configuration file.

`python -m tests.generate` writes them; tests/cli/test_generated.py fails where they are not what it would write.
They are committed, so that a package is built without running anything.
"""

from __future__ import annotations

import re
from pathlib import Path

from http2tcp.version import __version__
from tests.generate import bash, example, fish, manual, reference, zsh
from tests.generate.described import describe

ROOT = Path(__file__).parents[2]

HEADER = "Made from http2tcp/command/options.py by `python -m tests.generate`: change that, not this file."


def files() -> dict[Path, str]:
    """Each file with its text."""
    options = describe()
    completions = ROOT / "docs" / "completions"
    return {
        ROOT / "docs" / "man" / "http2tcp.1": manual.page(options, HEADER, _released()),
        completions / "http2tcp.bash": bash.script(options, HEADER),
        completions / "_http2tcp": zsh.script(options, HEADER),
        completions / "http2tcp.fish": fish.script(options, HEADER),
        ROOT / "docs" / "options.md": reference.options_page((ROOT / "docs" / "options.md").read_text()),
        ROOT / "docs" / "configuration.md": reference.keys_page((ROOT / "docs" / "configuration.md").read_text()),
        ROOT / "examples" / "http2tcp.toml": example.configuration(),
    }


def _released() -> str:
    """The day of this version, as CHANGELOG.md has it; nothing before that."""
    heading = re.search(rf"^## {re.escape(__version__)} \(([^)]*)\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None, f"CHANGELOG.md has no heading `## {__version__} (DATE)`"
    return heading[1] if heading[1][0].isdigit() else ""
