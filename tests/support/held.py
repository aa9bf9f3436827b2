"""How much an object holds, which is what a peer must not be able to increase."""

from __future__ import annotations

import gc
import sys
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import NamedTuple

# Shared by everybody, and through them everything can be reached.
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType)


class Held(NamedTuple):
    """What can be reached from an object, itself included."""

    objects: int
    bytes: int


def held(root: object) -> Held:
    """Count what can be reached from the object. Classes, functions and modules do not count."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) not in seen and not isinstance(each, _SHARED):
            seen[id(each)] = each
            waiting.extend(gc.get_referents(each))
    return Held(len(seen), sum(map(sys.getsizeof, seen.values())))
