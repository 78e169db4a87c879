"""Read-only tensors, for the weights of replaced layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch._C import _len_torch_dispatch_stack
from torch.utils._pytree import tree_any, tree_map

from secateur.errors import StateError

__all__ = ["ReadOnlyTensor", "refuse_write"]


def _get_setter(name: str) -> Any:
    """Return the setter of a tensor's attribute, as `__torch_function__` receives it."""
    return getattr(torch.Tensor, name).__set__


COPYING_METHODS = frozenset(
    {
        torch.Tensor.__array__,
        torch.Tensor.__deepcopy__,
        torch.Tensor.__format__,
        torch.Tensor.__reduce_ex__,
        torch.Tensor.__repr__,
        torch.Tensor.numpy,
        torch.Tensor.tolist,
    }
)
"""Methods that call no operator and return a copy of the values."""

MEMORY_METHODS = frozenset(
    {
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.share_memory_,
        torch.Tensor.storage,
        torch.Tensor.untyped_storage,
    }
)
"""Methods that need the values in memory."""

REFUSED_SETTERS = frozenset({_get_setter("data"), _get_setter("grad")})
"""Setters of attributes that would have no effect on the layer."""

WRITING_METHODS = frozenset({torch.Tensor.apply_, torch.Tensor.map2_, torch.Tensor.map_})
"""Methods that call no operator and write to the values in memory."""

GRADIENT_SWITCHES = frozenset({torch.Tensor.requires_grad_, _get_setter("requires_grad")})
"""Methods that may only switch gradients off."""


class ReadOnlyTensor(torch.Tensor):
    """A read-only tensor that unpacks its values when an operator reads them.

    Its shape, type and device are known without unpacking. Views of it are read-only too; all other results are plain
    tensors.

    Args:
        unpack: Returns the values as a plain tensor.
        like: A tensor of the same shape and type; on the meta device if its values are expensive.
        device: Device of the values.
    """

    _unpack: Callable[[], torch.Tensor]
    _place: torch.device

    def __new__(cls, unpack: Callable[[], torch.Tensor], like: torch.Tensor, device: torch.device) -> Self:
        """Make a tensor without storage.

        For torch it is on the meta device: torch accepts a tensor on the CPU as the data of another tensor
        (``other.data = weight``), which then has no memory and crashes the process. Modes such as `FakeTensorMode`
        cannot ask for its device, and get the actual one.
        """
        is_watched = _len_torch_dispatch_stack() > 0
        tensor: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            like.shape,
            strides=like.stride(),
            dtype=like.dtype,
            device=device if is_watched else torch.device("meta"),
            dispatch_device=not is_watched,
            requires_grad=False,
        )
        tensor._unpack, tensor._place = unpack, device
        return tensor

    @classmethod
    def from_values(cls, values: torch.Tensor) -> Self:
        """Make a tensor that shares the memory of a plain one, which may be the data of another."""
        tensor: Self = torch.Tensor._make_subclass(cls, values)
        tensor._unpack, tensor._place = lambda: values, values.device
        return tensor

    def unpack(self) -> torch.Tensor:
        """Return the values as a plain tensor, unpacked once."""
        values = self._unpack()
        self._unpack = lambda: values
        return values

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle methods that call no operator; all others reach `__torch_dispatch__`."""
        kwargs = kwargs or {}
        if func in REFUSED_SETTERS or (func in GRADIENT_SWITCHES and (*args, *kwargs.values())[1:] != (False,)):
            refuse_write("It has no gradients either.")
        if func in WRITING_METHODS:
            refuse_write(f"{func.__name__} would write to it.")
        if func in MEMORY_METHODS:
            raise StateError(
                "The weight of a replaced layer is packed and has no memory of its own. Call .clone() first."
            )
        with torch._C.DisableTorchFunctionSubclass():
            if func not in COPYING_METHODS:
                return func(*args, **kwargs)
            result = func(args[0].unpack(), *args[1:], **kwargs)
        if isinstance(result, np.ndarray):
            result.flags.writeable = False
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # typed in torch as the value that disables it
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on the values, unless it would write to them."""
        if func is torch.ops.prim.device.default:
            return args[0]._place
        kwargs, schema = kwargs or {}, func._schema
        arguments = [*zip(schema.arguments, args, strict=False)]
        arguments += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
        if any(_is_written(argument) and _contains_read_only(value) for argument, value in arguments):
            refuse_write(f"{func} would write to it.")
        outputs = func(*tree_map(_unpack_value, args), **tree_map(_unpack_value, kwargs))
        is_view = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
        return tree_map(_protect_view, outputs) if is_view and isinstance(args[0], cls) else outputs


def refuse_write(details: str = "") -> NoReturn:
    """Raise the error for any attempt to change a weight."""
    raise StateError(
        f"The weight of a replaced layer is packed and read-only. {details + ' ' if details else ''}Change the model "
        f"before you compile it."
    )


def _protect_view(value: Any) -> Any:
    """Make a view read-only; other subclasses, such as fake tensors, have no values to protect."""
    return ReadOnlyTensor.from_values(value) if type(value) is torch.Tensor else value


def _unpack_value(value: Any) -> Any:
    return value.unpack() if isinstance(value, ReadOnlyTensor) else value


def _is_written(argument: Any) -> bool:
    """Whether an operator writes to an argument of its schema."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _contains_read_only(value: Any) -> bool:
    return bool(tree_any(lambda leaf: isinstance(leaf, ReadOnlyTensor), value))
