"""Wrap TensorFlow tensors in the interface of the array API standard.

Patterns and criteria compute with that standard. ``array-api-compat`` supports torch tensors and JAX arrays, including
traced arrays, but not TensorFlow tensors, so a compiled step wraps these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import keras

from secateur.frameworks.keras import get_tensor

__all__ = ["GraphArray", "as_array", "as_tensor", "trace_as_written"]

Parameters = ParamSpec("Parameters")

OTHER_NAMES = {
    "concat": "concatenate",
    "permute_dims": "transpose",
    "acos": "arccos",
    "asin": "arcsin",
    "atan": "arctan",
    "pow": "power",
}
"""Functions of the standard → their names in ``keras.ops``, where these differ."""


DTYPES = frozenset(
    ["bool", "bfloat16", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


class _Namespace:
    """The functions and dtypes of the standard, from ``keras.ops``."""

    def __init__(self) -> None:
        self.__name__ = "keras.ops"  # array-api-compat distinguishes namespaces by this name

    def __getattr__(self, name: str) -> Any:
        if name in DTYPES:
            return name
        operation = getattr(keras.ops, OTHER_NAMES.get(name, name), None)
        if operation is None:
            raise AttributeError(f"the array API of a compiled TensorFlow step has no {name!r}")

        def function(*arguments: Any, **options: Any) -> Any:
            return _wrap(operation(*map(_unwrap, arguments), **{key: _unwrap(value) for key, value in options.items()}))

        return function

    def astype(self, array: GraphArray, dtype: str, *, copy: bool = True) -> GraphArray:  # noqa: ARG002
        """See the standard. Tensors are immutable, so `copy` makes no difference."""
        return GraphArray(keras.ops.cast(array.tensor, dtype))

    def asarray(self, value: Any, *, dtype: str | None = None, device: Any = None, copy: Any = None) -> GraphArray:  # noqa: ARG002
        """See the standard. TensorFlow decides where the tensors of a compiled step are placed."""
        return GraphArray(keras.ops.convert_to_tensor(_unwrap(value), dtype=dtype))

    def ones(self, shape: tuple[int, ...], *, dtype: str | None = None, device: Any = None) -> GraphArray:  # noqa: ARG002
        """See the standard, and `asarray` for the device."""
        return GraphArray(keras.ops.ones(shape, dtype=dtype))


NAMESPACE = _Namespace()


class GraphArray:
    """A tensor of a compiled TensorFlow step.

    Attributes:
        tensor: The tensor.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __array_namespace__(self, *, api_version: str | None = None) -> _Namespace:
        return NAMESPACE

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return str(keras.backend.standardize_dtype(self.tensor.dtype))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.tensor.shape)

    def reshape(self, *shape: Any) -> GraphArray:
        """Return the same elements in another shape."""
        return GraphArray(keras.ops.reshape(self.tensor, shape[0] if len(shape) == 1 else shape))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"In a compiled TensorFlow step an array has no {name!r}. Use the function of that name from "
            f"array_api_compat.array_namespace(array), which supports every framework."
        )

    def __getitem__(self, key: Any) -> GraphArray:
        *lead, last = key if isinstance(key, tuple) else (key,)
        is_fold = (
            isinstance(last, slice) and last.step == 2 and last.start in (0, 1) and lead == [slice(None)] * len(lead)
        )
        return GraphArray(_take_every_second(self.tensor, len(lead), last) if is_fold else self.tensor[key])

    def __neg__(self) -> GraphArray:
        return GraphArray(-self.tensor)

    def __abs__(self) -> GraphArray:
        return GraphArray(abs(self.tensor))

    def __invert__(self) -> GraphArray:
        return GraphArray(~self.tensor)


def _take_every_second(tensor: Any, axis: int, part: slice) -> Any:
    """Return ``tensor[…, start:stop:2]`` along `axis`, many times as fast as the strided slice of TensorFlow."""
    shape = tuple(tensor.shape)
    stop = shape[axis] if part.stop is None else min(part.stop, shape[axis])
    if stop % 2:
        return tensor[(*[slice(None)] * axis, part)]
    even = tensor if stop == shape[axis] else tensor[(*[slice(None)] * axis, slice(0, stop))]
    pairs = keras.ops.reshape(even, (*shape[:axis], stop // 2, 2, *shape[axis + 1 :]))
    return keras.ops.unstack(pairs, num=2, axis=axis + 1)[part.start]


def _make_operator(name: str) -> Callable[[GraphArray, Any], GraphArray]:
    def method(self: GraphArray, other: Any) -> GraphArray:
        return GraphArray(getattr(self.tensor, name)(_unwrap(other)))

    return method


OPERATORS = ("add", "sub", "mul", "truediv", "pow", "and", "or", "xor")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
REFLECTED = tuple(f"r{name}" for name in OPERATORS)

for _operator in (*OPERATORS, *REFLECTED, *COMPARISONS):
    setattr(GraphArray, f"__{_operator}__", _make_operator(f"__{_operator}__"))


def as_array(tensor: Any) -> Any:
    """Convert a tensor, or the value of a variable, to an array that patterns and criteria can compute with."""
    value = get_tensor(tensor)
    return GraphArray(value) if keras.backend.backend() == "tensorflow" else value


def as_tensor(array: Any) -> Any:
    """Convert an array of `as_array` back to a tensor."""
    return _unwrap(array)


def trace_as_written(method: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Keep AutoGraph from rewriting a method and all that it calls in a ``tf.function``; only users' code needs it."""
    if keras.backend.backend() != "tensorflow":
        return method
    import tensorflow as tf

    kept: Callable[Parameters, None] = tf.autograph.experimental.do_not_convert(method)
    return kept


def _unwrap(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap(item) for item in value)
    return value.tensor if isinstance(value, GraphArray) else value


def _wrap(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return type(result)(_wrap(item) for item in result)
    return GraphArray(result) if keras.ops.is_tensor(result) else result
