"""Scan a torch model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from secateur.analysis.criterion_scan import scan_by_criterion
from secateur.analysis.pytorch.calibrated_scan import CalibratedScan
from secateur.analysis.pytorch.kept_values import keep_values
from secateur.analysis.scan_plan import ScanPlan
from secateur.analysis.scan_request import ScanRequest
from secateur.masking.pytorch import ParameterWeight
from secateur.oneshot import Calibration
from secateur.oneshot.magnitude import drop_schedule
from secateur.oneshot.pytorch.calibration.batches import calibration_mode
from secateur.oneshot.pytorch.recipe import Recipe
from secateur.oneshot.pytorch.storage.memory_errors import explain_out_of_memory
from secateur.patterns import BasePattern
from secateur.planning.pytorch import plan
from secateur.results import SensitivityReport

__all__ = ["compute_digest", "scan"]


def scan(model: nn.Module, calibration: Calibration | Iterable[Any] | None, request: ScanRequest) -> SensitivityReport:
    """See `secateur.sensitivity`."""
    recipe = Recipe.from_names(request.solver)
    plans = {
        pattern: plan(model, drop_schedule(request.make_config(pattern)), prune_frozen=True)
        for pattern in request.patterns
    }
    planned = ScanPlan(request, plans)
    with explain_out_of_memory():
        if calibration is not None:
            batches = calibration.batches if isinstance(calibration, Calibration) else calibration
            return CalibratedScan(model, planned, recipe, batches).run()
        recipe.refuse_without_data()
        with calibration_mode(model):
            return scan_by_criterion(model, planned, ParameterWeight, keep_values)


def compute_digest(layer: str, pattern: BasePattern) -> str:
    """Return the digest of the weight of a layer."""
    return ParameterWeight(layer, pattern).compute_digest()
