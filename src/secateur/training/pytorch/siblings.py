"""Link the weights of pruners that were prepared together, which may prune the same parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from secateur.training.pytorch.overlap import refuse_aliases
from secateur.training.pytorch.weight import TrainedParameter

__all__ = ["link_siblings", "unlink_siblings"]


def link_siblings(pruners: Sequence[Mapping[str, TrainedParameter]]) -> None:
    """Link the weights of the same parameter, so that each keeps the zeros of all of them.

    Args:
        pruners: For each pruner, layer → its weight.

    Raises:
        LayerError: Two weights are different parameters that share memory.
    """
    if len(pruners) == 1:  # its weights have been checked
        return
    groups: dict[int, list[TrainedParameter]] = {}
    for weight in (weight for weights in pruners for weight in weights.values()):
        groups.setdefault(id(weight.parameter), []).append(weight)
    refuse_aliases({f"{weights[0].name}": weights[0].parameter for weights in groups.values()})
    for weights in groups.values():
        for weight in weights:
            weight.siblings.update(other for other in weights if other is not weight)


def unlink_siblings(weights: Iterable[TrainedParameter]) -> None:
    """Unlink the weights of a pruner whose run has ended, so that nothing keeps their zeros."""
    for weight in weights:
        for sibling in list(weight.siblings):
            sibling.siblings.discard(weight)
        weight.siblings.clear()
