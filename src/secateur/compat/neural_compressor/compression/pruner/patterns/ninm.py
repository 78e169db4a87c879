"""N pruned weights in every M consecutive ones."""

from __future__ import annotations

from secateur.compat.neural_compressor.compression.pruner.patterns.base import PytorchBasePattern, register_pattern

__all__ = ["PytorchPatternNInM"]


@register_pattern("ptN:M")
class PytorchPatternNInM(PytorchBasePattern):
    """N of every M weights in torch layers; N counts the pruned ones."""

    def core_pattern_name(self) -> str:
        """Return the pattern with the number of kept weights, as Secateur counts."""
        pruned, group = map(int, self.pattern.rpartition("_")[2].split(":"))
        return f"{group - pruned}:{group}"
