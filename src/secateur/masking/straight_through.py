"""Select new N:M masks at each update, from weights that keep training while they are pruned (SR-STE)."""

from __future__ import annotations

from collections.abc import Mapping

from secateur._array import Array
from secateur.masking.run_options import RunOptions
from secateur.masking.updater import MaskUpdater, Stream
from secateur.patterns import BasePattern
from secateur.patterns.regrowth import distribute_sparsity

__all__ = ["StraightThroughUpdater"]


class StraightThroughUpdater(MaskUpdater):
    """Prune every group before the first step, and select its N best weights again at each update.

    Args:
        pattern: See `MaskUpdater`; an N:M pattern.
        is_new: See `MaskUpdater`.
        options: See `MaskUpdater`.

    Raises:
        ConfigError: The pattern is not N:M, or its target does not prune every group.

    Source:
        Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", arXiv:2102.04010,
        section 4.
    """

    def __init__(self, pattern: BasePattern, *, is_new: bool = True, options: RunOptions | None = None) -> None:
        super().__init__(pattern, is_new=is_new, options=options)
        self._counts = distribute_sparsity(pattern)

    def advance(self, step: int, stream: Stream, masks: Mapping[str, Array]) -> dict[str, Array] | None:  # noqa: ARG002
        """See `MaskUpdater.advance`."""
        scores = {name: stream(name, None) for name in self.pattern.units}
        counts = {name: 0 if self.pattern.is_frozen(name) else count for name, count in self._counts.items()}
        frozen = {name: kept for name, kept in (self.keep or {}).items() if self.pattern.is_frozen(name)}
        keep = self.pattern.select_units(scores, counts) | frozen
        self.keep, self.requested = keep, self.schedule.sparsity(step)
        return self.pattern.weight_masks(keep)
