"""The masks of a model's pruned weights: select them, apply them, verify them and report on them.

`secateur.prune` does this once, and a pruner at every update while a model trains.
"""

from __future__ import annotations

from secateur.masking.run import PrunedWeight, Run, build_report, refuse_nan, refuse_violations

__all__ = ["PrunedWeight", "Run", "build_report", "refuse_nan", "refuse_violations"]
