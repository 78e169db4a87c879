"""Emit LLVM IR, one instruction at a time.

Values are names in the IR (``%v7``) or constants. The caller keeps track of their types. Loop counters and variables
are allocated on the stack, and LLVM's first pass promotes them to registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["Emitter", "vector"]


INTRINSIC_TYPES = {"float": ("f32", "4"), "i16": ("i16", "2")}
"""Maps LLVM types to their names in intrinsics and their alignments in bytes."""


def vector(element: str, lanes: int) -> str:
    """Return the LLVM type of a vector.

    Examples:
        >>> vector("float", 16)
        '<16 x float>'
    """
    return f"<{lanes} x {element}>"


class Emitter:
    """A function under construction.

    Args:
        name: Name of the function.
        parameters: Maps parameter names to their types.

    Examples:
        >>> function = Emitter("twice", {"address": "ptr"})
        >>> number = function.load("i64", "%address")
        >>> function.store("i64", function.int_op("add", number, number), "%address")
        >>> "add i64 %v1, %v1" in function.render()
        True
    """

    def __init__(self, name: str, parameters: dict[str, str]) -> None:
        self._head = f"@{name}({', '.join(f'{kind} %{parameter}' for parameter, kind in parameters.items())})"
        self._entry: list[str] = []
        self._lines: list[str] = []
        self._declared: set[str] = set()
        self._rounded: set[int] = set()
        self._names = 0

    def render(self, attributes: str = "", *, has_rounding: bool = False) -> str:
        """Return the LLVM module.

        Args:
            attributes: LLVM attributes of the function.
            has_rounding: Whether the processor has an instruction that rounds to bfloat16. Without one, LLVM would call
                a function that may not exist.
        """
        body = "\n  ".join(["entry:", *self._entry, "br label %start", "start:", *self._lines, "ret void"])
        roundings = [define_rounding(lanes, is_native=has_rounding) for lanes in sorted(self._rounded)]
        declarations = "\n".join([*sorted(self._declared), *roundings])
        function = f"define void {self._head} #0 {{\n  {body}\n}}"
        return f"{declarations}\n{function}\nattributes #0 = {{ nounwind {attributes} }}\n!0 = !{{}}"

    def assign(self, instruction: str, name: str = "") -> str:
        """Emit an instruction and return its result, named `name` or with a fresh name."""
        name = f"%{name}" if name else self._name("v")
        self._lines.append(f"{name} = {instruction}")
        return name

    def call(self, result: str, function: str, arguments: Sequence[tuple[str, str]]) -> str:
        """Call an intrinsic and return its result. Each argument is a (type, value) pair."""
        kinds = ", ".join(kind for kind, _ in arguments)
        self._declared.add(f"declare {result} @{function}({kinds})")
        return self.assign(f"call {result} @{function}({', '.join(f'{kind} {value}' for kind, value in arguments)})")

    def call_void(self, function: str, arguments: Sequence[tuple[str, str]]) -> None:
        """Call an intrinsic that returns nothing. Each argument is a (type, value) pair."""
        self._declared.add(f"declare void @{function}({', '.join(kind for kind, _ in arguments)})")
        self._lines.append(f"call void @{function}({', '.join(f'{kind} {value}' for kind, value in arguments)})")

    def prefetch(self, address: str, *, is_written: bool = False, level: int = 1) -> None:
        """Prefetch the cache line at an address, which may be invalid.

        Args:
            address: The address.
            is_written: Whether the cache line will be written to.
            level: Cache level to prefetch into. 1 is L1.
        """
        numbers = [("i32", str(number)) for number in (int(is_written), 4 - level, 1)]
        self.call_void("llvm.prefetch.p0", [("ptr", address), *numbers])

    def int_op(self, operation: str, left: str | int, right: str | int) -> str:
        """Emit a binary operation on 64-bit integers."""
        return self.assign(f"{operation} i64 {left}, {right}")

    def add(self, left: str | int, right: str | int) -> str:
        """Add 64-bit integers."""
        return self.int_op("add", left, right)

    def mul(self, left: str | int, right: str | int) -> str:
        """Multiply 64-bit integers."""
        return self.int_op("mul", left, right)

    def smin(self, left: str | int, right: str | int) -> str:
        """Return the smaller of two signed 64-bit integers."""
        return self.call("i64", "llvm.smin.i64", [("i64", str(left)), ("i64", str(right))])

    def smax(self, left: str | int, right: str | int) -> str:
        """Return the larger of two signed 64-bit integers."""
        return self.call("i64", "llvm.smax.i64", [("i64", str(left)), ("i64", str(right))])

    def gep(self, address: str, offset: str | int) -> str:
        """Add an offset in bytes to an address."""
        return self.assign(f"getelementptr i8, ptr {address}, i64 {offset}")

    def load(self, kind: str, address: str, align: int = 1) -> str:
        """Load a value."""
        return self.assign(f"load {kind}, ptr {address}, align {align}")

    def store(self, kind: str, value: str, address: str, align: int = 1) -> None:
        """Store a value."""
        self._lines.append(f"store {kind} {value}, ptr {address}, align {align}")

    def load_index(self, kind: str, address: str) -> str:
        """Load an unsigned integer and extend it to 64 bits."""
        value = self.load(kind, address)
        return value if kind == "i64" else self.assign(f"zext {kind} {value} to i64")

    def alloca(self, kind: str, value: str | None = None) -> str:
        """Allocate a variable on the stack and return its address."""
        name = self._name("p")
        self._entry.append(f"{name} = alloca {kind}, align 64")
        if value is not None:
            self.store(kind, value, name, 64)
        return name

    def load_variable(self, kind: str, variable: str) -> str:
        """Return the value of a variable."""
        return self.load(kind, variable, 64)

    def store_variable(self, kind: str, value: str, variable: str) -> None:
        """Set a variable."""
        self.store(kind, value, variable, 64)

    def splat(self, element: str, lanes: int, value: str) -> str:
        """Broadcast a scalar to a vector."""
        kind = vector(element, lanes)
        first = self.assign(f"insertelement {kind} poison, {element} {value}, i64 0")
        return self.shuffle(kind, first, "poison", [0] * lanes)

    def shuffle(self, kind: str, left: str, right: str, indices: Sequence[int]) -> str:
        """Select elements of two concatenated vectors of the same type. -1 leaves an element undefined."""
        mask = ", ".join("i32 poison" if index < 0 else f"i32 {index}" for index in indices)
        return self.assign(f"shufflevector {kind} {left}, {kind} {right}, <{len(indices)} x i32> <{mask}>")

    def fma(self, lanes: int, left: str, right: str, total: str) -> str:
        """Return `left` × `right` + `total`, fused where the processor supports it."""
        kind = vector("float", lanes)
        return self.call(kind, f"llvm.fmuladd.v{lanes}f32", [(kind, left), (kind, right), (kind, total)])

    def accumulate(self, lanes: int, left: str, right: str, variable: str) -> None:
        """Add `left` × `right` to a variable."""
        kind = vector("float", lanes)
        self.store_variable(kind, self.fma(lanes, left, right, self.load_variable(kind, variable)), variable)

    def round_to_bfloat16(self, lanes: int, value: str) -> str:
        """Round floats to the nearest bfloat16.

        The result is a vector of ``i16``, because LLVM turns some moves of ``bfloat`` into arithmetic.
        """
        self._rounded.add(lanes)
        return self.assign(f"call {vector('i16', lanes)} @round_to_bfloat16.{lanes}({vector('float', lanes)} {value})")

    def sum_vectors(self, parts: Sequence[str], lanes: int) -> str:
        """Add a power of two of float vectors, pairwise."""
        kind = vector("float", lanes)
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.assign(f"fadd {kind} {left}, {right}") for left, right in pairs]
        return parts[0]

    def gather(self, addresses: str, lanes: int = 16) -> str:
        """Gather floats from a vector of addresses."""
        kind, pointers, flags = vector("float", lanes), vector("ptr", lanes), vector("i1", lanes)
        arguments = [(pointers, addresses), ("i32", "4"), (flags, "splat (i1 true)"), (kind, "poison")]
        return self.call(kind, f"llvm.masked.gather.v{lanes}f32.v{lanes}p0", arguments)

    def scatter(self, values: str, addresses: str, lanes: int = 16) -> None:
        """Scatter floats to a vector of distinct addresses."""
        kind, pointers, flags = vector("float", lanes), vector("ptr", lanes), vector("i1", lanes)
        arguments = [(kind, values), (pointers, addresses), ("i32", "4"), (flags, "splat (i1 true)")]
        self.call_void(f"llvm.masked.scatter.v{lanes}f32.v{lanes}p0", arguments)

    def load_first(self, lanes: int, address: str, count: str, element: str = "float") -> str:
        """Load the first `count` elements of a vector, at most all, and set the others to zero."""
        kind, flags, (name, align) = vector(element, lanes), vector("i1", lanes), INTRINSIC_TYPES[element]
        mask = self._mask_first(lanes, count)
        arguments = [("ptr", address), ("i32", align), (flags, mask), (kind, "zeroinitializer")]
        return self.call(kind, f"llvm.masked.load.v{lanes}{name}.p0", arguments)

    def store_first(self, lanes: int, values: str, address: str, count: str, element: str = "float") -> None:
        """Store the first `count` elements of a vector, at most all."""
        kind, flags, (name, align) = vector(element, lanes), vector("i1", lanes), INTRINSIC_TYPES[element]
        arguments = [(kind, values), ("ptr", address), ("i32", align), (flags, self._mask_first(lanes, count))]
        self.call_void(f"llvm.masked.store.v{lanes}{name}.p0", arguments)

    def _mask_first(self, lanes: int, count: str) -> str:
        """Return a mask of the first `count` lanes."""
        numbers = vector("i64", lanes)
        order = ", ".join(f"i64 {lane}" for lane in range(lanes))
        return self.assign(f"icmp slt {numbers} <{order}>, {self.splat('i64', lanes, count)}")

    @contextmanager
    def loop(self, start: str | int, stop: str | int, step: str | int = 1) -> Iterator[str]:
        """Emit the body as a loop over the integers from `start` to `stop`, excluding `stop`."""
        counter = self.alloca("i64", str(start))
        head, body, end = (self._name(part)[1:] for part in ("head", "body", "end"))
        self._label(head)
        current = self.load_variable("i64", counter)
        self._branch(f"icmp slt i64 {current}, {stop}", body, end)
        yield current
        self.store_variable("i64", self.add(current, step), counter)
        self._lines.append(f"br label %{head}")
        self._lines.append(f"{end}:")

    @contextmanager
    def if_then(self, condition: str) -> Iterator[None]:
        """Emit the body as a block that runs if a condition, an ``icmp`` instruction, is true."""
        body, end = (self._name(part)[1:] for part in ("then", "end"))
        self._branch(condition, body, end)
        yield
        self._label(end)

    def _branch(self, condition: str, body: str, end: str) -> None:
        flag = self.assign(condition)
        self._lines.extend([f"br i1 {flag}, label %{body}, label %{end}", f"{body}:"])

    def _label(self, name: str) -> None:
        self._lines.extend([f"br label %{name}", f"{name}:"])

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"%{prefix}{self._names}"


def define_rounding(lanes: int, *, is_native: bool) -> str:
    """Return the IR of a function that rounds floats to bfloat16, with one instruction or integer arithmetic."""
    floats, words, shorts = (vector(kind, lanes) for kind in ("float", "i32", "i16"))
    half_kind = vector("bfloat", lanes)
    body = [f"%half = fptrunc {floats} %value to {half_kind}", f"%result = bitcast {half_kind} %half to {shorts}"]
    if not is_native:
        shift, one, half, quiet = (
            f"<{', '.join([f'i32 {number}'] * lanes)}>" for number in (16, 1, (1 << 15) - 1, 1 << 22)
        )
        body = [
            f"%bits = bitcast {floats} %value to {words}",
            f"%high = lshr {words} %bits, {shift}",
            f"%is_odd = and {words} %high, {one}",
            f"%biased = add {words} %bits, {half}",
            f"%rounded = add {words} %biased, %is_odd",
            f"%quiet = or {words} %bits, {quiet}",
            f"%is_nan = fcmp uno {floats} %value, %value",
            f"%selected = select {vector('i1', lanes)} %is_nan, {words} %quiet, {words} %rounded",
            f"%upper = lshr {words} %selected, {shift}",
            f"%result = trunc {words} %upper to {shorts}",
        ]
    lines = "\n  ".join([*body, f"ret {shorts} %result"])
    return f"define internal {shorts} @round_to_bfloat16.{lanes}({floats} %value) alwaysinline {{\n  {lines}\n}}"
