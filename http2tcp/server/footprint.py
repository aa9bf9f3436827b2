"""How much CPU, memory and descriptors this process uses, under the names that all Prometheus client libraries use.

A figure that the system does not provide is left out. Descriptors and memory are shown on Linux only.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from http2tcp.server.prometheus import Family, Reading


def footprint() -> list[Family]:
    """Return the families to show on /metrics."""
    started = time.time()
    families = [
        _reading("gauge", "process_start_time_seconds", "When the server started, in POSIX time.", lambda: started),
        _reading("counter", "process_cpu_seconds_total", "CPU time, the user's and the system's.", time.process_time),
    ]
    if sys.platform == "linux":
        families += [
            _reading("gauge", "process_resident_memory_bytes", "Memory that is resident.", _resident_memory),
            _reading("gauge", "process_open_fds", "Descriptors that are open.", open_descriptors),
            _reading("gauge", "process_max_fds", "Descriptors that may be open.", _max_descriptors),
        ]
    return families


def _reading(kind: str, name: str, help: str, read: Callable[[], float]) -> Family:
    def samples() -> dict[tuple[str, ...], float]:
        try:
            return {(): read()}
        except OSError:
            return {}  # no /proc, or no descriptor left to read it with: still show the other families

    return Reading(kind, name, help, samples)


def _resident_memory() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_descriptors() -> int:
    """Return how many descriptors this process has open."""
    # Since Linux 6.2 the directory's size is the number of its entries. Use it: listing thousands takes milliseconds.
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd")) - 1


def _max_descriptors() -> float:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
