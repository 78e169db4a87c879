"""The torch pruner, which applies and updates masks in hooks of the optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import nn
from torch.optim import Optimizer

from secateur._array import Array
from secateur.distributed.pytorch.rank_groups import RankGroups
from secateur.errors import LayerError, SecateurError, StateError
from secateur.frameworks.pytorch import unwrap_model
from secateur.masking.active import list_active
from secateur.masking.run import build_report, refuse_violations
from secateur.masking.run_options import RunOptions
from secateur.planning.planner import Plan
from secateur.results import PruningReport
from secateur.training.checks import (
    refuse_regularizer,
    warn_if_already_sparse,
    warn_if_no_zeros,
    warn_if_pruned_at_once,
)
from secateur.training.pytorch.active import add_active, remove_active
from secateur.training.pytorch.copies import find_copies
from secateur.training.pytorch.overlap import refuse_aliases, refuse_shared
from secateur.training.pytorch.run import Snapshot
from secateur.training.pytorch.sharded_run import make_run, unpack_state
from secateur.training.pytorch.siblings import link_siblings, unlink_siblings
from secateur.training.pytorch.state import check_state
from secateur.training.pytorch.watch import ChangeWatch, StepWatch
from secateur.training.pytorch.weight import ManualOptimizer, apply_where_possible
from secateur.training.pytorch.weight_set import WeightSet
from secateur.training.pytorch.wrappers import mask_gradients, refuse_closure, refuse_gradient_masks, skips_step
from secateur.training.resume import FORMAT_VERSION

__all__ = ["PytorchPruner"]

AnyOptimizer = Optimizer | ManualOptimizer


class _Update(NamedTuple):
    """The changes of one step.

    Attributes:
        steps: Number of steps of each optimizer, including this step.
        masks: For each run, layer → the new mask.
    """

    steps: list[int]
    masks: list[dict[str, Array]]


class PytorchPruner:
    """Prune a model while it trains: apply masks after every optimizer step, and update them when an update is due.

    A pruner changes only the weights of a model, so the model can be copied, pickled, saved and compiled as usual.
    Create a pruner with `secateur.prepare`.

    Attributes:
        model: The model.
        plan: Which layers are pruned, and how.
        step: Number of optimizer steps since `secateur.prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        optimizers: tuple[AnyOptimizer, ...],
        options: RunOptions | None,
        groups: RankGroups,
    ) -> None:
        self.model = unwrap_model(model)
        self.plan = plan
        self.step = options.steps_taken if options else 0
        self._weights = WeightSet.find(self.model, plan, optimizers, groups)
        self._groups = groups if self._weights.are_sharded else RankGroups([])
        # Steps of optimizers without pruned weights do not count.
        trained = (optimizer for weight in self._weights.values() for optimizer in weight.slot.optimizers)
        self._optimizers = tuple(dict.fromkeys(trained)) or optimizers  # a lock may only have frozen weights
        self._steps = [self.step] * len(self._optimizers)
        self._skips = [False] * len(self._optimizers)
        self._refuse_overlap()
        self._runs = [make_run(pattern, self._weights, options) for pattern in plan.patterns if pattern.views]
        self._is_active = self._is_announced = False
        # Optimizers in a step; snapshots of all runs before it; optimizers with an ended step inside a step.
        self._open: set[int] = set()
        self._snapshots_before: list[Snapshot] | None = None
        self._nested: set[int] = set()
        self._closure: Callable[[], Any] | None = None
        self._update: _Update | None = None
        if any(isinstance(optimizer, ManualOptimizer) and not optimizer.has_rates for optimizer in optimizers):
            refuse_regularizer(self._runs)
        warn_if_pruned_at_once(self._runs)
        warn_if_already_sparse(self._runs)

    @classmethod
    def start_together(cls, pruners: Sequence[Self], wrappers: Iterable[Any] = ()) -> None:
        """Start the runs of new pruners, which may share weights: a weight is zero where any of them prunes it.

        Args:
            pruners: The pruners, of the same model and optimizers.
            wrappers: Optimizers that wrap these optimizers.

        Raises:
            LayerError: Two of their weights are different parameters that share memory. In this case nothing is
                changed.
            ConfigError: A kind of run does not support the wrappers.
        """
        refuse_gradient_masks(wrappers, {run.config.kind for pruner in pruners for run in pruner._runs})
        link_siblings([pruner._weights for pruner in pruners])
        for pruner in pruners:
            pruner._start()
        for pruner in pruners:
            pruner._activate(wrappers)

    def _start(self) -> None:
        for run in self._runs:
            run.start()
        for name in self._weights.keys() & self.plan.dense.keys():  # a lock leaves them free
            self._weights[name].mask = None
        self._apply(None)
        warn_if_no_zeros(self._runs)

    def _activate(self, wrappers: Iterable[Any]) -> None:
        """Add the hooks, once every pruner that shares weights with this one has set its masks."""
        self._hooks = [*self._add_step_hooks(), *mask_gradients(self._weights.values(), wrappers)]
        self._step_watch = StepWatch(self._weights.values())
        self._change_watch = ChangeWatch(self._weights)
        self._is_active = True
        add_active(self)

    def _add_step_hooks(self) -> list[Any]:
        hooked = [optimizer for optimizer in self._optimizers if isinstance(optimizer, Optimizer)]
        # A compiled step calls the hooks, and does not trace them.
        before, after = torch.compiler.disable(self._before_step), torch.compiler.disable(self._after_step)
        hooks: list[Any] = [optimizer.register_step_pre_hook(before) for optimizer in hooked]
        return hooks + [optimizer.register_step_post_hook(after) for optimizer in hooked]

    def follow_other_step(self, optimizer: Optimizer) -> None:
        """Set pruned weights to zero after a step of an optimizer that was not passed to `secateur.prepare`.

        In a run whose steps are announced, only adopt its learning rates, and check that its weights are still there.
        """
        if optimizer in self._optimizers:
            return
        trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        if isinstance(caller := self._optimizers[0], ManualOptimizer):
            caller.adopt_rates(optimizer)
        else:
            for weight in self._weights.values():
                if id(weight.parameter) in trained:
                    weight.apply_mask()
            self._weights.refuse_moved(self._free_layers, optimizer)
        if any(id(weight) in trained for weight in self.model.parameters()):
            self._weights.refuse_changed(self._free_layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.close()
        except SecateurError as problem:
            if error is None:
                raise
            error.add_note(str(problem))

    def close(self) -> None:
        """Remove the hooks from the optimizers. If a step was interrupted, first set pruned weights to zero.

        Afterwards nothing keeps pruned weights at zero. A ``with`` block closes the pruner at its end, including after
        Ctrl-C in a step. Between steps, weights do not change, so that a checkpoint can be loaded.

        Raises:
            LayerError: A weight has changed its shape or has no values. Pruned weights of all other layers are zero.
        """
        if not self.is_active:
            return
        try:
            self._complete_update()
            problems = apply_where_possible(self._weights.values()) if self._may_lack_zeros() else []
        finally:
            self._detach()
        if problems:
            raise LayerError("\n".join(problems))

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._step_watch.stop()
        self._hooks = []
        self._is_active = False
        unlink_siblings(self._weights.values())
        remove_active(self)

    @property
    def is_active(self) -> bool:
        """Whether the run is active."""
        return self._is_active

    @property
    def needs_gradients(self) -> bool:
        """Whether this run ranks by gradients."""
        return any(run.needs_gradient for run in self._runs)

    def before_step(self) -> None:
        """Announce a step of a run without an optimizer, when the gradients are ready.

        Raises:
            StateError: The run has an optimizer with hooks, or has ended, or the previous call of `before_step` was not
                followed by `after_step`.
        """
        caller = self._require_manual_optimizer()
        if self._is_announced:
            raise StateError("before_step was called twice. Call after_step after each step of the optimizer.")
        self._before_step(caller, (), {})
        self._is_announced = True

    def after_step(self) -> None:
        """Announce the end of a step: set pruned weights to zero, and update masks if an update is due.

        If no criterion ranks by gradients, `before_step` can be omitted.

        Raises:
            StateError: The run has an optimizer with hooks, or has ended, or its criterion ranks by gradients and
                `before_step` was not called.
        """
        caller = self._require_manual_optimizer()
        if self.needs_gradients and not self._is_announced:
            raise StateError(
                "after_step was called without before_step. Call before_step between the backward pass and the step of "
                "the optimizer, because the criterion ranks by gradients."
            )
        if not self._is_announced:
            self._weights.refuse_changed(self._free_layers, caller)
            self._open, self._snapshots_before = {0}, self._take_snapshots()
        self._is_announced = False
        self._after_step(caller)

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """Layer → booleans in the weight's shape, ``True`` = kept; DTensors where the weight is sharded."""
        self._complete_update()
        free = self._free_layers
        return {name: weight.show_mask() for name, weight in self._weights.items() if name not in free}

    @property
    def sparsity(self) -> float:
        """Current share of pruned weights, over all pruned layers. If weights are sharded, all ranks must read it."""
        self._groups.check_lockstep("sparsity", self.step)
        self._complete_update()
        free = self._free_layers
        weights = [weight for name, weight in self._weights.items() if name not in free]
        pruned = sum(weight.count_pruned() for weight in weights)
        return pruned / sum(weight.parameter.numel() for weight in weights)

    def apply_masks(self, model: nn.Module | None = None) -> None:
        """Set pruned weights to zero in a copy of the model, such as an average of its weights (EMA, SWA).

        Without `model`, set them to zero in the pruned model.

        Raises:
            LayerError: A pruned layer is missing there or has a different shape. In this case nothing is changed.
        """
        self._complete_update()
        if model is None:
            self._apply(None)
            return
        for weight, copied in find_copies(self._weights, model):
            weight.apply_to(copied)

    def report(self) -> PruningReport:
        """Return a report on what is pruned now."""
        self._groups.check_lockstep("report()", self.step)
        self._complete_update()
        return build_report(
            self._runs,
            dense=self.plan.dense,
            step=self.step,
            model_weights=sum(weight.numel() for weight in self.model.parameters()),
        )

    def finalize(self) -> PruningReport:
        """Verify that masks follow their patterns and that pruned weights are zero, and end the run.

        The model is unchanged: an ordinary model with zeros, which later optimizer steps may change.

        Returns:
            A report for each layer and in total. `is_complete` is ``False`` if training ended before the target.

        Raises:
            StateError: The run has already ended, or masks or weights are invalid.
        """
        self._require_active()
        self._groups.check_lockstep("finalize()", self.step)
        refuse_violations(self._groups.merge(self._weights.find_problems(self._free_layers)))
        self._recover()
        problems = {name: reason for run in self._runs for name, reason in run.violations().items()}
        refuse_violations(self._groups.merge(problems))
        report = self.report()
        report.warn_if_incomplete()
        report.warn_of_nearly_empty_layers()
        self._detach()
        return report

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs to end bit-identically, as tensors and plain values."""
        self._groups.check_lockstep("state_dict()", self.step)
        self._complete_update()
        return {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "optimizer_steps": list(self._steps),
            "runs": [run.state_dict() for run in self._runs],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state that `state_dict` returned, with a model of the same layers and the same configuration.

        Raises:
            StateError: The state belongs to another model, configuration or format, or this run has ended. In these
                cases nothing is changed.
        """
        self._require_active()
        self._recover()
        state = unpack_state(state)
        check_state(state, len(self._optimizers), len(self._runs))
        for run, saved in zip(self._runs, state["runs"], strict=True):
            run.check_state(saved, state["step"])
        for run, saved in zip(self._runs, state["runs"], strict=True):
            run.load_state_dict(saved)
        self.step = state["step"]
        self._steps = list(state["optimizer_steps"])
        self._change_watch.accept_zeros()

    def _require_active(self) -> None:
        if not self.is_active:
            raise StateError("This pruner has already been finalized or closed. Call secateur.prepare for another run.")

    def _require_manual_optimizer(self) -> ManualOptimizer:
        self._require_active()
        if isinstance(caller := self._optimizers[0], ManualOptimizer):
            return caller
        raise StateError(
            "before_step and after_step are for runs without an optimizer, and this run has hooks in its optimizer. "
            "Remove the calls, or call secateur.prepare without an optimizer."
        )

    @property
    def _free_layers(self) -> set[str]:
        return {name for run in self._runs for name in run.free_layers}

    def _refuse_overlap(self) -> None:
        mine: dict[str, torch.Tensor] = {name: weight.parameter for name, weight in self._weights.items()}
        refuse_aliases(mine)
        refuse_shared(mine, lambda: [weight.parameter for other in list_active() for weight in other._weights.values()])

    def _before_step(self, optimizer: AnyOptimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._step_watch.stop()
        self._recover()
        index = self._optimizers.index(optimizer)
        self._skips[index] = skips_step(optimizer, self._groups)
        if self._skips[index]:
            return None
        self._weights.refuse_changed(self._free_layers, optimizer)
        self._change_watch.check(self._weights.find_trained(optimizer))
        for run in self._runs:
            run.check_rates(self.step + 1, optimizer)
        snapshots = self._take_snapshots()
        changed = None
        if len(args) > 1 and callable(args[1]):
            changed = (args[0], self._wrap_closure(optimizer, args[1]), *args[2:]), kwargs
        elif callable(kwargs.get("closure")):
            changed = args, kwargs | {"closure": self._wrap_closure(optimizer, kwargs["closure"])}
        else:
            self._accumulate_scores(optimizer, snapshots)
        (self._nested.add if index in self._open else self._nested.discard)(index)
        self._open.add(index)
        self._snapshots_before = snapshots
        return changed

    def _wrap_closure(self, optimizer: Optimizer | ManualOptimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Wrap a closure so that every call computes with pruned weights at zero and without gradients for them.

        Line searches then compare losses of the pruned model. The first call accumulates scores from the gradients.
        """
        refuse_closure(run.config.kind for run in self._runs)
        if closure is self._closure:  # a step can pass its closure to the step of its base class
            return closure
        calls = count()

        def masking_closure() -> Any:
            self._apply(optimizer)
            loss = closure()
            if next(calls) == 0:
                self._accumulate_scores(optimizer, self._take_snapshots())
            for weight in self._weights.find_trained(optimizer).values():
                weight.mask_gradient()
            return loss

        self._closure = masking_closure
        return masking_closure

    @torch.no_grad()
    def _accumulate_scores(self, optimizer: Optimizer | ManualOptimizer, before: list[Snapshot]) -> None:
        with self._roll_back_on_error(before):
            for run in self._runs:
                run.accumulate_scores(self.step + 1, optimizer)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer | ManualOptimizer, *_: Any) -> None:
        self._step_watch.stop()
        index = self._optimizers.index(optimizer)
        if self._skips[index]:
            return
        if index not in self._open:
            # If a step calls the step of its base class, the hooks run twice, and the step was counted there.
            self._apply(optimizer)
            self._nested.discard(index)
            return
        for run in self._runs:
            run.regularize(self.step + 1, optimizer)
        self._apply(optimizer)
        self._open.discard(index)
        self._closure = None
        # This step may be in a closure of the step of another optimizer, which can still fail.
        self._snapshots_before = self._take_snapshots() if self._open else None
        steps = [count + (other == index) for other, count in enumerate(self._steps)]
        changes: list[dict[str, Array]] = []
        if min(steps) > self.step:
            # All or none: after an error in one run, the others are unchanged, and the update is still due.
            with self._roll_back_on_error(self._take_snapshots()):
                changes = [run.masks_after(min(steps)) for run in self._runs]
                self._update = _Update(steps, changes)
        else:
            self._update = _Update(steps, changes)
        self._complete_update()
        self._change_watch.accept(self._weights.find_trained(optimizer))

    @contextmanager
    def _roll_back_on_error(self, before: list[Snapshot]) -> Iterator[None]:
        """Restore the runs if the block raises."""
        try:
            yield
        except BaseException:
            if self._update is None:
                self._roll_back(before)
            raise

    def _take_snapshots(self) -> list[Snapshot]:
        return [run.snapshot() for run in self._runs]

    def _roll_back(self, snapshots: list[Snapshot]) -> None:
        for run, snapshot in zip(self._runs, snapshots, strict=True):
            run.roll_back(snapshot)

    def _complete_update(self) -> None:
        """Apply the changes of the last step. If an interrupt stopped this, start over."""
        if (update := self._update) is None:
            return
        for run, masks in zip(self._runs, update.masks, strict=False):
            run.set_masks(masks)
        self._steps, self.step = update.steps, min(update.steps)
        if any(update.masks):
            self._apply(None)
        self._update = None

    def _recover(self) -> None:
        """Roll back a step that was ended by an exception, and set pruned weights to zero."""
        self._complete_update()
        if self._snapshots_before is not None or self._nested:
            self._apply(None)
        if self._snapshots_before is not None:
            self._roll_back(self._snapshots_before)
            self._snapshots_before = None

    def _may_lack_zeros(self) -> bool:
        """Whether an optimizer may have changed weights since the masks were last applied."""
        return (
            self._snapshots_before is not None or bool(self._nested) or isinstance(self._optimizers[0], ManualOptimizer)
        )

    def _apply(self, optimizer: Optimizer | ManualOptimizer | None) -> None:
        for weight in self._weights.find_trained(optimizer).values():
            if self._is_active or weight.find_problem(self.model) is None:  # slimming replaces weights after a run
                weight.apply_mask()
