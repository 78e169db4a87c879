"""Find the layers of a torch model, and read, mask and write their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from secateur._array import Array, count_true, mask_in_place, to_numpy
from secateur.distributed.pytorch.shards import ShardLayout, get_local, is_sharded
from secateur.errors import LayerError, UnsupportedModelError
from secateur.frameworks.base import Framework
from secateur.frameworks.view import WeightView

__all__ = [
    "FRAMEWORK",
    "OwnedWeight",
    "PytorchFramework",
    "StackedWeight",
    "apply_mask",
    "explain_type",
    "find_adapters",
    "find_owned_weights",
    "find_stacked_weights",
    "find_weight_layers",
    "get_class_name",
    "get_layer",
    "get_matrices",
    "get_parameter",
    "get_parameter_name",
    "get_type_names",
    "get_view",
    "get_weight_name",
    "is_plain_tensor",
    "is_transformers_conv1d",
    "list_layers",
    "read_canonical",
    "read_parameter",
    "unwrap_model",
    "write_weight",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
"""Wrappers with the user's model in their attribute ``module``."""


@dataclass(frozen=True, slots=True)
class OwnedWeight:
    """A parameter in place of the module that owns it and perhaps others, such as a recurrent weight.

    It can replace the module wherever a layer is expected, and its name is the name of the parameter in the model.

    Attributes:
        module: The module that owns the parameter.
        name: Name of the parameter in the module.
    """

    module: nn.Module
    name: str


@dataclass(frozen=True, slots=True)
class StackedWeight(OwnedWeight):
    """A layer of stacked experts: one matrix per expert, in a parameter of a module that owns several of them.

    Attributes:
        is_transposed: Whether the parameter has the shape (experts, inputs, outputs), not (experts, outputs, inputs).
    """

    is_transposed: bool


class PytorchFramework(Framework):
    """Interface to torch modules. Where only the shape of a weight matters, a `WeightView` can replace the module."""

    name = "pytorch"
    can_lock_later = True

    def get_view(self, layer: Any) -> WeightView:
        """See `Framework.get_view`."""
        return get_view(layer)

    def read_weight(self, layer: Any) -> torch.Tensor:
        """Return the parameter, detached from autograd; of a sharded one, the shard in this process."""
        return get_local(get_parameter(layer))

    def count_nonzero(self, layer: Any) -> int:
        """See `Framework.count_nonzero`. If the weight is sharded, this is collective."""
        weight = get_parameter(layer)
        count = count_true(get_local(weight))
        return ShardLayout(weight).add(count) if is_sharded(weight) else count

    def get_weight_id(self, layer: Any) -> int:
        """Return the identity of the parameter."""
        return id(layer if isinstance(layer, WeightView) else get_parameter(layer))

    def get_parameter_name(self, name: str, layer: Any) -> str:
        """See `Framework.get_parameter_name`."""
        return name if isinstance(layer, WeightView) else get_parameter_name(name, layer)

    def to_array(self, tensor: Any) -> Array:
        """Return a CPU tensor as a NumPy array, and any other tensor unchanged.

        NumPy compares twice as fast as torch. The array shares memory with tensors of type float32 and float64.
        """
        if isinstance(tensor, np.ndarray):
            return tensor
        tensor = tensor.detach()
        if tensor.device.type != "cpu":
            return tensor
        if tensor.dtype in (torch.bfloat16, torch.float16):
            tensor = tensor.float()
        return tensor.numpy()

    def from_array(self, array: Array, like: Any) -> Any:
        """Return a tensor on the device of `like`, or a NumPy array if `like` is one."""
        if isinstance(like, np.ndarray):
            return to_numpy(array)
        return torch.as_tensor(array, device=like.device)


FRAMEWORK = PytorchFramework()


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the user's model inside ``torch.compile``, weight averaging and data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, WRAPPERS):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def list_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module of the unwrapped model by name, the model itself included."""
    return dict(unwrap_model(model).named_modules())


