"""Write the files."""

from __future__ import annotations

from tests.generate import ROOT, files

for path, text in files().items():
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(path.relative_to(ROOT))
