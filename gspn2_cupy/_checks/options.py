"""The words of messages, and the options of calls: names, numbers and flags."""

from __future__ import annotations

import operator
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from gspn2_cupy.reference import ALL_DIRECTIONS

METHODS = ("sigmoid", "softmax")

# --- messages ---------------------------------------------------------------------------------------------------------


def must(name: str, expected: str, received: object) -> str:
    """Say what is wrong with an argument."""
    return f"{name} must {expected}; got {received}"


def quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def shown(value: object) -> str:
    """Show an option on one line: a plain value as it is, anything else by its type."""
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, (bool, int, float, tuple, list, set, frozenset)):
        return reprlib.repr(value)
    return type_name(value)


def type_name(value: object) -> str:
    if value is None:
        return "None"
    cls = type(value)
    return cls.__name__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__name__}"


# --- options ----------------------------------------------------------------------------------------------------------


def one_of(name: str, value: Any, allowed: tuple[str, ...], alternative: str = "") -> str:
    """Check an option that is one of a few names."""
    if isinstance(value, str) and value in allowed:
        return allowed[allowed.index(value)]
    error = ValueError if isinstance(value, str) else TypeError
    raise error(must(name, f"be {alternative}one of {quoted(allowed)}", shown(value)))


def one_direction(value: Any) -> str:
    return one_of("direction", value, ALL_DIRECTIONS)


def several_directions(value: Any) -> tuple[str, ...]:
    if value is ALL_DIRECTIONS:
        return tuple(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        expected = f"be a tuple or list of names among {quoted(ALL_DIRECTIONS)}"
        raise TypeError(must("directions", expected, shown(value)))
    directions = tuple([one_of(f"directions[{d}]", each, ALL_DIRECTIONS) for d, each in enumerate(value)])
    if not directions or len(set(directions)) < len(directions):
        raise ValueError(must("directions", "hold one to four directions, each at most once", shown(value)))
    return directions


def normalization(value: Any) -> str | None:
    return None if value is None else one_of("normalize", value, METHODS, "None or ")


def whole_number(name: str, value: Any, least: int, alternative: str = "") -> int:
    """Check a whole number."""
    expected = f"be {alternative}an integer of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(must(name, expected, shown(value)))
    if number < least:
        raise ValueError(must(name, expected, number))
    return number


def chunk_length(value: Any) -> int | None:
    if value is None:
        return None
    return min(whole_number("chunk", value, 1, "None or "), sys.maxsize)  # no image reaches it, and 64 bits hold it


def flag(name: str, value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(must(name, "be True or False", shown(value)))


_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "direction": one_direction,
    "directions": several_directions,
    "method": lambda value: one_of("method", value, METHODS),
    "normalize": normalization,
    "chunk": chunk_length,
    "items_each_chunk": lambda value: whole_number("items_each_chunk", value, 1),
    "return_last": lambda value: flag("return_last", value),
    "save_states": lambda value: flag("save_states", value),
}


def options(**given: Any) -> list[Any]:
    """Check options apart from a call, for the adapters, and return them in their order."""
    return [_OPTIONS[name](value) for name, value in given.items()]


def needed(value: Any, inputs: dict[str, Any]) -> frozenset[str]:
    """Check which gradients are wanted, and leave out those of inputs that are not there."""
    if value is None:
        return frozenset([name for name, array in inputs.items() if array is not None])
    expected = f"be None or a tuple, list or set of names among {quoted(inputs)}"
    if isinstance(value, str) or not isinstance(value, Collection):
        raise TypeError(must("needs", expected, shown(value)))
    for name in value:
        if not isinstance(name, str) or name not in inputs:
            raise ValueError(must("needs", expected, shown(value)))
    return frozenset([str(name) for name in value if inputs[name] is not None])
