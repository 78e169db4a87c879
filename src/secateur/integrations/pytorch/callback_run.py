"""The pruning run of a callback, which can span several calls of the training method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from secateur.config import ConfigLike, make_config
from secateur.errors import ConfigError, StateError
from secateur.frameworks.pytorch import unwrap_model
from secateur.integrations.pytorch.optimizers import refuse_optimizers
from secateur.integrations.pytorch.sharding import has_shards, refuse_flat_weights
from secateur.masking.run_options import RunOptions
from secateur.results import PruningReport
from secateur.training.pytorch import PytorchPruner, prepare_together

__all__ = ["CallbackMembers", "CallbackRun"]


class CallbackRun:
    """The pruning run of a callback.

    Args:
        config: A `PruningConfig`, or a mapping with the same keys.
        method: The method that trains, for messages, such as ``"fit()"``.
        example_inputs: See `secateur.plan`.
        finalizes: Whether the run ends with each call of the method. If not, the next call continues it.

    Attributes:
        config: The configuration.
        finalizes: See above.
        pruner: The pruner of the current or last call; ``None`` before the first.
        report: The report of the last finished run; ``None``: none has finished.
        last_step: Step of the pruner after which masks no longer change.
        is_sharded: Whether weights are divided over processes, which then must all call `begin`, `finalize` and
            `sparsity`.
    """

    def __init__(self, config: ConfigLike, *, method: str, example_inputs: Any = None, finalizes: bool = True) -> None:
        self.config = make_config(config)
        self.finalizes = finalizes
        self.pruner: PytorchPruner | None = None
        self.report: PruningReport | None = None
        self.last_step = 0
        self.is_sharded = False
        self._method = method
        self._example_inputs = example_inputs
        self._sparsity = (-1, 0.0)

    def begin(
        self,
        model: nn.Module,
        optimizers: Iterable[Optimizer],
        state: Mapping[str, Any] | None = None,
        *,
        continues: bool = False,
    ) -> PytorchPruner:
        """Start a run, or continue one.

        Args:
            model: The model.
            optimizers: Its optimizers.
            state: The state of a pruner to resume from; the model already has the weights.
            continues: Whether to continue the run of a call that was interrupted, if there is one.

        Raises:
            StateError: The run of this model has been finalized, or the state does not fit.
            SecateurError: See `secateur.prepare`.
        """
        optimizers = list(optimizers)
        refuse_optimizers(optimizers)
        refuse_flat_weights(model)
        previous = self.pruner
        if state is None and previous is not None and previous.model is unwrap_model(model):
            if not previous.is_active and self.report is not None:
                raise StateError(
                    f"The run of this PruningCallback was finalized after step {previous.step}, and {self._method} was "
                    f"called again. To prune over several calls, pass finalize=False and call finalize() of the "
                    f"callback after the last one; to continue training with these zeros, use a new callback with "
                    f"kind='pattern_lock'."
                )
            if continues or not self.finalizes:
                state = previous.state_dict()
        self.close()
        self.is_sharded = has_shards(model)
        self.pruner = self._prepare(model, optimizers, state)
        self.report = None
        self.last_step = self.pruner.report().last_step
        self._sparsity = (-1, 0.0)
        return self.pruner

    def _prepare(self, model: nn.Module, optimizers: list[Optimizer], state: Mapping[str, Any] | None) -> PytorchPruner:
        options = RunOptions(is_resumed=state is not None)
        pruner = prepare_together(model, [self.config], optimizers, [options], example_inputs=self._example_inputs)[0]
        if state is not None:
            try:
                pruner.load_state_dict(state)
            except BaseException:
                pruner.close()
                raise
        return pruner

    def require_steps(self, steps: float, hint: str) -> None:
        """Close the run and raise `ConfigError` if it has fewer steps than the schedule needs.

        Args:
            steps: Optimizer steps from the start of the run to the end of the call.
            hint: How to train for more steps, as in ``"set max_steps"``.
        """
        if not self.finalizes or steps >= self.last_step:
            return
        self.close()
        raise ConfigError(
            f"The schedule must end within the {steps:.0f} optimizer steps of {self._method}, and should leave some to "
            f"recover; it ends at step {self.last_step}. Lower end_step, or {hint}. If several calls continue the run, "
            f"pass finalize=False to PruningCallback."
        )

    @property
    def is_complete(self) -> bool:
        """Whether the schedule has ended."""
        return self.pruner is not None and self.pruner.step >= self.last_step

    @property
    def sparsity(self) -> float:
        """Share of pruned weights in the layers to prune; 0 before the first run."""
        if self.pruner is None:
            return 0.0
        if self._sparsity[0] != self.pruner.step:  # counting reads every mask
            self._sparsity = (self.pruner.step, self.pruner.sparsity)
        return self._sparsity[1]

    @property
    def known_sparsity(self) -> float | None:
        """The sparsity if it is known without communication; ``None``: all processes would have to count."""
        is_known = self.pruner is None or not self.is_sharded or self._sparsity[0] == self.pruner.step
        return self.sparsity if is_known else None

    def finalize(self) -> PruningReport:
        """Verify masks and weights, and end the run; see `Pruner.finalize`.

        Raises:
            StateError: There is no run, it has ended, or masks or weights are invalid.
        """
        if self.pruner is None:
            raise StateError(f"There is no run to finalize. Call {self._method} with this callback first.")
        self.report = self.pruner.finalize()
        return self.report

    def close(self) -> None:
        """End the run without verifying it, if it has not ended."""
        if self.pruner is not None:
            self.pruner.close()
            self.pruner = None


class CallbackMembers:
    """The members of all callbacks: the pruner, the report, and `finalize`."""

    _run: CallbackRun

    @property
    def pruner(self) -> PytorchPruner | None:
        """The pruner of the current or last call of the method that trains; ``None`` before the first."""
        return self._run.pruner

    @property
    def report(self) -> PruningReport | None:
        """The report of the finished run; ``None``: it has not finished."""
        return self._run.report

    def finalize(self) -> PruningReport:
        """Verify masks and weights, end the run, and report what was pruned. Only for ``finalize=False``.

        Raises:
            StateError: There is no run, it has ended, or masks or weights are invalid.
        """
        return self._run.finalize()
