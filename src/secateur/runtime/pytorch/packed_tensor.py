"""Weights of replaced layers as tensors that can be read and not written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch._C import _len_torch_dispatch_stack
from torch.utils._pytree import tree_any, tree_map

from secateur.errors import StateError

__all__ = ["PackedTensor", "refuse_write"]


def _setter(name: str) -> Any:
    """What sets an attribute of a tensor, as `__torch_function__` sees it."""
    return getattr(torch.Tensor, name).__set__


COPIED = frozenset(
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
"""Methods that no operator sees, and that give a copy of the values."""

ADDRESSED = frozenset(
    {
        torch.Tensor.__dlpack__,
        torch.Tensor.data_ptr,
        torch.Tensor.share_memory_,
        torch.Tensor.storage,
        torch.Tensor.untyped_storage,
    }
)
"""Methods that need the values in memory."""

SETTERS = frozenset({_setter("data"), _setter("grad")})
"""Setters of attributes that would have no effect on the layer."""

WRITERS = frozenset({torch.Tensor.apply_, torch.Tensor.map2_, torch.Tensor.map_})
"""Methods that no operator sees, and that write to the values in memory."""

SWITCHES = frozenset({torch.Tensor.requires_grad_, _setter("requires_grad")})
"""What may only switch gradients off."""


class PackedTensor(torch.Tensor):
    """A read-only tensor that unpacks its values when an operator reads them.

    Its shape, type and device are known without unpacking. Views of it are read-only too; all other results are plain
    tensors.

    Args:
        unpack: Returns the values as a plain tensor.
        like: A tensor of the same shape, type and device, on the meta device where values are expensive.
        device: Where the values will be.
    """

    _unpack: Callable[[], torch.Tensor]
    _place: torch.device

    def __new__(cls, unpack: Callable[[], torch.Tensor], like: torch.Tensor, device: torch.device) -> Self:
        """Make one without storage.

        For torch it is a tensor of the meta device: one of the CPU would be taken for the data of another tensor
        (``other.data = weight``), which then has no memory and crashes the process. Modes such as
        `FakeTensorMode` refuse to be asked for its device, and see the right one.
        """
        is_watched = _len_torch_dispatch_stack() > 0
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            like.shape,
            strides=like.stride(),
            dtype=like.dtype,
            device=device if is_watched else torch.device("meta"),
            dispatch_device=not is_watched,
            requires_grad=False,
        )
        made._unpack, made._place = unpack, device
        return made

    @classmethod
    def of_values(cls, values: torch.Tensor) -> Self:
        """One with the memory of a plain tensor, which may be the data of another."""
        made: Self = torch.Tensor._make_subclass(cls, values)
        made._unpack, made._place = lambda: values, values.device
        return made

    def unpacked(self) -> torch.Tensor:
        """The values as a plain tensor, unpacked once."""
        found = self._unpack()
        self._unpack = lambda: found
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what no operator sees; the rest reaches `__torch_dispatch__`."""
        kwargs = kwargs or {}
        if func in SETTERS or (func in SWITCHES and (*args, *kwargs.values())[1:] != (False,)):
            refuse_write("It has no gradients either.")
        if func in WRITERS:
            refuse_write(f"{func.__name__} would write it.")
        if func in ADDRESSED:
            raise StateError(
                "The weight of a replaced layer is packed and has no memory of its own. Use .clone() of it."
            )
        with torch._C.DisableTorchFunctionSubclass():
            if func not in COPIED:
                return func(*args, **kwargs)
            result = func(args[0].unpacked(), *args[1:], **kwargs)
        if isinstance(result, np.ndarray):
            result.flags.writeable = False
        return result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's own is typed as what switches it off
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operator on the values, unless it would write them."""
        if func is torch.ops.prim.device.default:
            return args[0]._place
        kwargs, schema = kwargs or {}, func._schema
        given = [*zip(schema.arguments, args, strict=False)]
        given += [(one, kwargs[one.name]) for one in schema.arguments if one.name in kwargs]
        if any(one.alias_info is not None and one.alias_info.is_write and _has_packed(value) for one, value in given):
            refuse_write(f"{func} would write it.")
        result = func(*tree_map(_unpacked, args), **tree_map(_unpacked, kwargs))
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
        return tree_map(_read_only, result) if is_view and isinstance(args[0], cls) else result


def refuse_write(details: str = "") -> NoReturn:
    """Raise the error for any attempt to write a weight."""
    raise StateError(
        f"The weight of a replaced layer is packed and read-only. {details + ' ' if details else ''}Change the model "
        f"before it is compiled."
    )


def _read_only(value: Any) -> Any:
    """A view that cannot be written to; other subclasses, such as fake tensors, have no values to protect."""
    return PackedTensor.of_values(value) if type(value) is torch.Tensor else value


def _unpacked(value: Any) -> Any:
    return value.unpacked() if isinstance(value, PackedTensor) else value


def _has_packed(value: Any) -> bool:
    return bool(tree_any(lambda one: isinstance(one, PackedTensor), value))
