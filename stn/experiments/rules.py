"""The valid values of a config key, as a test and in words."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A test of a value, and a description of the valid values."""

    fits: Callable[[Any], bool]
    words: str


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def whole(least: int, most: int) -> Rule:
    return Rule(lambda v: type(v) is int and least <= v <= most, f"a whole number, {least} or more, up to {most:,}")


def number(least: int | float, most: int | float) -> Rule:
    return Rule(lambda v: is_finite(v) and least <= v <= most, f"a number, {least:g} or more, up to {most:g}")


def below(most: int | float) -> Rule:
    return Rule(lambda v: is_finite(v) and 0 <= v < most, f"a number, 0 or more and below {most:g}")


def one_of(*names: str) -> Rule:
    return Rule(lambda v: isinstance(v, str) and v in names, f"one of {', '.join(names)}")


def or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.fits(v), f"{rule.words}, or null")


POSITIVE = Rule(lambda v: is_finite(v) and v > 0, "a number above 0")
FLAG = Rule(lambda v: isinstance(v, bool), "true or false")
TEXT = Rule(lambda v: isinstance(v, str) and v != "", "a text")
MAPPING = Rule(lambda v: isinstance(v, Mapping), "a mapping")


def require(rule: Rule, key: str, value: Any, hint: str = "") -> None:
    """Raise ValueError unless a key's value fits; `hint` is added to the message."""
    if not rule.fits(value):
        raise ValueError(f"{key}={value!r:.100} has to be {rule.words}{hint}")
