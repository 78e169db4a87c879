"""Scan a Keras model by the configured criterion and a function of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from secateur.analysis.criterion_scan import scan_by_criterion
from secateur.analysis.scan_plan import ScanPlan
from secateur.analysis.scan_request import ScanRequest
from secateur.errors import UnsupportedModelError
from secateur.masking.keras import KernelWeight
from secateur.oneshot.magnitude import drop_schedule
from secateur.patterns import BasePattern
from secateur.planning.keras import plan
from secateur.results import SensitivityReport

__all__ = ["compute_digest", "scan"]


def scan(model: keras.Model, calibration: Any, request: ScanRequest) -> SensitivityReport:
    """See `secateur.sensitivity`.

    Raises:
        UnsupportedModelError: An argument that only torch models support is set.
    """
    if calibration is not None or request.solver != "magnitude":
        found = "solver" if calibration is None else "calibration"
        raise UnsupportedModelError(
            f"{found} supports torch models only, and this is a Keras model. Leave it out, and pass a function of the "
            f"model as metric."
        )
    plans = {
        pattern: plan(model, drop_schedule(request.make_config(pattern)), prune_frozen=True)
        for pattern in request.patterns
    }
    return scan_by_criterion(model, ScanPlan(request, plans), KernelWeight, _keep_values)


def compute_digest(layer: str, pattern: BasePattern) -> str:
    """Return the digest of the kernel of a layer."""
    return KernelWeight(layer, pattern).compute_digest()


@contextmanager
def _keep_values(weight: KernelWeight) -> Iterator[None]:
    before = np.array(weight.stored)
    try:
        yield
    finally:
        weight.variable.assign(before)
