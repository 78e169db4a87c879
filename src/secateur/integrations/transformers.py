"""Prune with the `Trainer` of transformers. Importing this module imports transformers and accelerate."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from secateur._packages import require_packages
from secateur._wording import format_list
from secateur.config import ConfigLike
from secateur.distributed.pytorch.rank_groups import RankGroups
from secateur.errors import LayerError, StateError, UnsupportedModelError

require_packages("torch", "transformers", "accelerate", extra="trainer")

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402

from secateur.integrations.pytorch.callback_run import CallbackMembers, CallbackRun  # noqa: E402
from secateur.integrations.pytorch.checkpoint_file import (  # noqa: E402
    FILE_NAME,
    SavedPruner,
    find_other_weights,
    read_pruner,
    save_pruner,
    snapshot_pruner,
)
from secateur.integrations.pytorch.optimizers import refuse_optimizer_name  # noqa: E402
from secateur.integrations.pytorch.sharding import explain_fsdp1  # noqa: E402
from secateur.integrations.pytorch.step_probe import StepProbe  # noqa: E402

if TYPE_CHECKING:
    from secateur.training.distillation import Distillation

__all__ = ["DistillationMixin", "PruningCallback"]

IN_TRAINING: WeakSet[PruningCallback] = WeakSet()
"""The callbacks that a call of ``train()`` has reached."""


class PruningCallback(CallbackMembers, TrainerCallback):
    """Prune a model while a `transformers.Trainer`, or a class derived from it, trains it.

    Pruning starts when training does, and steps are optimizer steps. Each checkpoint gets a file `pruner.pt`, from
    which training resumes bit-identically. With ``load_best_model_at_end``, only checkpoints that have reached the
    target are candidates, and the masks are those of the best one. Logs get a value `sparsity`.

    The model may be sharded by FSDP2. Its masks are gathered in one process, which writes them to `pruner.pt`.

    Args:
        config: A `PruningConfig`, or a mapping with the same keys.
        example_inputs: For the patterns ``"channels"`` and ``"heads"``: one batch in the form that the model accepts;
            see `secateur.plan`.
        finalize: Whether the run ends with ``train()``, when masks and weights are verified. ``False``: each further
            call continues the run, until you call `finalize`.
        resume_from_checkpoint: The checkpoint that training resumes from, if it is outside of ``output_dir``.

    Attributes:
        pruner: The `Pruner` of the current or last call of ``train()``; ``None`` before the first.
        report: The report of the finished run; ``None``: it has not finished.

    Raises:
        ConfigError: The configuration is invalid. ``train()`` raises it before the first step if `end_step` is more
            than its number of steps.
        UnsupportedModelError: ``train()`` uses DeepSpeed, FSDP 1, or an optimizer whose steps cannot be followed.
        StateError: ``train()`` is called again after the run has ended, has two of these callbacks, or resumes from a
            checkpoint without a fitting `pruner.pt`.

    Examples:
        >>> import tempfile, torch
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> from transformers import PrinterCallback, Trainer, TrainingArguments
        >>> settings = dict(hidden_size=16, intermediate_size=16, vocab_size=32)
        >>> settings |= dict(num_hidden_layers=1, num_attention_heads=2)
        >>> model = BertForSequenceClassification(BertConfig(**settings))
        >>> data = [{"input_ids": torch.arange(8), "labels": 0}] * 16
        >>> arguments = TrainingArguments(
        ...     tempfile.mkdtemp(), max_steps=3, save_strategy="no", use_cpu=True,
        ...     report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        ... )
        >>> callback = PruningCallback({"target_sparsity": 0.5, "end_step": 2})
        >>> trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
        >>> trainer.remove_callback(PrinterCallback)
        >>> _ = trainer.train()
        >>> callback.report.sparsity
        0.5
    """

    def __init__(
        self,
        config: ConfigLike,
        *,
        example_inputs: Any = None,
        finalize: bool = True,
        resume_from_checkpoint: str | Path | None = None,
    ) -> None:
        self._run = CallbackRun(config, method="train()", example_inputs=example_inputs, finalizes=finalize)
        self._resumes_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        self._complete_at: int | None = None
        self._gathered: tuple[int, dict[str, Any]] | None = None  # step of the trainer, and the content of the file
        self._probe: StepProbe | None = None
        self._get_state: Any = lambda: None  # a weak reference to the state of the trainer

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse arguments that pruning does not support."""
        _refuse_arguments(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start or resume the run."""
        _refuse_arguments(args)  # it may have been added after the Trainer was created
        self._refuse_second_callback(state)
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        saved = self._find_saved(args, state, model) if state.global_step else None
        with _name_optimizer(args):
            self._run.begin(model, [optimizer], None if saved is None else saved.state)
        self._run.require_steps(state.max_steps, "train for more steps (num_train_epochs, max_steps)")
        self._complete_at = None if saved is None else saved.complete_at
        self._gather_sparsity()
        self._get_state = weakref.ref(state)
        self._probe = StepProbe(optimizer)
        IN_TRAINING.add(self)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check that the pruner sees the first step of the optimizer."""
        if self._probe is not None and not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self._probe.check()
            self._probe = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note when the target is reached, and gather what is logged or saved after this step."""
        if self._complete_at is None and self._run.is_complete:
            self._complete_at = state.global_step
        self.on_epoch_end(args, state, control, **kwargs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gather what is logged or saved after this epoch in all processes, because only one writes and pushes."""
        if self.pruner is None or not self._run.is_sharded:
            return
        is_saved = control.should_save or control.should_evaluate  # an evaluation can save the best model
        if is_saved or control.should_log or control.should_training_stop:
            self._gather_sparsity()
        if is_saved and args.push_to_hub:
            self._gathered = (state.global_step, self._snapshot(args))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Choose the best checkpoint only among those that have reached the target, if there are any."""
        is_complete = self._complete_at is not None and (state.best_global_step or 0) >= self._complete_at
        if self._get_state() is state and not is_complete:
            state.best_metric = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the share of pruned weights to the logs."""
        if self.pruner is not None and (sparsity := self._run.known_sparsity) is not None:
            for values in (logs, state.log_history[-1] if state.log_history else None):
                if values is not None:
                    values["sparsity"] = sparsity

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state of the pruner with the checkpoint."""
        if self.pruner is not None and (args.should_save or self._run.is_sharded):
            self._write(args, state, self._snapshot(args))
            self._gathered = None

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save the state of the pruner before a checkpoint is pushed, which is before `on_save` and in one process."""
        if not _find_folder(args, state).is_dir():
            return
        if not self._run.is_sharded:
            self.on_save(args, state, control, **kwargs)
        elif self._gathered is not None and self._gathered[0] == state.global_step:
            self._write(args, state, self._gathered[1])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Load the masks of the best model if that was loaded, and end the run."""
        IN_TRAINING.discard(self)
        self._get_state = lambda: None
        if self.pruner is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            if args.distributed_state is not None:  # another process may still be writing the file
                args.distributed_state.wait_for_everyone()
            self.pruner.load_state_dict(_read_fitting([Path(state.best_model_checkpoint)], self.pruner.model).state)
        if self._run.finalizes:
            self._run.finalize()

    def _gather_sparsity(self) -> None:
        """Count in all processes, so that each can log the sparsity of this step."""
        _ = self._run.sparsity

    def _snapshot(self, args: TrainingArguments) -> dict[str, Any]:
        assert self.pruner is not None
        return snapshot_pruner(self.pruner, self._complete_at, keeps=args.should_save)

    def _write(self, args: TrainingArguments, state: TrainerState, content: dict[str, Any]) -> None:
        if args.should_save:
            save_pruner(_find_folder(args, state), content)

    def _find_saved(self, args: TrainingArguments, state: TrainerState, model: Any) -> SavedPruner:
        """Find the state of the pruner in the checkpoint from which training resumes."""
        if self._resumes_from is not None:
            return _read_fitting([self._resumes_from], model)
        named = args.resume_from_checkpoint
        folders = [Path(named)] if isinstance(named, str) and Path(named).is_dir() else []
        return _read_fitting([*folders, _find_folder(args, state)], model)

    def _refuse_second_callback(self, state: TrainerState) -> None:
        if any(other._get_state() is state for other in IN_TRAINING):
            raise StateError(
                "Trainer must have one PruningCallback, found two. Remove one; rules in `layers` and `layer_types` of "
                "its configuration prune layers in different ways."
            )


class DistillationMixin:
    """Train towards a teacher: put it before `transformers.Trainer`, or a class derived from it, in a class statement.

    The distance to the teacher is added to the loss while training, and not in evaluation. It is a mean over the
    positions of each batch, also with gradient accumulation.

    Args:
        args: Arguments of the trainer.
        distillation: The `secateur.training.distillation.Distillation`; ``None``: the loss stays as it is.
        kwargs: Arguments of the trainer by name.

    Examples:
        >>> from transformers import Trainer
        >>> class DistillingTrainer(DistillationMixin, Trainer): ...
        >>> DistillingTrainer.__mro__[2].__name__
        'Trainer'
    """

    def __init__(self, *args: Any, distillation: Distillation | None = None, **kwargs: Any) -> None:
        self.distillation = distillation
        super().__init__(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See `transformers.Trainer`."""
        base: Any = super()
        loss, outputs = base.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self.distillation is not None and model.training:
            parts = self._count_parts(num_items_in_batch)
            loss = self.distillation(loss * parts, outputs, **inputs) / parts
        return (loss, outputs) if return_outputs else loss

    def _count_parts(self, num_items_in_batch: Any) -> int:
        """Return by how many batches the trainer's own loss has been divided already."""
        trainer: Any = self
        is_divided = getattr(trainer, "loss_is_scaled_for_ga", None)
        if is_divided is None:
            by_model = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
            is_divided = by_model or trainer.compute_loss_func is not None
        steps = trainer.args.gradient_accumulation_steps
        return int(getattr(trainer, "current_gradient_accumulation_steps", steps)) if is_divided else 1


@contextmanager
def _name_optimizer(args: TrainingArguments) -> Iterator[None]:
    """Add to the error about missing weights where the optimizer comes from."""
    try:
        yield
    except LayerError as error:
        error.add_note(f"The Trainer created the optimizer for optim={_get_optimizer_name(args)!r}, or got it.")
        raise


def _refuse_arguments(args: TrainingArguments) -> None:
    if args.deepspeed or getattr(args, "deepspeed_plugin", None) is not None:
        raise UnsupportedModelError(
            "DeepSpeed cannot be used with pruning: it trains copies of the weights that Secateur does not set to "
            "zero. Train without it, with DistributedDataParallel or FSDP2."
        )
    if (getattr(args, "fsdp_plugin_args", None) or {}).get("fsdp_version") == 1:
        raise UnsupportedModelError(explain_fsdp1("fsdp"))
    if args.fsdp and dict(args.fsdp_config or {}).get("xla"):
        raise UnsupportedModelError(
            "fsdp cannot be used with pruning on XLA devices: torch_xla has its own format for shards. Train "
            "with DistributedDataParallel."
        )
    refuse_optimizer_name(_get_optimizer_name(args))


def _get_optimizer_name(args: TrainingArguments) -> str:
    return str(getattr(args.optim, "value", args.optim))


def _find_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of the current step."""
    name = f"checkpoint-{state.global_step}"
    if state.is_hyper_param_search:  # then each run has a folder
        runs = sorted(Path(str(args.output_dir)).glob(f"*/{name}"), key=lambda folder: folder.stat().st_mtime)
        if runs:
            return runs[-1]
    return Path(str(args.output_dir)) / name


def _read_fitting(folders: list[Path], model: Any) -> SavedPruner:
    """Read the state in the first folder that was saved with the weights of the model.

    If weights are sharded, all processes call this, and fail together.
    """
    groups = RankGroups.find(model)
    paths = [folder / FILE_NAME for folder in dict.fromkeys(folders)]
    found = [path for path in paths if not groups.merge({} if path.is_file() else {"missing": ""})]
    for path in found:
        with groups.fail_together(f"Reading {path}"):
            saved = read_pruner(path)
        if not (others := find_other_weights(model, saved)):
            return saved
    hint = "If it is in another folder, pass PruningCallback(..., resume_from_checkpoint=folder)."
    if not found:
        raise StateError(
            f"The checkpoint must have a file {FILE_NAME}, the state of its pruner, and {format_list(map(str, paths))} "
            f"does not exist. Use a checkpoint that was saved with this callback. {hint}"
        )
    raise StateError(
        f"{found[-1]} belongs to other weights than those that were loaded: {format_list(map(repr, others))} differ. "
        f"Use the file of the same checkpoint. {hint}"
    )