def find_adapters(model: nn.Module) -> set[str]:
    """Return the modules inside adapters of PEFT, such as LoRA.

    A layer with adapters has the original layer as ``base_layer``, and next to it the modules of the adapters.
    """
    adapters: set[str] = set()
    for name, module in list_layers(model).items():
        if isinstance(getattr(module, "base_layer", None), nn.Module):
            declared = getattr(module, "adapter_layer_names", ())
            for key, child in module.named_children():
                if key.startswith("lora_") or key in declared:
                    adapters |= {f"{name}.{key}.{path}".strip(".") for path, _ in child.named_modules()}
    return adapters


def find_weight_layers(model: nn.Module) -> dict[str, nn.Module | OwnedWeight]:
    """Return supported layers and other modules that own a parameter with at least two axes, in the model's order."""
    layers: dict[str, nn.Module | OwnedWeight] = {}
    for name, module in list_layers(model).items():
        stacked = find_stacked_weights(module)
        if get_type_names(module) or (not stacked and get_matrices(module)):
            layers[name] = module
        layers |= {f"{name}.{key}".lstrip("."): weight for key, weight in stacked.items()}
    return layers


def find_stacked_weights(module: nn.Module) -> dict[str, StackedWeight]:
    """Return parameter name → stacked experts of a module; empty if it has none, or if their axes are unknown.

    A module has stacked experts if it has the attribute ``num_experts`` and parameters of three axes, of which the
    first one has that length. Its attribute ``is_transposed``, or the shapes of its parameters, say which of the other
    axes are the inputs.
    """
    count = getattr(module, "num_experts", None)
    if not isinstance(count, int):
        return {}
    own = get_weight_name(module) if get_type_names(module) else None
    names = [
        name for name, weight in module.named_parameters(recurse=False) if name != own and _is_stack(weight, count)
    ]
    is_transposed = _are_transposed(module, names)
    return {} if is_transposed is None else {name: StackedWeight(module, name, is_transposed) for name in names}


def find_owned_weights(module: nn.Module) -> dict[str, OwnedWeight]:
    """Return parameter name → weight for the parameters with two or more axes that patterns do not support.

    These are all such parameters of unsupported modules, and those of supported modules besides the weight itself.
    """
    known = {*find_stacked_weights(module), *([get_weight_name(module)] if _has_view(module) else [])}
    matrices = {id(weight) for weight in get_matrices(module)}
    return {
        name: OwnedWeight(module, name)
        for name, weight in module.named_parameters(recurse=False)
        if id(weight) in matrices and name not in known
    }


def _has_view(module: nn.Module) -> bool:
    try:
        get_view(module)
    except LayerError:
        return False
    return True


def _is_stack(weight: nn.Parameter, count: int) -> bool:
    return not isinstance(weight, nn.UninitializedParameter) and weight.dim() == 3 and weight.shape[0] == count


def _are_transposed(module: nn.Module, names: Sequence[str]) -> bool | None:
    """Return whether stacked experts are stored with their inputs first; ``None`` if that is unknown."""
    declared = getattr(module, "is_transposed", None)
    if isinstance(declared, bool):
        return declared
    if {"gate_up_proj", "down_proj"} <= {*names}:
        # The inner width appears twice in the outputs of the first weight, and once in the inputs of the second.
        up, down = (tuple(module._parameters[name].shape[1:]) for name in ("gate_up_proj", "down_proj"))  # type: ignore[union-attr]
        if up == (2 * down[1], down[0]):
            return False
        return True if up == (down[1], 2 * down[0]) else None
    sizes = (getattr(module, "output_size", None), getattr(module, "input_size", None))
    shapes = {tuple(module.get_parameter(name).shape[1:]) for name in names}
    if sizes[0] == sizes[1] or not shapes or not shapes <= {sizes} | {sizes[::-1]} or len(shapes) > 1:
        return None
    return sizes not in shapes


def get_layer(model: nn.Module, name: str) -> nn.Module | OwnedWeight:
    """Return the layer with a name that `find_weight_layers` uses.

    Raises:
        AttributeError: There is none.
    """
    owner, _, key = name.rpartition(".")
    try:
        return model.get_submodule(name)
    except AttributeError:
        module = model.get_submodule(owner)
        owned = find_owned_weights(module) | find_stacked_weights(module)
        if key not in owned:
            raise
        return owned[key]


