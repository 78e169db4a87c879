"""Replace a module that was removed because its output is zero for any inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur._resizing.pytorch.blocks import Assign

__all__ = ["BranchLayout", "RemovedBranch", "list_arguments", "list_branches", "replace_modules"]

CACHES = ("past_key_values", "past_key_value", "layer_past")
"""Argument names of the key-value cache."""

OTHER_SEQUENCES = ("key_value_states", "encoder_hidden_states")
"""Arguments with another sequence to attend to, whose keys and values are not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchLayout:
    """Describes the output of a removed module.

    Attributes:
        input: Name of the argument whose shape and type the output has.
        outputs: Length of the tuple that the module returns, of which the output is the first and all others are
            ``None``; ``None``: it returns the output itself.
        axis: The axis along which the size of the output differs from that of the input, counted from the end, so
            negative; ``None``: none.
        size: The size along that axis.
        bias: Name of the parameter in the module to which the output is equal along the last axis; ``None``: it is
            zero.
    """

    input: str
    outputs: int | None = None
    axis: int | None = None
    size: int | None = None
    bias: str | None = None


class RemovedBranch(nn.Module):
    """Returns zeros, or a bias, at no cost, in the form of the removed module's output.

    If the module was an attention layer, it still counts tokens in the key-value cache, because models read the current
    length of the text from any layer.

    Args:
        module: The module to replace.
        layout: Describes its output.

    Raises:
        ValueError: The module has no such argument or parameter.

    Examples:
        >>> layout = BranchLayout(input="input", axis=-1, size=5)
        >>> branch = RemovedBranch(nn.Linear(3, 5), layout)
        >>> branch(torch.ones(2, 3)).shape
        torch.Size([2, 5])
    """

    bias: nn.Parameter | None

    def __init__(self, module: nn.Module, layout: BranchLayout) -> None:
        super().__init__()
        names = list_arguments(module)
        if layout.input not in names:
            raise ValueError(f"{type(module).__name__} has no argument {layout.input!r}")
        self.layout = layout
        self.position = names.index(layout.input)
        self.cache = next((name for name in CACHES if name in names), None)
        self.cache_position = names.index(self.cache) if self.cache is not None else -1
        self.layer_idx = getattr(module, "layer_idx", None)
        self.register_parameter("bias", _get_bias(module, layout.bias))
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the module that was removed."""
        layout = self.layout
        source = kwargs[layout.input] if layout.input in kwargs else args[self.position]
        output = torch.zeros_like(source)
        if layout.axis is not None:
            shape = [*source.shape]
            is_broadcast = self.bias is not None and layout.axis == -1
            shape[layout.axis] = 1 if is_broadcast else layout.size
            output = source.new_zeros(shape)
        if self.bias is not None:
            output = output + self.bias
        if self.cache is not None and self.layer_idx is not None:
            self._count_tokens(source, args, kwargs)
        return output if layout.outputs is None else (output, *[None] * (layout.outputs - 1))

    def extra_repr(self) -> str:
        """Show the size of the output if it is not that of the input."""
        return "" if self.layout.axis is None else f"axis={self.layout.axis}, size={self.layout.size}"

    def _count_tokens(self, source: torch.Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Append keys and values of size 1 to the cache, whose length is their number."""
        cache = args[self.cache_position] if self.cache_position < len(args) else kwargs.get(self.cache or "")
        if cache is None or any(kwargs.get(name) is not None for name in OTHER_SEQUENCES):
            return
        tokens = source.new_zeros(source.shape[0], 1, source.shape[1], 1)
        getattr(cache, "self_attention_cache", cache).update(tokens, tokens, self.layer_idx)


def list_arguments(module: nn.Module) -> list[str]:
    """Return the names of the arguments of a module that it accepts by position or by name, in their order."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    parameters = inspect.signature(module.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def list_branches(model: nn.Module) -> dict[str, BranchLayout]:
    """Return the modules of a model that were removed.

    Examples:
        >>> list_branches(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        {}
    """
    return {name: module.layout for name, module in model.named_modules() if isinstance(module, RemovedBranch)}


def replace_modules(model: nn.Module, layouts: Mapping[str, BranchLayout], assign: Assign) -> None:
    """Replace modules, under all their names, by ones that return the same output at no cost.

    Args:
        model: The model.
        layouts: Name of a module → the layout of its output.
        assign: Makes the changes.

    Raises:
        ValueError: A module has no such argument or parameter.
        AttributeError: The model has no such module.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_modules(
        ...     model, {"0": BranchLayout(input="input")}, dict.__setitem__
        ... )
        >>> list_branches(model)["0"].input
        'input'
    """
    new = {id(model.get_submodule(name)): RemovedBranch(model.get_submodule(name), layouts[name]) for name in layouts}
    for owner in [*model.modules()]:
        for key, module in [*owner._modules.items()]:
            if id(module) in new:
                assign(owner._modules, key, new[id(module)])


def _get_bias(module: nn.Module, name: str | None) -> nn.Parameter | None:
    if name is None:
        return None
    parameter = dict(module.named_parameters(remove_duplicate=False)).get(name)
    if parameter is None:
        raise ValueError(f"{type(module).__name__} has no parameter {name!r}")
    return parameter
