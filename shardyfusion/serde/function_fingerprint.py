"""Recognising a user's function in another process, by what it does rather than by where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from types import CodeType, EllipsisType, FunctionType, NoneType
from typing import cast

_DEEPEST = 12
"""Nesting that is looked into; functions may refer to themselves."""


def function_fingerprint(fn: object) -> str:
    """sha256 of a function's code, constants, defaults and closure, or of a callable object's class and attributes.

    File names and line numbers do not count, so moving a function changes nothing; neither do globals that it reads.
    Equal only under one Python version, whose byte code it is made of.
    """
    return hashlib.sha256(repr(_shape(fn, 0)).encode()).hexdigest()


def _shape(value: object, depth: int) -> object:
    if isinstance(value, (int, float, complex, str, bytes, NoneType, EllipsisType)):
        return value
    deeper = depth + 1
    if depth < _DEEPEST:
        if isinstance(value, (tuple, list)):
            return [_shape(item, deeper) for item in cast("Sequence[object]", value)]
        if isinstance(value, (set, frozenset)):
            return sorted(repr(_shape(item, deeper)) for item in cast("frozenset[object]", value))
        if isinstance(value, dict):
            items = cast("dict[object, object]", value).items()
            return [[_shape(name, deeper), _shape(item, deeper)] for name, item in items]
        if isinstance(value, CodeType):
            return [value.co_code, _shape(value.co_consts, deeper), value.co_names, value.co_varnames]
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells)
            return [_shape(part, deeper) for part in parts]
        if isinstance(value, partial):
            return [_shape(part, deeper) for part in (value.func, value.args, value.keywords)]
        if not isinstance(value, type):
            call = getattr(type(value), "__call__", None)  # noqa: B004 (the method itself is wanted)
            state = [_shape(call, deeper), _shape(getattr(value, "__dict__", None), deeper)]
            return [type(value).__module__, type(value).__qualname__, state]
    kind = value if isinstance(value, type) else type(value)
    return [kind.__module__, kind.__qualname__]