def get_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters with at least two axes that belong to a module itself, not to a module inside it."""
    return [
        weight
        for weight in module.parameters(recurse=False)
        if not isinstance(weight, nn.UninitializedParameter) and weight.dim() >= 2
    ]


def get_view(module: Any) -> WeightView:
    """Return the canonical view of a module's weight.

    Supports ``Linear``, ``Conv1d/2d/3d`` (grouped and depthwise too), ``ConvTranspose1d/2d/3d`` with one group, the
    input projection of ``MultiheadAttention``, the ``Conv1D`` of transformers, and stacked experts.

    Raises:
        LayerError: The module has no weight that can be pruned; the message says why.
        UnsupportedModelError: The object is not a torch module.

    Examples:
        >>> get_view(nn.Conv2d(16, 8, kernel_size=3)).canonical_shape
        (8, 9, 16)
    """
    if isinstance(module, WeightView):
        return module
    if not isinstance(module, nn.Module | OwnedWeight):
        raise UnsupportedModelError(f"torch patterns need torch.nn.Module layers, found {type(module).__name__}.")
    shape = tuple(get_parameter(module).shape)
    if isinstance(module, StackedWeight):
        return WeightView.from_stack(shape, is_transposed=module.is_transposed)
    if isinstance(module, OwnedWeight):
        last = len(shape) - 1
        return WeightView(shape=shape, output_axes=(0,), kernel_axes=tuple(range(1, last)), input_axes=(last,))
    kernel = tuple(range(2, len(shape)))
    if isinstance(module, TRANSPOSED):
        if module.groups > 1:
            # They number output channels within each group.
            raise LayerError("transposed convolutions with groups are not supported")
        return WeightView(shape=shape, output_axes=(1,), kernel_axes=kernel, input_axes=(0,))
    if isinstance(module, CONVOLUTIONS):
        return WeightView(shape=shape, output_axes=(0,), kernel_axes=kernel, input_axes=(1,), groups=module.groups)
    if is_transformers_conv1d(module):
        return WeightView(shape=shape, output_axes=(1,), input_axes=(0,))
    return WeightView(shape=shape, output_axes=(0,), input_axes=(1,))


def read_canonical(tensor: torch.Tensor, view: WeightView) -> torch.Tensor:
    """Return a stored weight, or its gradient, as an (O, K, I) tensor of at least float32."""
    canonical: torch.Tensor = view.to_canonical(tensor)
    return canonical.float() if canonical.dtype in (torch.float16, torch.bfloat16) else canonical


def write_weight(weight: torch.Tensor, values: torch.Tensor, before: torch.Tensor) -> None:
    """Write `values` into a stored weight, in place.

    Where a value equals `before`, the stored number does not change, because its dtype may be more precise than the
    dtype of the values.
    """
    weight.copy_(torch.where(values == before, weight, values))


def apply_mask(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Set `weight` to zero in place where `mask` is ``False``. Return the mask on the weight's device."""
    mask = mask.to(weight.device)
    mask_in_place(weight, mask)
    return mask


def get_parameter(layer: nn.Module | OwnedWeight) -> nn.Parameter:
    """Return the parameter that is pruned in a layer.

    Raises:
        LayerError: No parameter can be pruned; the message says why.
    """
    if not get_type_names(layer):
        raise LayerError(f"{get_class_name(layer)} is not a supported layer type")
    module, name = layer.module if isinstance(layer, OwnedWeight) else layer, get_weight_name(layer)
    weight = read_parameter(layer)
    if weight is None and isinstance(module, nn.MultiheadAttention):
        raise LayerError(
            "attention with kdim or vdim stores separate query, key and value weights, which are not supported; its "
            "output projection is"
        )
    if weight is None:
        computed = isinstance(getattr(module, name, None), torch.Tensor)
        reason = "is computed from other parameters (parametrized)" if computed else "is missing"
        raise LayerError(f"its parameter {name!r} {reason}")
    if isinstance(weight, nn.UninitializedParameter):
        raise LayerError("its weight has no shape before the first batch; run one batch through the model first")
    if (misfit := explain_type(weight)) is not None:
        raise LayerError(misfit)
    if not weight.is_floating_point():
        raise LayerError(f"its weight has dtype {weight.dtype}; patterns need floating point")
    if weight.layout != torch.strided:
        raise LayerError(f"its weight is stored as {weight.layout}; patterns need a dense tensor")
    if weight.dim() < 2:
        raise LayerError(
            f"its weight has shape {tuple(weight.shape)}; patterns need at least two axes. Prune before the model is "
            f"sharded"
        )
    return weight


