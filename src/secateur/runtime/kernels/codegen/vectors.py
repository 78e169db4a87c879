"""Vectors of floats: reading, writing, adding up and rounding."""

from __future__ import annotations

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.formats.base import STRIP

__all__ = [
    "AHEAD",
    "FLOATS",
    "FLOAT_BYTES",
    "SIZES",
    "WORDS",
    "expanded",
    "first_sum",
    "folded",
    "halves",
    "read_floats",
    "spread",
    "write_first",
    "write_floats",
]

FLOAT_BYTES = 4
"""Of a float32."""

SIZES = {"float": FLOAT_BYTES, "halves": FLOAT_BYTES, "bfloat": 2, "i8": 1}
"""Bytes of LLVM's types, and of two bfloat16 for one float."""

AHEAD = 8192
"""Bytes from the weights at work to those that are asked for: the processor itself stops at every page."""

EXPANDED = 16
"""Weights that become floats together."""


FLOATS = vector("float", STRIP)
WORDS = vector("i32", STRIP)


def folded(function: Emitter, total: str, lanes: int, kept: int = 1) -> str:
    """A vector of which the lanes that lie a multiple of `kept` apart are added up."""
    while lanes > kept:
        halves = [range(lanes // 2), range(lanes // 2, lanes)]
        low, high = (function.shuffle(vector("float", lanes), total, "poison", list(half)) for half in halves)
        lanes //= 2
        total = function.let(f"fadd {vector('float', lanes)} {low}, {high}")
    return total


def read_floats(function: Emitter, element: str, lanes: int, place: str) -> str:
    """Numbers that lie side by side, as floats.

    Args:
        function: Where to.
        element: ``float``, ``bfloat`` or ``i8``.
        lanes: How many.
        place: Where the first is.
    """
    if element == "float":
        return function.load(vector("float", lanes), place, FLOAT_BYTES)
    if element == "i8":
        small = function.load(vector("i8", lanes), place)
        return function.let(f"sitofp {vector('i8', lanes)} {small} to {vector('float', lanes)}")
    return widened(function, function.load(vector("i16", lanes), place, 2), lanes)


def widened(function: Emitter, halves: str, lanes: int) -> str:
    """Floats of which the bits of bfloat16 are given."""
    words, shifts = vector("i32", lanes), f"<{', '.join(['i32 16'] * lanes)}>"
    wide = function.let(f"zext {vector('i16', lanes)} {halves} to {words}")
    return function.let(f"bitcast {words} {function.let(f'shl {words} {wide}, {shifts}')} to {vector('float', lanes)}")


def write_floats(function: Emitter, element: str, lanes: int, value: str, place: str) -> None:
    """Store floats side by side, rounded to `element`: ``float`` or ``bfloat``."""
    if element == "bfloat":
        function.store(vector("i16", lanes), function.rounded(lanes, value), place, 2)
    else:
        function.store(vector("float", lanes), value, place, FLOAT_BYTES)


def write_first(function: Emitter, element: str, lanes: int, values: str, place: str, count: str) -> None:
    """Store the first so many of a vector's floats, rounded to `element`: ``float`` or ``bfloat``."""
    if element == "bfloat":
        function.store_first(lanes, function.rounded(lanes, values), place, count, "i16")
    else:
        function.store_first(lanes, values, place, count)


def spread(function: Emitter, floats: str, number: str, lanes: int) -> str:
    """A vector of one of the floats at a place."""
    found = read_floats(function, "float", 1, function.at(floats, function.multiply(number, FLOAT_BYTES)))
    return function.shuffle("<1 x float>", found, "poison", [0] * lanes)


def first_sum(function: Emitter, stored: str, channel: str, lanes: int) -> str:
    """What an output's sums begin with: its bias, unless they are to be scaled."""
    return "zeroinitializer" if stored == "i8" else spread(function, "%bias", channel, lanes)


def expanded(function: Emitter, stored: str, bounds: tuple[str, str], memory: str) -> str:
    """Weights of a run as floats, in memory where they are none.

    Args:
        function: Where to.
        stored: LLVM's type of the weights.
        bounds: The first, and behind the last.
        memory: Room for them.

    Returns:
        Where the weight of number 0 would be.
    """
    if stored == "float":
        return "%values"
    start, stop = bounds
    count, size = function.integer("sub", stop, start), SIZES[stored]
    source = function.at("%values", function.multiply(start, size))
    whole = function.integer("and", count, -EXPANDED)
    for first, last, lanes in (("0", whole, EXPANDED), (whole, count, 1)):
        with function.loop(first, last, lanes) as number:
            some = read_floats(function, stored, lanes, function.at(source, function.multiply(number, size)))
            goal = function.at(memory, function.multiply(number, FLOAT_BYTES))
            function.store(vector("float", lanes), some, goal, FLOAT_BYTES)
    return function.at(memory, function.multiply(start, -FLOAT_BYTES))


def halves(function: Emitter, floats: str, lanes: int) -> tuple[str, str]:
    """Floats rounded to bfloat16, and what is left of them rounded to bfloat16, as bits."""
    large = function.rounded(lanes, floats)
    rest = function.let(f"fsub {vector('float', lanes)} {floats}, {widened(function, large, lanes)}")
    return large, function.rounded(lanes, rest)
