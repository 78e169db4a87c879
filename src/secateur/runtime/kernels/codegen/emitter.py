"""Writes a function in LLVM's own language, one instruction at a time.

Values are the names of the text (``%v7``) or constants; the caller knows their types. Loops and variables lie in memory
at first, and LLVM's first pass moves them to registers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["Emitter", "vector"]


OF_INTRINSICS = {"float": ("f32", "4"), "i16": ("i16", "2")}
"""LLVM's types → their names in those of intrinsics, and their bytes."""


def vector(element: str, lanes: int) -> str:
    """The type of `lanes` elements.

    Example:
        >>> vector("float", 16)
        '<16 x float>'
    """
    return f"<{lanes} x {element}>"


class Emitter:
    """One function under construction.

    Args:
        name: What it is called.
        parameters: Name → type.

    Example:
        >>> function = Emitter("twice", {"place": "ptr"})
        >>> number = function.load("i64", "%place")
        >>> function.store("i64", function.integer("add", number, number), "%place")
        >>> "add i64 %v1, %v1" in function.text()
        True
    """

    def __init__(self, name: str, parameters: dict[str, str]) -> None:
        self._head = f"@{name}({', '.join(f'{kind} %{parameter}' for parameter, kind in parameters.items())})"
        self._entry: list[str] = []
        self._lines: list[str] = []
        self._declared: set[str] = set()
        self._rounded: set[int] = set()
        self._names = 0

    def text(self, attributes: str = "", *, rounds: bool = False) -> str:
        """The whole module.

        Args:
            attributes: LLVM's of the function.
            rounds: Whether the processor has an instruction that rounds to bfloat16; LLVM calls a function else, which
                need not be there.
        """
        body = "\n  ".join(["entry:", *self._entry, "br label %start", "start:", *self._lines, "ret void"])
        declarations = "\n".join(
            [*sorted(self._declared), *(rounding(lanes, is_native=rounds) for lanes in sorted(self._rounded))]
        )
        function = f"define void {self._head} #0 {{\n  {body}\n}}"
        return f"{declarations}\n{function}\nattributes #0 = {{ nounwind {attributes} }}\n!0 = !{{}}"

    def let(self, instruction: str, name: str = "") -> str:
        """A new value, of a name of its own unless it is given one."""
        name = f"%{name}" if name else self._name("v")
        self._lines.append(f"{name} = {instruction}")
        return name

    def call(self, result: str, function: str, arguments: Sequence[tuple[str, str]]) -> str:
        """What an intrinsic returns; each argument is its type and the value."""
        kinds = ", ".join(kind for kind, _ in arguments)
        self._declared.add(f"declare {result} @{function}({kinds})")
        return self.let(f"call {result} @{function}({', '.join(f'{kind} {value}' for kind, value in arguments)})")

    def do(self, function: str, arguments: Sequence[tuple[str, str]]) -> None:
        """Call an intrinsic that returns nothing; each argument is its type and the value."""
        self._declared.add(f"declare void @{function}({', '.join(kind for kind, _ in arguments)})")
        self._lines.append(f"call void @{function}({', '.join(f'{kind} {value}' for kind, value in arguments)})")

    def prefetch(self, place: str, *, is_written: bool = False, level: int = 1) -> None:
        """Ask for what lies at a place, which need not be ours.

        Args:
            place: Where.
            is_written: Whether it will be written to.
            level: Of the cache that is to hold it, the innermost is 1.
        """
        numbers = [("i32", str(number)) for number in (int(is_written), 4 - level, 1)]
        self.do("llvm.prefetch.p0", [("ptr", place), *numbers])

    def integer(self, operation: str, left: str | int, right: str | int) -> str:
        """Arithmetic on 64 bits."""
        return self.let(f"{operation} i64 {left}, {right}")

    def add(self, left: str | int, right: str | int) -> str:
        """A sum of 64-bit integers."""
        return self.integer("add", left, right)

    def multiply(self, left: str | int, right: str | int) -> str:
        """A product of 64-bit integers."""
        return self.integer("mul", left, right)

    def smaller(self, left: str | int, right: str | int) -> str:
        """The smaller of two 64-bit integers."""
        return self.call("i64", "llvm.smin.i64", [("i64", str(left)), ("i64", str(right))])

    def larger(self, left: str | int, right: str | int) -> str:
        """The larger of two 64-bit integers."""
        return self.call("i64", "llvm.smax.i64", [("i64", str(left)), ("i64", str(right))])

    def at(self, place: str, offset: str | int) -> str:
        """The place so many bytes further."""
        return self.let(f"getelementptr i8, ptr {place}, i64 {offset}")

    def load(self, kind: str, place: str, align: int = 1) -> str:
        """What lies at a place."""
        return self.let(f"load {kind}, ptr {place}, align {align}")

    def store(self, kind: str, value: str, place: str, align: int = 1) -> None:
        """Put a value at a place."""
        self._lines.append(f"store {kind} {value}, ptr {place}, align {align}")

    def index(self, kind: str, place: str) -> str:
        """An unsigned integer at a place, as 64 bits."""
        found = self.load(kind, place)
        return found if kind == "i64" else self.let(f"zext {kind} {found} to i64")

    def variable(self, kind: str, value: str | None = None) -> str:
        """A place for a value that changes."""
        name = self._name("p")
        self._entry.append(f"{name} = alloca {kind}, align 64")
        if value is not None:
            self.store(kind, value, name, 64)
        return name

    def get(self, kind: str, variable: str) -> str:
        """What a variable holds."""
        return self.load(kind, variable, 64)

    def put(self, kind: str, value: str, variable: str) -> None:
        """Change a variable."""
        self.store(kind, value, variable, 64)

    def splat(self, element: str, lanes: int, value: str) -> str:
        """A vector of one value."""
        kind = vector(element, lanes)
        first = self.let(f"insertelement {kind} poison, {element} {value}, i64 0")
        return self.shuffle(kind, first, "poison", [0] * lanes)

    def shuffle(self, kind: str, left: str, right: str, places: Sequence[int]) -> str:
        """Elements of two vectors of one type by their places, counted through both; -1 is any."""
        mask = ", ".join("i32 poison" if place < 0 else f"i32 {place}" for place in places)
        return self.let(f"shufflevector {kind} {left}, {kind} {right}, <{len(places)} x i32> <{mask}>")

    def fused(self, lanes: int, left: str, right: str, total: str) -> str:
        """`left` × `right` + `total`, in one instruction where there is one."""
        kind = vector("float", lanes)
        return self.call(kind, f"llvm.fmuladd.v{lanes}f32", [(kind, left), (kind, right), (kind, total)])

    def rounded(self, lanes: int, value: str) -> str:
        """Floats rounded to the nearest bfloat16, as bits: LLVM makes arithmetic of some moves of ``bfloat``."""
        self._rounded.add(lanes)
        return self.let(f"call {vector('i16', lanes)} @rounded.{lanes}({vector('float', lanes)} {value})")

    def sum(self, parts: Sequence[str], lanes: int) -> str:
        """The sum of a power of two of vectors of floats, in pairs."""
        kind = vector("float", lanes)
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [self.let(f"fadd {kind} {left}, {right}") for left, right in pairs]
        return parts[0]

    def gather(self, places: str, lanes: int = 16) -> str:
        """The floats at as many places."""
        kind, pointers, flags = vector("float", lanes), vector("ptr", lanes), vector("i1", lanes)
        arguments = [(pointers, places), ("i32", "4"), (flags, "splat (i1 true)"), (kind, "poison")]
        return self.call(kind, f"llvm.masked.gather.v{lanes}f32.v{lanes}p0", arguments)

    def scatter(self, values: str, places: str, lanes: int = 16) -> None:
        """Store floats at as many places, which differ."""
        kind, pointers, flags = vector("float", lanes), vector("ptr", lanes), vector("i1", lanes)
        arguments = [(kind, values), (pointers, places), ("i32", "4"), (flags, "splat (i1 true)")]
        self.do(f"llvm.masked.scatter.v{lanes}f32.v{lanes}p0", arguments)

    def load_first(self, lanes: int, place: str, count: str, element: str = "float") -> str:
        """The first so many elements at a place, and zeros behind them; all of them if a vector has fewer."""
        kind, flags, (name, align) = vector(element, lanes), vector("i1", lanes), OF_INTRINSICS[element]
        arguments = [("ptr", place), ("i32", align), (flags, self._first(lanes, count)), (kind, "zeroinitializer")]
        return self.call(kind, f"llvm.masked.load.v{lanes}{name}.p0", arguments)

    def store_first(self, lanes: int, values: str, place: str, count: str, element: str = "float") -> None:
        """Store the first so many elements of a vector, or all of them if they are fewer."""
        kind, flags, (name, align) = vector(element, lanes), vector("i1", lanes), OF_INTRINSICS[element]
        arguments = [(kind, values), ("ptr", place), ("i32", align), (flags, self._first(lanes, count))]
        self.do(f"llvm.masked.store.v{lanes}{name}.p0", arguments)

    def _first(self, lanes: int, count: str) -> str:
        """A flag for each of the first so many lanes."""
        numbers = vector("i64", lanes)
        order = ", ".join(f"i64 {lane}" for lane in range(lanes))
        return self.let(f"icmp slt {numbers} <{order}>, {self.splat('i64', lanes, count)}")

    @contextmanager
    def loop(self, start: str | int, stop: str | int, step: str | int = 1) -> Iterator[str]:
        """Repeat what is emitted inside for each integer from `start` to before `stop`."""
        counter = self.variable("i64", str(start))
        head, body, end = (self._name(part)[1:] for part in ("head", "body", "end"))
        self._label(head)
        current = self.get("i64", counter)
        self._branch(f"icmp slt i64 {current}, {stop}", body, end)
        yield current
        self.put("i64", self.add(current, step), counter)
        self._lines.append(f"br label %{head}")
        self._lines.append(f"{end}:")

    @contextmanager
    def when(self, condition: str) -> Iterator[None]:
        """Do what is emitted inside only if the comparison holds."""
        body, end = (self._name(part)[1:] for part in ("then", "end"))
        self._branch(condition, body, end)
        yield
        self._label(end)

    def _branch(self, condition: str, body: str, end: str) -> None:
        flag = self.let(condition)
        self._lines.extend([f"br i1 {flag}, label %{body}, label %{end}", f"{body}:"])

    def _label(self, name: str) -> None:
        self._lines.extend([f"br label %{name}", f"{name}:"])

    def _name(self, prefix: str) -> str:
        self._names += 1
        return f"%{prefix}{self._names}"


