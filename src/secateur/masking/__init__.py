"""Select, apply, verify and report the masks of a model.

`secateur.prune` does this once. A pruner does it at every update while a model trains.
"""

from __future__ import annotations

from secateur.masking.run import Run, build_report, refuse_nan, refuse_violations
from secateur.masking.weight import PrunedWeight

__all__ = ["PrunedWeight", "Run", "build_report", "refuse_nan", "refuse_violations"]
