"""CPU, memory and descriptors of a program and all its children, from /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


class Group:
    """Programs by their pids, with their children if they fork. False if there are none."""

    def __init__(self, *pids: int, forks: bool = False) -> None:
        self._pids = pids
        self._forks = forks

    def __bool__(self) -> bool:
        return bool(self._pids)

    def cpu(self) -> float:
        """Seconds of CPU, user and system, of all of them and of the children that they have reaped."""
        return self._sum(lambda pid: sum(map(int, _stat(pid)[11:15]))) / _TICKS

    def memory(self) -> int:
        """Proportional memory (PSS) in bytes: a page that two processes share counts half for each.

        Without the pages of files: what each process has to bear of a library depends on what else runs.
        """
        return self._sum(_memory)

    def descriptors(self) -> int:
        """Open descriptors."""
        return self._sum(lambda pid: len(os.listdir(_PROC / str(pid) / "fd")))

    def _sum(self, of: Callable[[int], int]) -> int:
        total = 0
        for pid in self._all():
            try:
                total += of(pid)
            except (FileNotFoundError, ProcessLookupError):
                if pid in self._pids:
                    raise
        return total

    def _all(self) -> list[int]:
        if not self._forks:
            return list(self._pids)
        parents: dict[int, list[int]] = {}
        for name in filter(str.isdigit, os.listdir(_PROC)):
            try:
                parents.setdefault(int(_stat(int(name))[1]), []).append(int(name))
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
        found, queue = [], list(self._pids)
        while queue:
            pid = queue.pop()
            found.append(pid)
            queue += parents.get(pid, [])
        return found


def settle(*groups: Group, quiet: float = 0.15, limit: float = 5.0) -> None:
    """Wait until none of them uses CPU any more."""
    deadline = time.monotonic() + limit
    before = [group.cpu() for group in groups]
    while time.monotonic() < deadline:
        time.sleep(quiet)
        now = [group.cpu() for group in groups]
        if now == before:
            return
        before = now


def _memory(pid: int) -> int:
    sizes = {}
    for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        sizes[name] = int(size) * 1024
    return sizes["Pss:"] - sizes["Pss_File:"]


def _stat(pid: int) -> list[str]:
    """The fields after the command's name, which may itself hold blanks and brackets: proc(5), from field 3 on."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
