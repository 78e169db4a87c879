"""Prune in a loop that uses accelerate. Importing this module imports accelerate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from secateur._packages import require_packages
from secateur.config import ConfigLike
from secateur.errors import StateError, UnsupportedModelError

require_packages("torch", "accelerate", extra="trainer")

from accelerate import Accelerator  # noqa: E402
from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402

from secateur.integrations.pytorch.optimizers import refuse_optimizers  # noqa: E402
from secateur.integrations.pytorch.sharding import (  # noqa: E402
    CheckpointedPruner,
    explain_fsdp1,
    refuse_flat_weights,
)
from secateur.training import prepare as prepare_pruner  # noqa: E402

if TYPE_CHECKING:
    from secateur.training.pytorch import PytorchPruner

__all__ = ["prepare"]

UNSUPPORTED = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM"}
"""``accelerator.distributed_type`` that trains copies of the weights → its name."""


def prepare(
    accelerator: Accelerator,
    model: Any,
    config: ConfigLike,
    optimizer: Any | Iterable[Any],
    *,
    example_inputs: Any = None,
) -> PytorchPruner:
    """Prune a model while your loop trains it with accelerate, and checkpoint the pruner with it.

    Call it after ``accelerator.prepare``. Only steps of the optimizer count, not batches whose gradients are
    accumulated, or steps that are skipped because of an overflow. ``accelerator.save_state`` saves the
    pruner, and ``accelerator.load_state`` resumes its run. The model may be sharded by FSDP2; then all processes must
    call `finalize`.

    Args:
        accelerator: The accelerator.
        model: The model that ``accelerator.prepare`` returned.
        config: A `PruningConfig`, or a mapping with the same keys.
        optimizer: The optimizer that ``accelerator.prepare`` returned, or several.
        example_inputs: For the patterns ``"channels"`` and ``"heads"``: one batch in the form that the model accepts;
            see `secateur.plan`.

    Returns:
        The `Pruner`. Call its ``finalize`` after training.

    Raises:
        StateError: An optimizer has not been prepared by an accelerator.
        UnsupportedModelError: The accelerator or an optimizer is not supported.
        SecateurError: See `secateur.prepare`. In that case, nothing is changed.

    Examples:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from secateur.integrations.accelerate import prepare
        >>> accelerator = Accelerator(cpu=True)
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> model, optimizer = accelerator.prepare(model, optimizer)
        >>> config = {"target_sparsity": 0.5, "end_step": 20}
        >>> pruner = prepare(accelerator, model, config, optimizer)
        >>> for step in range(30):
        ...     accelerator.backward(model(torch.randn(4, 8)).square().mean())
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """
    _refuse_kind(accelerator)
    optimizers = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    for part in optimizers:
        if not isinstance(part, AcceleratedOptimizer):
            raise StateError(
                f"optimizer must be what accelerator.prepare returned, found {type(part).__name__}. Call "
                f"accelerator.prepare(model, optimizer) first, and pass what it returns."
            )
    refuse_optimizers(optimizers)
    refuse_flat_weights(model)
    pruner: PytorchPruner = prepare_pruner(model, config, optimizers, example_inputs=example_inputs)
    accelerator.register_for_checkpointing(CheckpointedPruner(pruner, keeps=accelerator.is_local_main_process))
    return pruner


def _refuse_kind(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type.value
    if kind in UNSUPPORTED:
        raise UnsupportedModelError(
            f"{UNSUPPORTED[kind]} cannot be used with pruning: it trains copies of the weights that Secateur does not "
            f"set to zero. Use FSDP2 (fsdp_version=2), DistributedDataParallel, or one device."
        )
    if kind == "FSDP" and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) == 1:
        raise UnsupportedModelError(explain_fsdp1("FullyShardedDataParallelPlugin"))
