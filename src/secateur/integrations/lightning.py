"""Prune with the `Trainer` of Lightning. Importing this module imports Lightning."""

from __future__ import annotations

import logging
from typing import Any

from secateur._packages import require_packages
from secateur.config import ConfigLike
from secateur.errors import StateError, UnsupportedModelError

require_packages("torch", "lightning", extra="lightning")

from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from secateur.distributed.pytorch.shards import reshard  # noqa: E402
from secateur.integrations.pytorch.callback_run import CallbackMembers, CallbackRun  # noqa: E402
from secateur.integrations.pytorch.sharding import gather_state  # noqa: E402

__all__ = ["PruningCallback"]

logger = logging.getLogger(__name__)

UNSUPPORTED = {
    "DeepSpeedStrategy": "it trains copies of the weights, which Secateur does not set to zero",
    "FSDPStrategy": "it flattens the weights of several layers into one vector (FSDP 1)",
}
"""Strategy → why it is refused."""


class PruningCallback(CallbackMembers, Callback):
    """Prune a module while a Lightning ``Trainer`` fits it, with automatic or manual optimization.

    Steps are optimizer steps; with several optimizers, a step counts when every optimizer with pruned weights has taken
    it. Checkpoints contain the state of the pruner, and ``fit(ckpt_path=...)`` resumes bit-identically. When the
    target is reached, each ``ModelCheckpoint`` with a monitor forgets its scores, so that its best checkpoint has
    reached the target. The metric `sparsity` is logged after every epoch. The module may be sharded by FSDP2 in its
    ``configure_model``, with ``ModelParallelStrategy``.

    Args:
        config: A `PruningConfig`, or a mapping with the same keys.
        submodule: Name of the part of the module to prune, such as ``"model"``; ``None``: all of it. Names of layers
            start below it.
        example_inputs: For the patterns ``"channels"`` and ``"heads"``: one batch in the form that the part accepts;
            see `secateur.plan`.
        finalize: Whether the run ends with ``fit``, when masks and weights are verified. ``False``: each further call
            continues the run, until you call `finalize`.

    Attributes:
        pruner: The `Pruner` of the current or last call of ``fit``; ``None`` before the first.
        report: The report of the finished run; ``None``: it has not finished.

    Raises:
        ConfigError: The configuration is invalid. ``fit`` raises it before the first step if `end_step` is more than
            its number of steps, which is only known with automatic optimization.
        UnsupportedModelError: ``fit`` uses a strategy or an optimizer that pruning does not support.
        StateError: ``fit`` is called again after the run has ended, or with a checkpoint without a state of the pruner.

    Examples:
        >>> import lightning, torch
        >>> class Net(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         layers = [torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)]
        ...         self.layers = torch.nn.Sequential(*layers)
        ...     def training_step(self, batch):
        ...         return self.layers(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.AdamW(self.parameters())
        >>> callback = PruningCallback({"target_sparsity": 0.5, "end_step": 20})
        >>> trainer = lightning.Trainer(
        ...     max_steps=30, callbacks=[callback], accelerator="cpu", logger=False,
        ...     enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False,
        ... )
        >>> trainer.fit(Net(), torch.randn(40, 4, 8))
        >>> callback.report.sparsity
        0.5
    """

    def __init__(
        self,
        config: ConfigLike,
        *,
        submodule: str | None = None,
        example_inputs: Any = None,
        finalize: bool = True,
    ) -> None:
        self._run = CallbackRun(config, method="fit()", example_inputs=example_inputs, finalizes=finalize)
        self._submodule = submodule
        self._stage = "fit"
        self._loaded: dict[str, Any] | None = None
        self._first_step = 0  # of the trainer, when the run began
        self._was_complete = False
        self._is_writer = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse strategies that pruning does not support."""
        self._stage, self._is_writer = stage, trainer.is_global_zero
        if stage == "fit":
            _refuse_strategy(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start or resume the run."""
        loaded, self._loaded = self._loaded, None
        if loaded is None and trainer.ckpt_path is not None:
            raise StateError(
                f"The checkpoint {trainer.ckpt_path} must have the state of a PruningCallback, and has none. Use a "
                f"checkpoint that was saved with this callback, or load its weights into the module and call fit "
                f"without ckpt_path."
            )
        model = pl_module if self._submodule is None else pl_module.get_submodule(self._submodule)
        before, step = self.pruner, trainer.global_step
        pruner = self._run.begin(
            model, trainer.optimizers, None if loaded is None else loaded["pruner"], continues=step > 0
        )
        if loaded is not None:
            self._first_step = loaded["first_step"]
        elif before is None or not pruner.step:
            self._first_step = step
        if (steps := _count_steps(trainer)) is not None:
            self._run.require_steps(steps - self._first_step, "train longer (max_epochs, max_steps)")
        self._was_complete = self._run.is_complete

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the target is reached."""
        if self._run.is_complete and not self._was_complete:
            self._was_complete = True
            _forget_best_checkpoints(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the share of pruned weights."""
        pl_module.log("sparsity", self._run.sparsity)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run."""
        if self._run.finalizes and self.pruner is not None:
            if self._run.is_sharded:
                reshard(
                    pl_module
                )  # validation leaves unsharded weights in the module, which may be pruned only in part
            self._run.finalize()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: tensors, which are gathered if weights are sharded, and plain values."""
        if self._loaded is not None:
            return self._loaded
        if self.pruner is None:
            return {}
        return {"pruner": gather_state(self.pruner, keeps=self._is_writer), "first_step": self._first_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until training starts."""
        if self._stage == "fit":
            self._loaded = state_dict


def _refuse_strategy(trainer: Trainer) -> None:
    for kind in type(trainer.strategy).__mro__:
        if kind.__name__ in UNSUPPORTED:
            raise UnsupportedModelError(
                f"{kind.__name__} cannot be used with PruningCallback: {UNSUPPORTED[kind.__name__]}. Use "
                f"ModelParallelStrategy, strategy='ddp', or one device."
            )


def _count_steps(trainer: Trainer) -> float | None:
    """Count the optimizer steps of the trainer, those of earlier calls included; ``None``: unknown."""
    if getattr(trainer, "fast_dev_run", False) or not trainer.lightning_module.automatic_optimization:
        return None
    try:
        steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # gradients of different numbers of batches are accumulated
        return None
    return steps if steps > 0 else None  # it is -1 for loaders without a length


def _forget_best_checkpoints(trainer: Trainer) -> None:
    """Reset the ranking of checkpoints by a metric. Saved files stay."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.best_k_models:
            logger.info("The target is reached; earlier checkpoints are no longer candidates for the best one.")
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = None