def rounding(lanes: int, *, is_native: bool) -> str:
    """The function that rounds so many floats to bfloat16, by one instruction or by arithmetic on their bits."""
    floats, words, shorts = (vector(kind, lanes) for kind in ("float", "i32", "i16"))
    half_kind = vector("bfloat", lanes)
    body = [f"%half = fptrunc {floats} %value to {half_kind}", f"%found = bitcast {half_kind} %half to {shorts}"]
    if not is_native:
        shift, one, half, quiet = (
            f"<{', '.join([f'i32 {number}'] * lanes)}>" for number in (16, 1, (1 << 15) - 1, 1 << 22)
        )
        body = [
            f"%bits = bitcast {floats} %value to {words}",
            f"%high = lshr {words} %bits, {shift}",
            f"%odd = and {words} %high, {one}",
            f"%more = add {words} %bits, {half}",
            f"%near = add {words} %more, %odd",
            f"%still = or {words} %bits, {quiet}",
            f"%strange = fcmp uno {floats} %value, %value",
            f"%chosen = select {vector('i1', lanes)} %strange, {words} %still, {words} %near",
            f"%upper = lshr {words} %chosen, {shift}",
            f"%found = trunc {words} %upper to {shorts}",
        ]
    lines = "\n  ".join([*body, f"ret {shorts} %found"])
    return f"define internal {shorts} @rounded.{lanes}({floats} %value) alwaysinline {{\n  {lines}\n}}"
