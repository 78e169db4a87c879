"""Optimizers that wrap another optimizer, which takes the steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from secateur.distributed.pytorch.rank_groups import RankGroups
from secateur.distributed.pytorch.shards import get_local, is_sharded
from secateur.errors import ConfigError, LayerError, UnsupportedModelError
from secateur.training.pytorch.weight import TrainedParameter

__all__ = [
    "changes_weights",
    "mask_gradients",
    "refuse_closure",
    "refuse_gradient_masks",
    "skips_step",
    "unwrap_optimizer",
]


def unwrap_optimizer(optimizer: Any) -> list[Any]:
    """Return the wrappers of an optimizer, the outermost first, and at the end the optimizer that takes the steps.

    Examples:
        >>> import torch
        >>> class Wrapper:
        ...     optimizer = torch.optim.SGD([torch.ones(1)])
        >>> [type(part).__name__ for part in unwrap_optimizer(Wrapper())]
        ['Wrapper', 'SGD']
    """
    chain = [optimizer]
    while (inner := _find_inner_optimizer(chain)) is not None:
        chain.append(inner)
    if not isinstance(chain[-1], Optimizer):
        raise UnsupportedModelError(f"optimizer must be a torch.optim.Optimizer, found {type(optimizer).__name__}.")
    return chain


def changes_weights(wrapper: Any) -> bool:
    """Whether a wrapper is an optimizer itself, which may change weights outside the steps of the inner one.

    Wrappers of training frameworks only have the type of an optimizer.
    """
    return isinstance(wrapper, Optimizer) and "_optimizer_step_post_hooks" in vars(wrapper)


def _initializes_state(optimizer: Any, groups: RankGroups) -> bool:
    """Whether a step only creates the state of an optimizer, before a checkpoint is loaded into it.

    ``torch.distributed.checkpoint.state_dict`` makes such steps, with learning rates and gradients of zero.

    Args:
        optimizer: The optimizer, before the step.
        groups: The processes that share its parameters, which call this together.
    """
    if not isinstance(optimizer, Optimizer) or optimizer.state:
        return False
    if any(float(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    gradients = [weight.grad for group in optimizer.param_groups for weight in group["params"]]
    moves = any(gradient is None or bool(get_local(gradient).any()) for gradient in gradients)
    return not groups.merge({"moves": ""} if moves else {})


def skips_step(optimizer: Any, groups: RankGroups) -> bool:
    """Whether a step that an optimizer begins does not count, because it does not change weights.

    Fused optimizers receive the loss scale and skip steps themselves; `GradScaler` skips those of others. And before a
    checkpoint is loaded into an optimizer, a step creates its state; the model may have the weights of the checkpoint
    already.

    Args:
        optimizer: The optimizer, before the step.
        groups: The processes that share its parameters, which call this together.

    Examples:
        >>> skips_step(torch.optim.SGD([torch.ones(1)], lr=0.1), RankGroups([]))
        False
    """
    overflow = getattr(optimizer, "found_inf", None)
    has_overflow = overflow is not None and bool(get_local(overflow).item())
    return has_overflow or _initializes_state(optimizer, groups)


def mask_gradients(weights: Iterable[TrainedParameter], wrappers: Iterable[Any]) -> list[Any]:
    """Add hooks that set gradients of pruned weights to zero if a wrapper changes weights, and return the hooks.

    Moves along the gradient between two backward passes, as in SAM, then leave pruned weights at zero.
    """
    if not any(map(changes_weights, wrappers)):
        return []
    trained = [weight for weight in weights if weight.parameter.requires_grad]
    for weight in (weight for weight in trained if is_sharded(weight.parameter)):
        raise LayerError(
            f"layer {weight.name!r}: its weight is sharded, so an optimizer around another one that moves weights "
            f"between two backward passes is not supported. Pass a plain optimizer."
        )
    return [weight.parameter.register_post_accumulate_grad_hook(_make_hook(weight)) for weight in trained]


def refuse_gradient_masks(wrappers: Iterable[Any], kinds: Iterable[str]) -> None:
    """Raise `ConfigError` if a kind of run needs gradients that `mask_gradients` sets to zero."""
    needing = sorted({"rigl", "sr_ste"} & set(kinds))
    for wrapper in filter(changes_weights, wrappers):
        if needing:
            raise ConfigError(
                f"kind={needing[0]!r} needs the gradients of pruned weights, which must be zero for an optimizer "
                f"around another one, such as {type(wrapper).__name__}. Pass a plain optimizer, or use kind='set'."
            )


def refuse_closure(kinds: Iterable[str]) -> None:
    """Raise `ConfigError` if a kind of run does not support steps with a closure."""
    if "sr_ste" in kinds:
        raise ConfigError(
            "kind='sr_ste' does not support optimizer.step(closure), because the closure computes gradients within "
            "the step, in which pruned weights are not zero. Call backward before step, or use kind='rigl'."
        )


def _make_hook(weight: TrainedParameter) -> Callable[[torch.Tensor], None]:
    reference = weakref.ref(weight)  # the parameter must not keep the optimizer, and with it the pruner, alive

    def mask_gradient(_: torch.Tensor) -> None:
        if (alive := reference()) is not None:
            alive.mask_gradient()

    return mask_gradient


def _find_inner_optimizer(chain: Sequence[Any]) -> Optimizer | None:
    """Return the optimizer in an attribute of the last wrapper, with every weight of it, and not in the chain."""
    wrapper = chain[-1]
    named = getattr(wrapper, "optimizer", None)
    parts = [named, *getattr(wrapper, "__dict__", {}).values()]
    inner = [part for part in parts if isinstance(part, Optimizer) and all(part is not known for known in chain)]
    mine = _get_weight_ids(wrapper) if changes_weights(wrapper) else set()
    return next((part for part in inner if mine <= _get_weight_ids(part)), None)


def _get_weight_ids(optimizer: Optimizer) -> set[int]:
    return {id(weight) for group in getattr(optimizer, "param_groups", []) for weight in group["params"]}
