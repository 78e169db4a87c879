"""The weights of a torch model that optimizers train and a pruner prunes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from secateur._array import count_true, to_numpy
from secateur._wording import format_list
from secateur.distributed.pytorch.shards import get_local
from secateur.errors import LayerError
from secateur.frameworks.pytorch import (
    OwnedWeight,
    apply_mask,
    find_owned_weights,
    find_stacked_weights,
    get_layer,
    get_parameter,
    is_plain_tensor,
    read_canonical,
    read_parameter,
)
from secateur.masking.pytorch import ParameterWeight
from secateur.patterns import BasePattern
from secateur.planning.planner import Plan

__all__ = ["ManualOptimizer", "ParameterSlot", "TrainedParameter", "apply_where_possible", "find_slots"]


class ManualOptimizer:
    """Stands in for the optimizer of a loop that announces its steps.

    Args:
        parameters: The parameters that the loop trains.
        learning_rate: Their learning rate until a torch optimizer takes a step; ``None``: they have no rates.

    Attributes:
        param_groups: One group for each parameter, as in an optimizer.
        has_rates: Whether they have learning rates.
    """

    def __init__(self, parameters: Iterable[Any], learning_rate: float | None = None) -> None:
        self.has_rates = learning_rate is not None
        self.param_groups: list[dict[str, Any]] = [
            {"params": [parameter], "lr": learning_rate} for parameter in parameters
        ]

    def adopt_rates(self, optimizer: Optimizer) -> None:
        """Adopt the learning rates of an optimizer that has made a step, for the parameters that it trains."""
        if not self.has_rates:
            return
        groups = [group for group in optimizer.param_groups if "lr" in group]
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        for group in self.param_groups:
            group["lr"] = rates.get(id(group["params"][0]), group["lr"])


class ParameterSlot:
    """The optimizers that have a parameter. Steps of the first one count for it.

    Args:
        parameter: The parameter.
    """

    def __init__(self, parameter: Any) -> None:
        self.parameter = parameter
        self.optimizers: list[Any] = []

    def add(self, optimizer: Any) -> None:
        """Add an optimizer unless it is already there."""
        if not any(known is optimizer for known in self.optimizers):
            self.optimizers.append(optimizer)

    @property
    def optimizer(self) -> Any:
        """The optimizer whose steps count for the parameter; ``None``: no optimizer has it."""
        return self.optimizers[0] if self.optimizers else None

    def read_learning_rate(self) -> Any:
        """Return the current learning rate of the parameter, or ``None`` if there is none."""
        # Search each time, because optimizer.load_state_dict replaces the groups.
        for group in self.optimizer.param_groups:
            if any(other is self.parameter for other in group["params"]):
                return group.get("lr")
        return None


class TrainedParameter(ParameterWeight):
    """A pruned weight that an optimizer trains.

    Attributes:
        slot: Its optimizers.
        siblings: The weights of other pruners for the same parameter, whose zeros this one keeps as well.
        gradient_sum: Sum of the gradients that `add_gradient` has added, in the shape of `stored`; ``None``: none.
    """

    def __init__(self, name: str, pattern: BasePattern, slot: ParameterSlot) -> None:
        super().__init__(name, pattern)
        self.slot = slot
        # Weak references, because a pruner that is no longer reachable has ended.
        self.siblings: WeakSet[TrainedParameter] = WeakSet()
        self.gradient_sum: torch.Tensor | None = None
        self._path = name  # name of the layer in the model, which may change

    def read_gradient(self) -> torch.Tensor | None:
        """Return the gradient as an (O, K, I) array without a loss scale; ``None`` if there is none."""
        gradient = self._read_stored_gradient()
        return None if gradient is None else self.read_tensor(gradient)

    def add_gradient(self, dtype: torch.dtype) -> None:
        """Add the gradient of a step, if there is one, to `gradient_sum`, in new memory.

        Args:
            dtype: Data type of the sum.
        """
        gradient = self._read_stored_gradient()
        if gradient is not None:
            total = gradient if self.gradient_sum is None else self.gradient_sum.to(gradient) + gradient
            self.gradient_sum = total.to(dtype, copy=self.gradient_sum is None)

    def read_gradient_sum(self) -> torch.Tensor | None:
        """Return `gradient_sum` as an (O, K, I) tensor of at least float32."""
        return None if self.gradient_sum is None else self.read_tensor(self.gradient_sum)

    def show_gradient_sum(self, dtype: torch.dtype) -> torch.Tensor:
        """Return a copy of `gradient_sum`, of type `dtype`; zeros if there is none."""
        return torch.zeros_like(self.stored, dtype=dtype) if self.gradient_sum is None else self.gradient_sum.clone()

    def load_gradient_sum(self, total: torch.Tensor | None) -> None:
        """Set `gradient_sum` to a copy."""
        self.gradient_sum = None if total is None else total.detach().clone().to(self.stored.device)

    def _read_stored_gradient(self) -> torch.Tensor | None:
        """Return the gradient of at least float32, in the shape of `stored`, without a loss scale."""
        if self.parameter.grad is None:
            return None
        gradient = get_local(self.parameter.grad)
        gradient = gradient if gradient.layout == torch.strided else gradient.to_dense()
        if gradient.dtype in (torch.float16, torch.bfloat16):
            gradient = gradient.float()
        # Fused optimizers unscale gradients themselves, after this.
        scale = getattr(self.slot.optimizer, "grad_scale", None)
        return gradient if scale is None else gradient / scale

    def read_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the shape of the parameter as an (O, K, I) tensor of at least float32."""
        return read_canonical(tensor, self.view)

    def read_gradient_memory(self) -> torch.Tensor | None:
        """Return the gradient as stored; ``None`` if there is none."""
        return self.parameter.grad

    def show_mask(self) -> torch.Tensor:
        """Return a copy of the mask in the shape of the parameter."""
        if self.mask is None:
            return torch.ones_like(self.parameter, dtype=torch.bool)
        return self.mask.clone()

    def count_pruned(self) -> int:
        """Count the weights that the mask prunes."""
        return 0 if self.mask is None else math.prod(self.shape) - self.count_kept()

    def load_mask(self, mask: torch.Tensor | None) -> None:
        """Set the mask to a copy of what `show_mask` returned; ``None``: nothing is pruned yet."""
        self.mask = None if mask is None else torch.from_numpy(to_numpy(mask).copy()).to(self.parameter.device)

    def apply_to(self, copied: torch.Tensor) -> None:
        """Set pruned weights to zero in a copy of the parameter."""
        if self.mask is not None:
            apply_mask(copied.detach(), self.mask)

    def find_problem(self, model: nn.Module) -> str | None:
        """Return why the run cannot continue with this weight, such as that it was replaced; ``None`` if it can."""
        if not self._is_in(model):
            try:
                layer = get_layer(model, self.name)
            except AttributeError:
                return "it is no longer in the model"
            if (weight := read_parameter(layer)) is None:
                return "its weight is no longer a parameter of the layer"
            kind = type(weight).__name__
            how = "" if is_plain_tensor(weight) else f" but a {kind}, as after sharding or quantization"
            return f"its weight is not the parameter that was pruned{how}"
        return self._find_problem_of_values()

    def _is_in(self, model: nn.Module) -> bool:
        """Whether the parameter is the weight of a layer in the model, possibly under another name, as in a wrapper."""
        try:
            if self._is_weight_of(get_layer(model, self._path)):
                return True
        except AttributeError:
            pass
        for path, module in model.named_modules():
            owned = find_owned_weights(module) | find_stacked_weights(module)
            layers = {f"{path}.{key}": weight for key, weight in owned.items()} | {path: module}
            if found := next((name for name, layer in layers.items() if self._is_weight_of(layer)), None):
                self._path = found
                return True
        return False

    def is_trained_by(self, optimizer: Any) -> bool:
        """Whether a step of an optimizer can change the weight."""
        known = self.slot.optimizers
        return optimizer in known or (not known and self.parameter.requires_grad)

    def _is_weight_of(self, layer: nn.Module | OwnedWeight) -> bool:
        return read_parameter(layer) is self.parameter

    def apply_mask(self) -> None:
        """Set pruned weights to zero, and those that siblings prune.

        Raises:
            LayerError: The shape of the parameter has changed, or it has no values.
        """
        if (problem := self._find_problem_of_values()) is not None:
            raise LayerError(f"layer {self.name!r}: {problem}. Its pruned weights cannot be set to zero.")
        super().apply_mask()
        for sibling in self.siblings:
            ParameterWeight.apply_mask(sibling)

    def count_free_zeros(self) -> int:
        """Count the zeros that neither this mask nor one of a sibling keeps."""
        free = self.stored == 0
        for weight in (self, *self.siblings):
            if weight.mask is not None:
                free &= weight.mask.to(free.device)
        return count_true(free)

    def has_revived(self) -> bool:
        """Whether any pruned weight is not zero."""
        return self.mask is not None and bool(self.stored[~self.mask.to(self.stored.device)].any())

    def mask_gradient(self) -> None:
        """Set the gradient of pruned weights to zero, so that optimizers that combine gradients leave them at zero."""
        gradient = self.read_gradient_memory()
        if self.mask is not None and gradient is not None and gradient.layout == torch.strided:
            apply_mask(gradient, self.mask)

    def clear_optimizer_state(self, mask: torch.Tensor) -> None:
        """Set the state of each weight that a new mask prunes or restores, such as its momentum, to zero."""
        if self.mask is None:
            return
        unchanged = self.mask.to(mask.device) == mask
        for optimizer in self.slot.optimizers:
            states = getattr(optimizer, "state", {})  # a loop that announces its steps has an optimizer of its own
            for value in states[self.parameter].values() if self.parameter in states else ():
                # Optimizers with 8-bit states store codes, and code 0 does not stand for zero.
                if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                    continue
                if (state := get_local(value)).shape == unchanged.shape:
                    apply_mask(state, unchanged)

    def _find_problem_of_values(self) -> str | None:
        shape, expected = tuple(self.parameter.shape), tuple(self.view.shape)
        if shape != expected:
            return f"its weight now has shape {shape}, but had {expected} when pruning started"
        if self.parameter.is_meta or self.parameter.layout != torch.strided or not self.parameter.is_floating_point():
            kind = (
                "on the meta device" if self.parameter.is_meta else f"{self.parameter.layout}, {self.parameter.dtype}"
            )
            return f"its weight is now {kind}, but must be a dense floating-point tensor"
        return None

    def shrink(self, factors: torch.Tensor) -> None:
        """Multiply the weight by (O, K, I) factors."""
        self.stored.mul_(self.view.to_stored(factors).to(self.parameter.dtype))


