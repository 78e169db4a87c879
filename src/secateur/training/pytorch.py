"""Pruning while a torch model trains, through the optimizer's own hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import count
from types import TracebackType
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from secateur._array import clear_outside
from secateur._wording import listed
from secateur.config import PruningConfig
from secateur.errors import LayerError, StateError, UnsupportedModelError
from secateur.patterns import BasePattern
from secateur.patterns.pytorch import parameter, weight_name
from secateur.planning.pytorch import plan as plan_torch
from secateur.planning.pytorch import unwrapped
from secateur.planning.resolve import Plan
from secateur.training.checks import (
    refuse_nan,
    refuse_regularizer,
    refuse_violations,
    warn_of_haste,
    warn_of_zeros,
)
from secateur.training.holders import Caller, ParameterHome
from secateur.training.hooked import HookedRun
from secateur.training.result import PruningReport
from secateur.training.run import report_on
from secateur.training.state import FORMAT_VERSION, check_state

__all__ = ["ParameterWeight", "Pruner", "prepare", "prepare_by_hand"]

logger = logging.getLogger(__name__)

PRUNERS: WeakKeyDictionary[Optimizer, WeakSet[Pruner]] = WeakKeyDictionary()
"""Who acts on an optimizer, so that no two prune the same weight."""


def prepare(
    model: nn.Module,
    config: PruningConfig | Mapping[str, Any],
    *,
    optimizer: Optimizer | Iterable[Optimizer],
) -> Pruner:
    """See `secateur.prepare`."""
    given = tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,)
    return Pruner(model, plan_torch(model, config), tuple(_own_optimizer(found) for found in given))


def prepare_by_hand(model: nn.Module, config: PruningConfig | Mapping[str, Any]) -> Pruner:
    """Have a torch model pruned by a loop whose optimizer cannot be got at.

    Such a loop calls `Pruner.before_step` and `Pruner.after_step` around each step of the optimizer. Else it is as with
    `secateur.prepare`, but that there is no group lasso, whose strength goes with a learning rate, and that gradients
    must be free of a loss scale when `Pruner.before_step` is called.

    Args:
        model: A torch module, compiled or not.
        config: A `PruningConfig`, or a plain mapping with the same keys.

    Raises:
        SecateurError: As `secateur.prepare`; or the configuration asks for group lasso.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = PruningConfig(pattern="4x1", target_sparsity=0.5, end_step=20)
        >>> pruner = prepare_by_hand(model, config)
        >>> for step in range(30):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     pruner.before_step()
        ...     optimizer.step()
        ...     pruner.after_step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """
    return Pruner(model, plan_torch(model, config), None)


def _own_optimizer(found: Any) -> Optimizer:
    """The optimizer inside the wrappers that training frameworks put around it."""
    while isinstance(inner := getattr(found, "optimizer", None), Optimizer):
        found = inner
    if not isinstance(found, Optimizer):
        raise UnsupportedModelError(f"optimizer must be a torch.optim.Optimizer, found {type(found).__name__}.")
    return found


class ParameterWeight:
    """One pruned weight: the parameter, how to look at it, and its mask. See `HeldWeight`.

    Raises:
        LayerError: The parameter is on the meta device.
    """

    def __init__(self, name: str, pattern: BasePattern) -> None:
        self.name = name
        self.parameter = parameter(pattern.modules[name])
        self.view = pattern.views[name]
        self.mask: torch.Tensor | None = None
        if self.parameter.is_meta:
            raise LayerError(f"layer {name!r}: its weight is on the meta device and has no values yet. Load it first.")

    @property
    def stored(self) -> torch.Tensor:
        """The weight itself, detached from autograd."""
        return self.parameter.detach()

    def canonical(self) -> torch.Tensor:
        """The weight as an (O, K, I) tensor of at least float32."""
        return self._canonical(self.stored)

    def apply_mask(self) -> None:
        """Set to zero what the mask prunes."""
        if self.mask is not None:
            self.mask = zero_out(self.stored, self.mask)

    def _canonical(self, tensor: torch.Tensor) -> torch.Tensor:
        wide: torch.Tensor = self.view.canonical(tensor)
        return wide.float() if wide.dtype in (torch.float16, torch.bfloat16) else wide


class _Weight(ParameterWeight):
    """A pruned weight that an optimizer trains. See `TrainedWeight`."""

    def __init__(self, name: str, pattern: BasePattern, home: ParameterHome) -> None:
        super().__init__(name, pattern)
        self.home = home

    def gradient(self) -> torch.Tensor | None:
        if self.parameter.grad is None:
            return None
        gradient = self._canonical(self.parameter.grad.detach())
        # A fused optimizer unscales by itself, after this.
        scale = getattr(self.home.optimizer, "grad_scale", None)
        return gradient if scale is None else gradient / scale

    def is_in(self, model: nn.Module) -> bool:
        """Whether the model's layer of this name still has this very parameter."""
        try:
            module = model.get_submodule(self.name)
        except AttributeError:
            return False
        return module._parameters.get(weight_name(module)) is self.parameter

    def shrink(self, factors: torch.Tensor) -> None:
        self.stored.mul_(self.view.stored(factors).to(self.parameter.dtype))


