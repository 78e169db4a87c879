"""Read-only tensors for the weights of replaced layers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch._C import _len_torch_dispatch_stack
from torch.utils._pytree import tree_any, tree_map

from secateur.errors import StateError

__all__ = ["ReadOnlyTensor", "refuse_write"]


def _get_setter(name: str) -> Any:
    """Return the setter of a tensor attribute, which `__torch_function__` receives as a function."""
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
"""Methods that return a copy of the values without calling an operator."""

MEMORY_METHODS = frozenset(
    {
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.share_memory_,
        torch.Tensor.storage,
        torch.Tensor.untyped_storage,
    }
)
"""Methods that need the memory of the values."""

REFUSED_SETTERS = frozenset({_get_setter("data"), _get_setter("grad")})
"""Setters that would have no effect on the layer."""

WRITING_METHODS = frozenset({torch.Tensor.apply_, torch.Tensor.map2_, torch.Tensor.map_})
"""Methods that write to the values without calling an operator."""

GRADIENT_SWITCHES = frozenset({torch.Tensor.requires_grad_, _get_setter("requires_grad")})
"""Methods that may disable gradients, but not enable them."""


class ReadOnlyTensor(torch.Tensor):
    """A read-only tensor that unpacks its values when an operator reads them.

    Its shape, type and device are available without unpacking. Views of it are read-only too. All other results are
    plain tensors.

    Args:
        unpack: Returns the values as a plain tensor.
        like: A tensor of the same shape and type, which may be on the meta device.
        device: Device of the values.
    """

    _unpack: Callable[[], torch.Tensor]
    _actual_device: torch.device

    def __new__(cls, unpack: Callable[[], torch.Tensor], like: torch.Tensor, device: torch.device) -> Self:
        """Create a tensor without storage.

        Internally, its device is the meta device: torch would accept a CPU tensor as the data of another tensor
        (``other.data = weight``), which would then have no memory and crash the process. Dispatch modes such as
        `FakeTensorMode` cannot query the device through `__torch_dispatch__`, so they get the actual device.
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
        # torch's functions in C++, such as `to_dlpack`, would otherwise read from address 0.
        torch._C._set_throw_on_mutable_data_ptr(tensor)
        tensor._unpack, tensor._actual_device = unpack, device
        return tensor

    @classmethod
    def from_values(cls, values: torch.Tensor) -> Self:
        """Create a read-only tensor that shares memory with a plain tensor."""
        tensor: Self = torch.Tensor._make_subclass(cls, values)
        tensor._unpack, tensor._actual_device = lambda: values, values.device
        return tensor

    def unpack(self) -> torch.Tensor:
        """Return the values as a plain tensor. They are unpacked only once, and `torch.compile` never traces that."""
        dynamo: Any = sys.modules.get("torch._dynamo")  # importing it takes seconds
        values = self._unpack() if dynamo is None else dynamo.disable(self._unpack)()
        self._unpack = lambda: values
        return values

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle methods that do not call an operator. All others reach `__torch_dispatch__`."""
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
    def __torch_dispatch__(  # type: ignore[override] # torch declares it as a value that disables dispatch
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on the values, unless it would write to them."""
        if func is torch.ops.prim.device.default:
            return args[0]._actual_device
        kwargs, schema = kwargs or {}, func._schema
        arguments = [*zip(schema.arguments, args, strict=False)]
        arguments += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
        if any(_is_written(argument) and _contains_read_only(value) for argument, value in arguments):
            refuse_write(f"{func} would write to it.")
        outputs = func(*tree_map(_unpack_value, args), **tree_map(_unpack_value, kwargs))
        is_view = any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
        return tree_map(_protect_view, outputs) if is_view and isinstance(args[0], cls) else outputs


def refuse_write(details: str = "") -> NoReturn:
    """Raise the error for attempts to change a weight."""
    raise StateError(
        f"The weight of a replaced layer is packed and read-only. {details + ' ' if details else ''}Change the model "
        f"before you compile it."
    )


def _protect_view(value: Any) -> Any:
    """Make a view read-only. Subclasses, such as fake tensors, have no values to protect."""
    return ReadOnlyTensor.from_values(value) if type(value) is torch.Tensor else value


def _unpack_value(value: Any) -> Any:
    return value.unpack() if isinstance(value, ReadOnlyTensor) else value


def _is_written(argument: Any) -> bool:
    """Whether an operator writes to an argument of its schema."""
    return argument.alias_info is not None and bool(argument.alias_info.is_write)


def _contains_read_only(value: Any) -> bool:
    return bool(tree_any(lambda leaf: isinstance(leaf, ReadOnlyTensor), value))
