"""What each function does with single values. An int and a uint are both Python ints: the tree knows which is meant.

Results are those of Google's engine (cel-cpp, tried with cel-expr-python 0.1.3), its bounds, white space and number
formats included. A NaN is written `nan` whatever its sign bit, which depends on the processor.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import xxhash

from shardyfusion._optional import needs
from shardyfusion.routing.hashing import canonical_bytes


class EvaluationError(Exception):
    """A row for which the expression has no value, and why. Routers turn it into an error that names the row."""


_SPACE = " \t\n\v\f\r"
_DECIMAL = re.compile(r"[+-]?[0-9]+")
_DOUBLE = re.compile(
    r"[+-]?(?:(?P<hex>0[xX](?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)(?:[pP][+-]?[0-9]+)?)"
    r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|infinity|nan|nan\([0-9a-z_]*\))",
    re.IGNORECASE,
)
_BOOLS = {
    **dict.fromkeys(("1", "t", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "false", "FALSE", "False"), False),
}
_FIXED = range(-4, 6)
"""Decimal exponents that are written without an exponent."""


def checked_int(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise EvaluationError("integer overflow")
    return value


def checked_uint(value: int) -> int:
    if not 0 <= value < 2**64:
        raise EvaluationError("unsigned integer overflow")
    return value


def _within(bounds: Callable[[int], int], function: Callable[..., int]) -> Callable[..., int]:
    return lambda *args: bounds(function(*args))


def _negated_int(value: int) -> int:
    return checked_int(-value)


def truncated_quotient(a: int, b: int) -> int:
    if b == 0:
        raise EvaluationError("divide by zero")
    quotient = abs(a) // abs(b)
    return checked_int(quotient if (a < 0) == (b < 0) else -quotient)


def truncated_remainder(a: int, b: int) -> int:
    if b == 0:
        raise EvaluationError("modulus by zero")
    if a == -(2**63) and b == -1:
        raise EvaluationError("integer overflow")
    return int(math.copysign(1, a)) * (abs(a) % abs(b))


def unsigned_quotient(a: int, b: int) -> int:
    if b == 0:
        raise EvaluationError("divide by zero")
    return a // b


def unsigned_remainder(a: int, b: int) -> int:
    if b == 0:
        raise EvaluationError("modulus by zero")
    return a % b


def divided(a: float, b: float) -> float:
    """IEEE 754 division."""
    if b:
        return a / b
    return math.nan if math.isnan(a) or not a else math.copysign(math.inf, a) * math.copysign(1, b)


def int_of_double(value: float) -> int:
    if not -(2.0**63) < value < 2.0**63:
        raise EvaluationError(f"double {value!r} out of int range")
    return int(value)


def uint_of_double(value: float) -> int:
    if not 0 <= value < 2.0**64:
        raise EvaluationError(f"double {value!r} out of uint range")
    return int(value)


def int_of_uint(value: int) -> int:
    if value >= 2**63:
        raise EvaluationError(f"uint {value} out of int range")
    return value


def uint_of_int(value: int) -> int:
    if value < 0:
        raise EvaluationError(f"int {value} out of uint range")
    return value


def int_of_string(text: str) -> int:
    stripped = text.strip(_SPACE)
    if _DECIMAL.fullmatch(stripped) and len(stripped) < 4000:
        value = int(stripped)
        if -(2**63) <= value < 2**63:
            return value
    raise EvaluationError(f"cannot convert string {_shown(text)} to int")


def uint_of_string(text: str) -> int:
    stripped = text.strip(_SPACE)
    if _DECIMAL.fullmatch(stripped) and not stripped.startswith("-") and len(stripped) < 4000:
        value = int(stripped)
        if value < 2**64:
            return value
    raise EvaluationError(f"cannot convert string {_shown(text)} to uint")


def double_of_string(text: str) -> float:
    stripped = text.strip(_SPACE)
    match = _DOUBLE.fullmatch(stripped)
    if match is None:
        raise EvaluationError(f"cannot convert string {_shown(text)} to double")
    if match["hex"] is None:
        return float(stripped.partition("(")[0])
    try:
        return float.fromhex(stripped)
    except OverflowError:
        return -math.inf if stripped.startswith("-") else math.inf


def bool_of_string(text: str) -> bool:
    if text not in _BOOLS:
        raise EvaluationError(f"cannot convert string {_shown(text)} to bool")
    return _BOOLS[text]


def string_of_double(value: float) -> str:
    """The shortest digits that give the same double, with an exponent unless it is in `_FIXED`."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    mantissa, _, exponent = f"{value!r}e".partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    if not digits:
        return f"{sign}0"
    point = len(whole) + int(exponent.rstrip("e") or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    power = point - 1
    if power not in _FIXED:
        tail = f".{digits[1:]}" if len(digits) > 1 else ""
        return f"{sign}{digits[0]}{tail}e{'-' if power < 0 else '+'}{abs(power):02d}"
    if point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    digits = digits.ljust(point, "0")
    return f"{sign}{digits[:point]}" + (f".{digits[point:]}" if len(digits) > point else "")


def string_of_bytes(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise EvaluationError("malformed UTF-8 bytes") from None


def string_of_bool(value: bool) -> str:
    return "true" if value else "false"


def shard_hash(value: int | str | bytes) -> int:
    if isinstance(value, int) and value >= 2**63:
        raise EvaluationError(f"shard_hash() takes integers below 2^63, not {value}")
    return xxhash.xxh3_64_intdigest(canonical_bytes(value))


@functools.lru_cache(maxsize=256)
def _regex(pattern: str) -> Any:
    re2 = needs("re2", extra="cel")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as exc:
        return EvaluationError(f"invalid regular expression {_shown(pattern)}: {exc}")


def matches(text: str, pattern: str) -> bool:
    """Whether the pattern, in RE2's syntax, is found anywhere in the text."""
    regex = _regex(pattern)
    if isinstance(regex, EvaluationError):
        raise EvaluationError(*regex.args)
    return regex.search(text) is not None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _identity(value: Any) -> Any:
    return value


_COMPARED = ("bool", "int", "uint", "double", "string", "bytes")

FUNCTIONS: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{("_+_", kind): operator.add for kind in ("double", "string", "bytes")},
    ("_-_", "double"): operator.sub,
    ("_*_", "double"): operator.mul,
    ("_/_", "double"): divided,
    ("-_", "double"): operator.neg,
    ("_+_", "int"): _within(checked_int, operator.add),
    ("_-_", "int"): _within(checked_int, operator.sub),
    ("_*_", "int"): _within(checked_int, operator.mul),
    ("_/_", "int"): truncated_quotient,
    ("_%_", "int"): truncated_remainder,
    ("-_", "int"): _negated_int,
    ("_+_", "uint"): _within(checked_uint, operator.add),
    ("_-_", "uint"): _within(checked_uint, operator.sub),
    ("_*_", "uint"): _within(checked_uint, operator.mul),
    ("_/_", "uint"): unsigned_quotient,
    ("_%_", "uint"): unsigned_remainder,
    ("!_", "bool"): operator.not_,
    **{("_==_", kind): operator.eq for kind in _COMPARED},
    **{("_!=_", kind): operator.ne for kind in _COMPARED},
    **{("_<_", kind): operator.lt for kind in _COMPARED},
    **{("_<=_", kind): operator.le for kind in _COMPARED},
    **{("_>_", kind): operator.gt for kind in _COMPARED},
    **{("_>=_", kind): operator.ge for kind in _COMPARED},
    ("size", "string"): len,
    ("size", "bytes"): len,
    ("contains", "string"): operator.contains,
    ("startsWith", "string"): str.startswith,
    ("endsWith", "string"): str.endswith,
    ("matches", "string"): matches,
    **{(kind, kind): _identity for kind in _COMPARED},
    ("int", "uint"): int_of_uint,
    ("int", "double"): int_of_double,
    ("int", "string"): int_of_string,
    ("uint", "int"): uint_of_int,
    ("uint", "double"): uint_of_double,
    ("uint", "string"): uint_of_string,
    ("double", "int"): float,
    ("double", "uint"): float,
    ("double", "string"): double_of_string,
    ("string", "int"): str,
    ("string", "uint"): str,
    ("string", "double"): string_of_double,
    ("string", "bool"): string_of_bool,
    ("string", "bytes"): string_of_bytes,
    ("bytes", "string"): str.encode,
    ("bool", "string"): bool_of_string,
    **{("shard_hash", kind): shard_hash for kind in ("int", "uint", "string", "bytes")},
}
"""By name and the type of the first argument: all that is strict, in that an argument's error is its own."""