def explain_type(weight: torch.Tensor, *, accepts_shards: bool = True) -> str | None:
    """Return why a weight of this type cannot be pruned; ``None``: it can.

    Args:
        weight: The weight.
        accepts_shards: Whether sharded weights (DTensor) can be pruned.

    Examples:
        >>> explain_type(torch.ones(2)) is None
        True
    """
    if is_plain_tensor(weight):
        return None
    if accepts_shards and is_sharded(weight):
        return ShardLayout.explain_misfit(weight)
    return (
        f"its weight is a {type(weight).__name__}; patterns need a plain tensor. Prune before the model is sharded or "
        f"quantized"
    )


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether torch's own operators read and write the memory of a tensor.

    Tensors that are sharded (DTensor) or quantized (torchao, bitsandbytes) belong to classes with operators of their
    own. A subclass of `torch.nn.Parameter` that only adds attributes is plain.

    Examples:
        >>> class Sharded(torch.Tensor): ...
        >>> is_plain_tensor(nn.Parameter(torch.ones(2)))
        True
        >>> is_plain_tensor(torch.ones(2).as_subclass(Sharded))
        False
    """
    kind = type(tensor)
    if kind in (torch.Tensor, nn.Parameter):
        return True
    return (
        issubclass(kind, nn.Parameter)
        and kind.__torch_function__ is nn.Parameter.__torch_function__
        and kind.__torch_dispatch__ is nn.Parameter.__torch_dispatch__
    )


def read_parameter(layer: nn.Module | OwnedWeight) -> nn.Parameter | None:
    """Return the parameter of a layer's weight; ``None`` if its weight is not a parameter."""
    module = layer.module if isinstance(layer, OwnedWeight) else layer
    return module._parameters.get(get_weight_name(layer))


def get_type_names(module: nn.Module | OwnedWeight) -> tuple[str, ...]:
    """Return the type names by which a configuration can select a layer, most specific first; empty if unsupported."""
    if isinstance(module, StackedWeight):
        return get_class_name(module.module), "Linear"
    if isinstance(module, OwnedWeight):
        return (get_class_name(module.module),)
    kind = get_class_name(module)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return kind, "Conv"
    if isinstance(module, (nn.Linear, nn.MultiheadAttention)) or is_transformers_conv1d(module):
        return kind, "Linear"
    return ()


def get_class_name(module: object) -> str:
    """Return the name of a module's class, or of its original class under ``fully_shard``, which derives another one.

    Examples:
        >>> class FSDPModule: ...
        >>> class FSDPLinear(FSDPModule, nn.Linear): ...
        >>> get_class_name(FSDPLinear(2, 2))
        'Linear'
    """
    names = [kind.__name__ for kind in type(module).__mro__]
    return names[2] if names[1:2] == ["FSDPModule"] else names[0]


def get_weight_name(module: nn.Module | OwnedWeight) -> str:
    """Return the name of the parameter that is pruned, in its module."""
    if isinstance(module, OwnedWeight):
        return module.name
    return "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"


def get_parameter_name(name: str, layer: nn.Module | OwnedWeight) -> str:
    """Return the name in the model of the parameter that is pruned in a layer.

    Args:
        name: Name of the layer.
        layer: The layer.
    """
    return name if isinstance(layer, OwnedWeight) else f"{name}.{get_weight_name(layer)}".lstrip(".")


def is_transformers_conv1d(module: nn.Module) -> bool:
    """Whether this is the ``Conv1D`` of transformers, a linear layer that stores its weight transposed (GPT-2)."""
    return any(
        base.__name__ == "Conv1D" and base.__module__ == "transformers.pytorch_utils" for base in type(module).__mro__
    )
