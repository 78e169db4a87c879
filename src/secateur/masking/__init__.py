"""The masks of a model's pruned weights: select them, apply them, verify them and report on them.

`secateur.prune` does this once, and a pruner at every update while a model trains.
"""

from __future__ import annotations

from secateur.masking.checks import refuse_nan, refuse_violations
from secateur.masking.run import HeldWeight, Run, report_on

__all__ = ["HeldWeight", "Run", "refuse_nan", "refuse_violations", "report_on"]
