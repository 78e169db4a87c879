"""Convert between torch tensors and the bit patterns in files, and read the state of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.reader import RawTensor
from secateur.errors import ArtifactError, UnsupportedModelError

__all__ = ["NAMES", "TYPES", "find_aliases", "get_state", "read_bits", "to_torch"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number → integer data type that NumPy supports too."""

TYPES = {name: getattr(torch, dtype.name) for name, dtype in DTYPES.items() if hasattr(torch, dtype.name)}
"""Name in a file → torch data type."""

NAMES = {dtype: name for name, dtype in TYPES.items()}


def to_torch(tensor: RawTensor) -> torch.Tensor:
    """Convert a tensor to a torch tensor that shares its memory.

    Raises:
        ArtifactError: This version of torch does not have the data type.
    """
    if tensor.dtype not in TYPES:
        raise ArtifactError(f"torch {torch.__version__} does not support {tensor.dtype}. Install a newer version.")
    bits = np.ascontiguousarray(tensor.bits).view(f"i{tensor.bits.itemsize}" if tensor.bits.itemsize > 1 else "u1")
    return torch.from_numpy(bits.reshape(tensor.shape)).view(TYPES[tensor.dtype])


def get_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers by name, and check that each is a plain dense tensor."""
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
        if not is_plain or type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            kind = type(value).__name__ + (f", {value.dtype}" if isinstance(value, torch.Tensor) else "")
            raise UnsupportedModelError(
                f"{name!r} must be a plain dense tensor, found {kind}. Save the model before quantization, and "
                f"convert sparse tensors with to_dense()."
            )
        if value.dtype not in NAMES:
            raise UnsupportedModelError(f"{name!r} has dtype {value.dtype}, which safetensors does not support.")
    return dict(state)


def find_aliases(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Separate tied tensors: return each tensor under its first name, and alternative name → first name."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"{name!r} is on the meta device and has no values. Load the weights of the model first."
            )
        storage = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = seen.setdefault(storage if tensor.numel() else name, name)
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def read_bits(tensor: torch.Tensor) -> Bits:
    """Return the bit patterns of a tensor."""
    values = tensor.detach().cpu().contiguous()
    integers: Bits = values.view(INTEGERS[values.element_size()]).numpy()
    return integers.view(DTYPES[NAMES[values.dtype]].bits)
