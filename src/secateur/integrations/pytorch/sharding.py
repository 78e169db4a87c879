"""Support sharded models in the training loops of other projects, where one process writes checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from secateur.distributed.pytorch.shards import ShardLayout, get_local, is_sharded
from secateur.errors import UnsupportedModelError
from secateur.training.pytorch import PytorchPruner

__all__ = ["CheckpointedPruner", "explain_fsdp1", "gather_state", "has_shards", "refuse_flat_weights"]


def explain_fsdp1(name: str) -> str:
    """Return why FSDP 1 is refused.

    Args:
        name: What was found, such as ``"fsdp"``.

    Examples:
        >>> explain_fsdp1("fsdp").partition(":")[0]
        'fsdp version 1 cannot be used with pruning'
    """
    return (
        f"{name} version 1 cannot be used with pruning: it flattens the weights of several layers into one vector, and "
        f"shards that. Use version 2 (fully_shard), which shards each weight."
    )


def refuse_flat_weights(model: nn.Module) -> None:
    """Raise an error if FSDP 1 has flattened weights.

    Raises:
        UnsupportedModelError: A module is a ``FullyShardedDataParallel``.
    """
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise UnsupportedModelError(explain_fsdp1("FullyShardedDataParallel"))


def has_shards(model: nn.Module) -> bool:
    """Whether a weight is sharded, so that all processes must make collective calls.

    Examples:
        >>> has_shards(nn.Linear(2, 2))
        False
    """
    return any(map(is_sharded, model.parameters()))


def gather_state(pruner: PytorchPruner, *, keeps: bool = True) -> dict[str, Any]:
    """Return the state of a pruner with whole tensors, which `PytorchPruner.load_state_dict` accepts.

    If weights are sharded, all processes must call this. Tensors are gathered one at a time, and moved to the CPU.

    Args:
        pruner: The pruner.
        keeps: Whether this process needs the tensors. If not, sharded tensors are ``None``.
    """
    gathered: dict[str, Any] = _gather(pruner.state_dict(), keeps=keeps)
    return gathered


class CheckpointedPruner:
    """A pruner whose state can be pickled by one process. All processes must call its methods.

    Args:
        pruner: The pruner.
        keeps: Whether this process writes the state.
    """

    def __init__(self, pruner: PytorchPruner, *, keeps: bool) -> None:
        self._pruner = pruner
        self._keeps = keeps

    def state_dict(self) -> dict[str, Any]:
        """See `gather_state`."""
        return gather_state(self._pruner, keeps=self._keeps)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `PytorchPruner.load_state_dict`."""
        self._pruner.load_state_dict(state)


def _gather(value: Any, *, keeps: bool) -> Any:
    if isinstance(value, Mapping):
        return {key: _gather(part, keeps=keeps) for key, part in value.items()}
    if isinstance(value, list):
        return [_gather(part, keeps=keeps) for part in value]
    if not is_sharded(value):
        return value
    whole = ShardLayout(value).gather(get_local(value))
    return whole.cpu() if keeps else None
