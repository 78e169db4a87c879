"""The weights of a torch model that are pruned while optimizers train them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from secateur._wording import format_list
from secateur.errors import LayerError
from secateur.frameworks.pytorch import get_parameter, get_weight_name, read_canonical
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.run import refuse_nan
from secateur.patterns import BasePattern
from secateur.planning.planner import Plan

__all__ = ["ManualOptimizer", "ParameterSlot", "TrainedParameter", "find_weights"]


class ManualOptimizer:
    """Whoever announces the steps of a run that knows no optimizer; stands where that would stand.

    Args:
        parameters: What counts as trained.
    """

    def __init__(self, parameters: Iterable[Any]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters)}]


class ParameterSlot:
    """The optimizers that hold a parameter; the first counts as its own.

    Args:
        held: The parameter.
    """

    def __init__(self, held: Any) -> None:
        self.held = held
        self.optimizers: list[Any] = []

    def add(self, optimizer: Any) -> None:
        """Note another optimizer, once."""
        if not any(holder is optimizer for holder in self.optimizers):
            self.optimizers.append(optimizer)

    @property
    def optimizer(self) -> Any:
        """Its own optimizer."""
        return self.optimizers[0]

    def read_learning_rate(self) -> Any:
        """The learning rate of the parameter's group, as it is now; ``None``: there is none."""
        # Looked up each time: optimizer.load_state_dict replaces the groups.
        groups = self.optimizer.param_groups
        return next((group.get("lr") for group in groups if any(held is self.held for held in group["params"])), None)


class TrainedParameter(ParameterWeight):
    """A pruned weight that an optimizer trains. See `TrainedWeight`."""

    def __init__(self, name: str, pattern: BasePattern, slot: ParameterSlot) -> None:
        super().__init__(name, pattern)
        self.slot = slot
        self._path = name  # where the layer was last seen in the model

    def gradient(self) -> torch.Tensor | None:
        """See `TrainedWeight.gradient`."""
        if self.parameter.grad is None:
            return None
        gradient = self.parameter.grad.detach()
        gradient = read_canonical(gradient if gradient.layout == torch.strided else gradient.to_dense(), self.view)
        # A fused optimizer unscales by itself, after this.
        scale = getattr(self.slot.optimizer, "grad_scale", None)
        return gradient if scale is None else gradient / scale

    def problem(self, model: nn.Module) -> str | None:
        """Why the run cannot go on with this weight, such as that the model has another one in its place by now."""
        if not self._is_in(model):
            try:
                module = model.get_submodule(self.name)
            except AttributeError:
                return "it is not in the model any more"
            if module._parameters.get(get_weight_name(module)) is None:
                return "its weight is not a parameter of it any more"
            return "its weight is another parameter than the one that was pruned"
        return self._problem_of_values()

    def _is_in(self, model: nn.Module) -> bool:
        """Whether the parameter is a layer's weight in the model, if under another name, such as in a wrapper."""
        try:
            module = model.get_submodule(self._path)
        except AttributeError:
            pass
        else:
            if module._parameters.get(get_weight_name(module)) is self.parameter:
                return True
        for path, module in model.named_modules():
            if module._parameters.get(get_weight_name(module)) is self.parameter:
                self._path = path
                return True
        return False

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes.

        Raises:
            LayerError: The parameter has another shape by now, or no values.
        """
        if (problem := self._problem_of_values()) is not None:
            raise LayerError(f"layer {self.name!r}: {problem}. Its pruned weights cannot be set to zero.")
        super().apply_mask()

    def _problem_of_values(self) -> str | None:
        shape, expected = tuple(self.parameter.shape), tuple(self.view.shape)
        if shape != expected:
            return f"its weight has shape {shape} now, and had {expected} when pruning began"
        if self.parameter.is_meta or self.parameter.layout != torch.strided or not self.parameter.is_floating_point():
            kind = (
                "on the meta device" if self.parameter.is_meta else f"{self.parameter.layout}, {self.parameter.dtype}"
            )
            return f"its weight is {kind} now, and must be a dense tensor of floating-point numbers"
        return None

    def shrink(self, factors: torch.Tensor) -> None:
        """See `TrainedWeight.shrink`."""
        self.stored.mul_(self.view.to_stored(factors).to(self.parameter.dtype))


def find_weights(plan: Plan, optimizers: tuple[Optimizer | ManualOptimizer, ...]) -> dict[str, TrainedParameter]:
    """The weights to be pruned, each with the optimizer that holds it.

    Raises:
        LayerError: No optimizer holds a weight.
        ScoreError: A weight has ``nan``.
    """
    slots: dict[int, ParameterSlot] = {}
    for optimizer in optimizers:
        for held in (held for group in optimizer.param_groups for held in group["params"]):
            slots.setdefault(id(held), ParameterSlot(held)).add(optimizer)
    patterns = {name: pattern for pattern in plan.patterns for name in pattern.views}
    keys = {name: id(get_parameter(pattern.modules[name])) for name, pattern in patterns.items()}
    if missing := [name for name, key in keys.items() if key not in slots]:
        raise LayerError(
            f"The optimizer does not hold the weights of {len(missing)} of {len(keys)} layers to be pruned: "
            f"{format_list(map(repr, missing))}. Build it from the parameters of this very model, or leave "
            f"the layers out with excluded_op_names."
        )
    weights = {name: TrainedParameter(name, pattern, slots[keys[name]]) for name, pattern in patterns.items()}
    refuse_nan(weights)
    return weights