def apply_where_possible(weights: Iterable[TrainedParameter]) -> list[str]:
    """Set pruned weights to zero where possible; return the problems of the other layers."""
    problems = []
    for weight in weights:
        try:
            weight.apply_mask()
        except LayerError as error:
            problems.append(str(error))
    return problems


def find_slots(plan: Plan, optimizers: tuple[Optimizer | ManualOptimizer, ...]) -> dict[str, ParameterSlot]:
    """Find the optimizers of the weights to prune.

    Raises:
        LayerError: A weight is not in any optimizer.
    """
    slots: dict[int, ParameterSlot] = {}
    for optimizer in optimizers:
        for weight in (weight for group in optimizer.param_groups for weight in group["params"]):
            slots.setdefault(id(weight), ParameterSlot(weight)).add(optimizer)
    patterns = {name: pattern for pattern in plan.patterns for name in pattern.views}
    keys = {name: id(get_parameter(pattern.modules[name])) for name, pattern in patterns.items()}
    for name in keys:
        parameter = get_parameter(patterns[name].modules[name])
        if name in plan.dense or not parameter.requires_grad:  # a lock leaves them free, or verifies them
            slots.setdefault(id(parameter), ParameterSlot(parameter))
    if missing := [name for name, key in keys.items() if key not in slots]:
        raise LayerError(
            f"The optimizer does not have the weights of {len(missing)} of {len(keys)} layers to be pruned: "
            f"{format_list(map(repr, missing))}. Create it with the parameters of this model, or exclude the layers "
            f"with excluded_op_names."
        )
    return {name: slots[key] for name, key in keys.items()}
