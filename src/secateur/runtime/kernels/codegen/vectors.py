"""Load, store, convert and reduce vectors of floats."""

from __future__ import annotations

from secateur.runtime.kernels.codegen.emitter import Emitter, vector
from secateur.runtime.kernels.formats.base import STRIP

__all__ = [
    "FLOATS",
    "FLOAT_BYTES",
    "PREFETCH_BYTES",
    "TYPE_BYTES",
    "WORDS",
    "broadcast_float",
    "load_floats",
    "load_initial_sum",
    "reduce_lanes",
    "split_floats",
    "store_first_floats",
    "store_floats",
    "widen_weights",
]

FLOAT_BYTES = 4
"""Size of a float32 in bytes."""

TYPE_BYTES = {"float": FLOAT_BYTES, "halves": FLOAT_BYTES, "bfloat": 2, "i8": 1}
"""Maps types to their sizes in bytes. ``halves`` is a float that is split into two bfloat16."""

PREFETCH_BYTES = 8192
"""Distance to the weights to prefetch. The hardware prefetcher is not enough, because it stops at every page."""

WIDEN_LANES = 16
"""Number of weights that are converted to floats at a time."""

FLOATS = vector("float", STRIP)
"""One float for each output of a strip."""

WORDS = vector("i32", STRIP)
"""One 32-bit integer for each output of a strip."""


def reduce_lanes(function: Emitter, total: str, lanes: int, kept: int = 1) -> str:
    """Reduce a vector to `kept` lanes, by adding the lanes whose indices are equal modulo `kept`."""
    while lanes > kept:
        halves = [range(lanes // 2), range(lanes // 2, lanes)]
        low, high = (function.shuffle(vector("float", lanes), total, "poison", list(half)) for half in halves)
        lanes //= 2
        total = function.assign(f"fadd {vector('float', lanes)} {low}, {high}")
    return total


def load_floats(function: Emitter, element: str, lanes: int, address: str) -> str:
    """Load consecutive numbers and convert them to floats.

    Args:
        function: The function under construction.
        element: Type in memory: ``float``, ``bfloat`` or ``i8``.
        lanes: Number of elements.
        address: Address of the first element.
    """
    if element == "float":
        return function.load(vector("float", lanes), address, FLOAT_BYTES)
    if element == "i8":
        integers = function.load(vector("i8", lanes), address)
        return function.assign(f"sitofp {vector('i8', lanes)} {integers} to {vector('float', lanes)}")
    return widen_bfloat16(function, function.load(vector("i16", lanes), address, 2), lanes)


def widen_bfloat16(function: Emitter, halves: str, lanes: int) -> str:
    """Convert bfloat16, given as bits, to floats."""
    words, shifts = vector("i32", lanes), f"<{', '.join(['i32 16'] * lanes)}>"
    wide = function.assign(f"zext {vector('i16', lanes)} {halves} to {words}")
    shifted = function.assign(f"shl {words} {wide}, {shifts}")
    return function.assign(f"bitcast {words} {shifted} to {vector('float', lanes)}")


def store_floats(function: Emitter, element: str, lanes: int, value: str, address: str) -> None:
    """Store floats consecutively as `element`, ``float`` or ``bfloat``."""
    if element == "bfloat":
        function.store(vector("i16", lanes), function.round_to_bfloat16(lanes, value), address, 2)
    else:
        function.store(vector("float", lanes), value, address, FLOAT_BYTES)


def store_first_floats(function: Emitter, element: str, lanes: int, values: str, address: str, count: str) -> None:
    """Store the first `count` floats of a vector as `element`, ``float`` or ``bfloat``."""
    if element == "bfloat":
        function.store_first(lanes, function.round_to_bfloat16(lanes, values), address, count, "i16")
    else:
        function.store_first(lanes, values, address, count)


def broadcast_float(function: Emitter, floats: str, index: str, lanes: int) -> str:
    """Load the float at an index of an array, and broadcast it to a vector."""
    value = load_floats(function, "float", 1, function.gep(floats, function.mul(index, FLOAT_BYTES)))
    return function.shuffle("<1 x float>", value, "poison", [0] * lanes)


def load_initial_sum(function: Emitter, weight_type: str, channel: str, lanes: int) -> str:
    """Return the initial sum of an output: its bias, or zero for int8, where the scale is applied before the bias."""
    return "zeroinitializer" if weight_type == "i8" else broadcast_float(function, "%bias", channel, lanes)


def widen_weights(function: Emitter, weight_type: str, bounds: tuple[str, str], buffer: str) -> str:
    """Convert a run of weights to floats in a buffer, unless they are floats already.

    Args:
        function: The function under construction.
        weight_type: LLVM type of the weights.
        bounds: Index of the first weight, and the index after the last one.
        buffer: Address of the buffer.

    Returns:
        The address that the weight of index 0 would have.
    """
    if weight_type == "float":
        return "%values"
    start, stop = bounds
    count, size = function.int_op("sub", stop, start), TYPE_BYTES[weight_type]
    source = function.gep("%values", function.mul(start, size))
    vectorized = function.int_op("and", count, -WIDEN_LANES)
    for first, last, lanes in (("0", vectorized, WIDEN_LANES), (vectorized, count, 1)):
        with function.loop(first, last, lanes) as index:
            floats = load_floats(function, weight_type, lanes, function.gep(source, function.mul(index, size)))
            target = function.gep(buffer, function.mul(index, FLOAT_BYTES))
            function.store(vector("float", lanes), floats, target, FLOAT_BYTES)
    return function.gep(buffer, function.mul(start, -FLOAT_BYTES))


def split_floats(function: Emitter, floats: str, lanes: int) -> tuple[str, str]:
    """Split floats into the sum of two bfloat16, returned as bits."""
    high = function.round_to_bfloat16(lanes, floats)
    low = function.assign(f"fsub {vector('float', lanes)} {floats}, {widen_bfloat16(function, high, lanes)}")
    return high, function.round_to_bfloat16(lanes, low)
