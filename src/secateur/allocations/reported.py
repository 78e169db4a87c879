"""The base class of allocations by the result of an earlier step."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Literal

from secateur.allocations.base import Allocation, AllocationTask
from secateur.masking.pytorch import ParameterWeight
from secateur.planning.layer_targets import TargetSource, count_layer_units, refuse_other_model
from secateur.planning.unit_bounds import UnitBounds
from secateur.results import Record

__all__ = ["ReportedAllocation", "digest_records"]

DIGEST_LENGTH = 12
"""Number of hexadecimal digits."""


class ReportedAllocation(Allocation):
    """Distributes a target by the result of an earlier step, for the same weights."""

    needs: ClassVar[Literal["nothing", "norms", "gram"]] = "nothing"

    @property
    @abstractmethod
    def source(self) -> TargetSource:
        """The result."""

    def check(self, task: AllocationTask) -> None:
        """See `Allocation.check`: the result must be of the same weights."""

        def compute_digest(layer: str) -> str:
            with task.load(layer):
                return ParameterWeight(layer, task.pattern).compute_digest()

        refuse_other_model(self.source, task.pattern, compute_digest)

    def counts(self, task: AllocationTask) -> dict[str, int]:
        """See `Allocation.counts`."""
        bounds = UnitBounds(lower=task.lower, upper=task.upper, total=task.total)
        return count_layer_units(self.source, task.pattern, bounds)


def digest_records(records: Iterable[Record]) -> str:
    """Return the start of a SHA-256 of records, which tells runs with different ones apart."""
    text = json.dumps([record.to_dict() for record in records])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