def zero_out(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Set `weight` to zero where `mask` is ``False``; returns the mask on the weight's device."""
    mask = mask.to(weight.device)
    clear_outside(weight, mask)
    return mask


class Pruner:
    """Keeps a model on its way to sparsity: masks after every optimizer step, new masks when they are due.

    It touches the model's weights and nothing else: copies, pickles, checkpoints and compiled versions of the model
    are those of an ordinary model. Make one with `secateur.prepare`.

    Attributes:
        model: The model.
        plan: Which layers are pruned and how.
        step: Optimizer steps taken since `secateur.prepare`.
    """

    def __init__(self, model: nn.Module, plan: Plan, optimizers: tuple[Optimizer, ...] | None) -> None:
        self.model = unwrapped(model)
        self.plan = plan
        self.step = 0
        steppers: tuple[Optimizer | Caller, ...] = (
            (Caller(self.model.parameters()),) if optimizers is None else optimizers
        )
        self._weights = _find_weights(plan, steppers)
        # An optimizer that holds none of the pruned weights has no say in what counts as a step.
        self._optimizers = tuple(
            dict.fromkeys(optimizer for weight in self._weights.values() for optimizer in weight.home.holders)
        )
        self._steps = [0] * len(self._optimizers)
        self._skips = [False] * len(self._optimizers)
        self._refuse_overlap()
        self._runs = [HookedRun(pattern, self._weights) for pattern in plan.patterns if pattern.views]
        self._is_announced = False
        if optimizers is None:
            refuse_regularizer(self._runs)
        warn_of_haste(self._runs)
        warn_of_zeros(self._runs)
        own = [optimizer for optimizer in self._optimizers if isinstance(optimizer, Optimizer)]
        self._hooks = [optimizer.register_step_pre_hook(self._before_step) for optimizer in own]
        self._hooks += [optimizer.register_step_post_hook(self._after_step) for optimizer in own]
        self._is_active = True
        for optimizer in own:
            PRUNERS.setdefault(optimizer, WeakSet()).add(self)
        with ExitStack() as undo:
            undo.callback(self.close)
            self._start()
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the hooks off the optimizers; from then on nothing holds the zeros."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._is_active = False

    @property
    def is_active(self) -> bool:
        """Whether the pruner still acts on optimizer steps."""
        return self._is_active

    @property
    def needs_gradients(self) -> bool:
        """Whether a criterion of this run ranks by gradients."""
        return any(run.scores.needs_gradient and not run.group.is_locked for run in self._runs)

    def before_step(self) -> None:
        """Announce a step in a run made by `prepare_by_hand`: the gradients are ready.

        Raises:
            StateError: The run has an optimizer, which announces its steps itself; or it has ended; or a step was
                announced already and `after_step` was not called.
        """
        caller = self._need_caller()
        if self._is_announced:
            raise StateError(
                "before_step was called twice. Call after_step once the optimizer has made its step, before the next."
            )
        self._before_step(caller, (), {})
        self._is_announced = True

    def after_step(self) -> None:
        """Say that the announced step was made: pruned weights become zero again, and masks change if they are due.

        Where no criterion ranks by gradients, `before_step` may be left out.

        Raises:
            StateError: The run has an optimizer, which announces its steps itself; or it has ended; or its criterion
                ranks by gradients and `before_step` was not called.
        """
        caller = self._need_caller()
        if self.needs_gradients and not self._is_announced:
            raise StateError(
                "before_step must be called between the backward pass and the optimizer's step: the criterion ranks "
                "by gradients. after_step was called without it."
            )
        self._is_announced = False
        self._after_step(caller)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer → booleans in the weight's shape, ``True`` = kept."""
        return {
            name: torch.ones_like(weight.parameter, dtype=torch.bool) if weight.mask is None else weight.mask.clone()
            for name, weight in self._weights.items()
        }

    @property
    def sparsity(self) -> float:
        """Share of weights pruned now, over all pruned layers."""
        return self.report().sparsity

    def apply_masks(self, model: nn.Module) -> None:
        """Set the pruned weights to zero in a copy of the model, such as an average of its weights (EMA, SWA).

        Raises:
            LayerError: A pruned layer is missing there or has another shape; nothing is changed then.
        """
        inner = unwrapped(model)
        targets = []
        for name, weight in self._weights.items():
            try:
                found = parameter(inner.get_submodule(name))
            except AttributeError as error:
                raise LayerError(f"layer {name!r} was pruned, and {type(inner).__name__} has no such layer.") from error
            except LayerError as error:
                raise LayerError(f"layer {name!r} was pruned, but in {type(inner).__name__} {error}.") from error
            if found.shape != weight.parameter.shape:
                raise LayerError(
                    f"layer {name!r} has shape {tuple(found.shape)}, the mask {tuple(weight.parameter.shape)}."
                )
            targets.append((found, weight.mask))
        for found, mask in targets:
            if mask is not None:
                zero_out(found.detach(), mask)

    def report(self) -> PruningReport:
        """What is pruned now."""
        return report_on(
            self._runs,
            dense=self.plan.dense,
            step=self.step,
            model_weights=sum(weight.numel() for weight in self.model.parameters()),
        )

    def finalize(self) -> PruningReport:
        """Verify every mask against its pattern and every pruned weight against zero, and end the run.

        The model stays as it is: an ordinary model with zeros. Later optimizer steps are free to change them.

        Returns:
            What was pruned, per layer and in all. Its `is_complete` is ``False`` if training ended before the target.

        Raises:
            StateError: The run has been finalized already, or masks and weights are not what they should be.
        """
        self._need_active()
        wrong = {name: reason for run in self._runs for name, reason in run.violations().items()}
        replaced = "its weight is another parameter than the one that was pruned"
        wrong |= {name: replaced for name, weight in self._weights.items() if not weight.is_in(self.model)}
        refuse_violations(wrong)
        report = self.report()
        report.warn_if_incomplete()
        self.close()
        return report

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to end with the same bits; tensors and plain values only."""
        return {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "optimizer_steps": list(self._steps),
            "runs": [run.state_dict() for run in self._runs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with a model of the same layers and the same configuration.

        Raises:
            StateError: The state is of another model, configuration or format, or this run has ended; nothing is
                changed then.
        """
        self._need_active()
        check_state(state, len(self._optimizers), len(self._runs))
        for run, saved in zip(self._runs, state["runs"], strict=True):
            run.check_state(saved)
        for run, saved in zip(self._runs, state["runs"], strict=True):
            run.load_state_dict(saved)
        self.step = state["step"]
        self._steps = list(state["optimizer_steps"])

    def _need_active(self) -> None:
        if not self.is_active:
            raise StateError("This pruner has been finalized or closed already. Call secateur.prepare for another run.")

    def _need_caller(self) -> Caller:
        self._need_active()
        if isinstance(caller := self._optimizers[0], Caller):
            return caller
        raise StateError(
            "before_step and after_step are for runs without an optimizer; this one follows the steps of its own. "
            "Leave the calls out, or make the run with secateur.training.pytorch.prepare_by_hand."
        )

    def _start(self) -> None:
        for run in self._runs:
            run.start()
        for weight in self._weights.values():
            weight.apply_mask()

    def _refuse_overlap(self) -> None:
        own = [optimizer for optimizer in self._optimizers if isinstance(optimizer, Optimizer)]
        others = [other for optimizer in own for other in PRUNERS.get(optimizer, ()) if other.is_active]
        mine = {id(weight.parameter): name for name, weight in self._weights.items()}
        theirs = {id(weight.parameter) for other in others for weight in other._weights.values()}
        if shared := [name for key, name in mine.items() if key in theirs]:
            raise StateError(
                f"Another pruner of this optimizer prunes {listed(map(repr, shared))} already. "
                f"Call its finalize() or close() first."
            )

    def _before_step(self, optimizer: Optimizer | Caller, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        index = self._optimizers.index(optimizer)
        # A fused optimizer is handed the loss scale and skips steps by itself; GradScaler skips the others.
        overflow = getattr(optimizer, "found_inf", None)
        self._skips[index] = overflow is not None and bool(overflow.item())
        if self._skips[index]:
            return None
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._gathering(optimizer, args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, kwargs | {"closure": self._gathering(optimizer, kwargs["closure"])}
        self._gather(optimizer)
        return None

    def _gathering(self, optimizer: Optimizer | Caller, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure; what its first call leaves in the gradients is taken in."""
        calls = count()

        def gathering_closure() -> Any:
            loss = closure()
            if next(calls) == 0:
                self._gather(optimizer)
            return loss

        return gathering_closure

    @torch.no_grad()
    def _gather(self, optimizer: Optimizer | Caller) -> None:
        for run in self._runs:
            run.gather(self.step + 1, optimizer)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer | Caller, *_: Any) -> None:
        index = self._optimizers.index(optimizer)
        if self._skips[index]:
            return
        self._steps[index] += 1
        for run in self._runs:
            run.regularize(self.step + 1, optimizer)
        self._apply(optimizer)
        if (step := min(self._steps)) > self.step:
            # All or none: an error in one run leaves the masks of the others as they were.
            changes = [run.masks_after(step) for run in self._runs]
            self.step = step
            for run, masks in zip(self._runs, changes, strict=True):
                run.set_masks(masks)
            if any(changes):
                self._apply(None)

    def _apply(self, optimizer: Optimizer | Caller | None) -> None:
        for weight in self._weights.values():
            if optimizer is None or optimizer in weight.home.holders:
                weight.apply_mask()


def _find_weights(plan: Plan, optimizers: tuple[Optimizer | Caller, ...]) -> dict[str, _Weight]:
    """The weights to be pruned, each with the optimizer that holds it.

    Raises:
        LayerError: No optimizer holds a weight.
        ScoreError: A weight has ``nan``.
    """
    homes: dict[int, ParameterHome] = {}
    for optimizer in optimizers:
        for held in (held for group in optimizer.param_groups for held in group["params"]):
            homes.setdefault(id(held), ParameterHome(held)).add(optimizer)
    patterns = {name: pattern for pattern in plan.patterns for name in pattern.views}
    keys = {name: id(parameter(pattern.modules[name])) for name, pattern in patterns.items()}
    if homeless := [name for name, key in keys.items() if key not in homes]:
        raise LayerError(
            f"The optimizer does not hold the weights of {len(homeless)} of {len(keys)} layers to be pruned: "
            f"{listed(map(repr, homeless))}. Build it from the parameters of this very model, or leave "
            f"the layers out with excluded_op_names."
        )
    weights = {name: _Weight(name, pattern, homes[keys[name]]) for name, pattern in patterns.items()}
    refuse_nan(weights)
    return weights
