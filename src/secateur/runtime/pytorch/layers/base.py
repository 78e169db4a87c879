"""Define the base class of all layers that replace a dense layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NoReturn

import torch
from torch import nn
from torch._C import _get_tracing_state

from secateur.errors import LayerError, StateError
from secateur.runtime.pytorch.layers.read_only_tensor import ReadOnlyTensor, refuse_write

__all__ = ["SparseLayer", "detach_parameters", "is_strided", "refuse_export", "refuse_tracing"]


def detach_parameters(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weight and the bias of a layer, detached from autograd."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    return weight.detach(), None if bias is None else bias.detach()


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether a tensor is dense with strides, and not sparse, nested or in the memory format of a library."""
    try:
        return tensor.layout is torch.strided and not tensor.is_nested
    except RuntimeError:  # oneDNN tensors have no layout
        return False


def refuse_tracing() -> None:
    """Raise `StateError` while `torch.jit.trace` is active."""
    if not torch.compiler.is_compiling() and _get_tracing_state() is not None:
        refuse_export()


def refuse_export() -> NoReturn:
    """Raise the error for graphs that would be exported from this process."""
    raise StateError(
        "A replaced layer cannot be exported, traced or scripted: its packed weight stays in this process. Export the "
        "model before you compile it, and compile it where it runs."
    )


class SparseLayer(nn.Module, ABC):
    """A layer for inference that replaces a dense layer.

    It has the state of the dense layer: ``state_dict()`` unpacks the weight. Its only parameter is empty, has the type
    and device of the weight, and is not part of the state. Other attributes, such as ``in_features`` or ``stride``, are
    copied from the dense layer.

    Args:
        layer: The dense layer.

    Attributes:
        dense_shape: Shape of the dense weight.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__.update({name: value for name, value in layer.__dict__.items() if name not in self.__dict__})
        weight, _ = detach_parameters(layer)
        self.dense_shape = tuple(weight.shape)
        # Code often reads the device and the type of a model from its first parameter.
        self._parameters["placeholder"] = nn.Parameter(weight.new_empty(0), requires_grad=False)
        self.train(layer.training)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the weight and of the inputs."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weight."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Size of the stored weight in bytes."""

    @abstractmethod
    def unpack_weight(self) -> torch.Tensor:
        """Return the dense weight in the shape in which the dense layer stored it."""

    @abstractmethod
    def unpack_bias(self) -> torch.Tensor | None:
        """Return the bias in the type of the dense layer, or ``None`` if there is none."""

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight as a read-only tensor, which unpacks its values when they are read."""
        if torch.compiler.is_compiling():
            return self.trace_weight()
        like = torch.empty(self.dense_shape, dtype=self.dtype, device="meta")
        return ReadOnlyTensor(self.unpack_weight, like, self.device)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias as a read-only tensor."""
        bias = self.unpack_bias()
        if bias is None or torch.compiler.is_compiling():
            return bias
        return ReadOnlyTensor(lambda: bias, bias, bias.device)

    @abstractmethod
    def multiply_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """Compute the outputs with the dense weight."""

    def compute_densely(self, tensor: torch.Tensor) -> torch.Tensor:
        """Compute the outputs with the dense weight for tensors that kernels cannot read, such as sparse tensors.

        Raises:
            LayerError: The dense layer does not support the tensor either.
        """
        try:
            return self.multiply_densely(tensor)
        except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            message = str(error).partition("\n")[0]
            raise LayerError(
                f"{type(self).__name__} does not support this {type(tensor).__name__}: {message}"
            ) from error

    def trace_weight(self) -> torch.Tensor:
        """Return the dense weight while `torch.compile` traces the layer."""
        return self.unpack_weight()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in {"weight", "bias"}:
            refuse_write()
        super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, unless it would replace the weight or the bias."""
        if name in {"weight", "bias"}:
            refuse_write()
        super().register_parameter(name, param)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_export()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ARG002 - torch's
        destination[f"{prefix}weight"] = self.unpack_weight()
        if (bias := self.unpack_bias()) is not None:
            destination[f"{prefix}bias"] = bias

    def _load_from_state_dict(self, *_: Any) -> None:
        raise StateError(
            f"{type(self).__name__} cannot load a state dict, because its weight is packed. Load the state dict into "
            f"the model before you compile it."
        )
