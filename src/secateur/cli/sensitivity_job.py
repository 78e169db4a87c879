"""Load and scan a model, for ``secateur sensitivity``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur._progress import ProgressDisplay
from secateur.analysis import SensitivityReport, sensitivity
from secateur.analysis.scan_request import SCANNED_KEYS
from secateur.cli.calibration_options import CalibrationOptions
from secateur.cli.options import read_config_options
from secateur.config import PruningConfig
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.models import load_trained
from secateur.oneshot import Execution, Progress

__all__ = ["SensitivityJob", "check_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensitivityJob:
    """The arguments of one call of ``secateur sensitivity``.

    Attributes:
        model: The model, in a form that `load_trained` accepts.
        weights: File with its weights.
        config: File with a configuration, which selects layers.
        patterns: The patterns; none: that of the configuration.
        sparsities: The sparsities; none: the default.
        metric: What to measure.
        solver: Name of the solver.
        data: The options for calibration data.
    """

    model: str
    weights: Path | None
    config: Path | None
    patterns: tuple[str, ...]
    sparsities: tuple[float, ...]
    metric: Literal["layer", "block"]
    solver: str
    data: CalibrationOptions

    def run(self, steps: ProgressDisplay) -> SensitivityReport:
        """Load the model and the data, and measure.

        Raises:
            SecateurError: The arguments, the model or the data are unsuitable.
        """
        options = self._read_options()
        steps.begin(f"Reading {self.model}")
        trained = load_trained(self.model, self.weights)
        if detect_framework(trained.model) == "keras":
            raise UnsupportedModelError(
                f"--metric {self.metric} requires a torch model, and {self.model!r} is a Keras model. Use "
                f"secateur.sensitivity in Python, with a function as metric."
            )
        batches = self.data.load_batches(trained)
        steps.begin(f"Scanning {self.model}")

        def show_layer(part: Progress) -> None:
            steps.show_part(part, verb="Measured")

        execution = Execution(device=self.data.device, progress=show_layer)
        return sensitivity(
            trained.model, batches, metric=self.metric, solver=self.solver, execution=execution, **options
        )

    def _read_options(self) -> dict[str, Any]:
        """Return the patterns, sparsities and layers as arguments of `sensitivity`."""
        options: dict[str, Any] = {"sparsities": self.sparsities} if self.sparsities else {}
        if self.patterns:
            options["patterns"] = self.patterns
        if self.config is not None:
            settings = read_config_options(self.config, None, None)
            chosen = {key: value for key, value in settings if key not in SCANNED_KEYS}
            options = {"patterns": settings.pattern} | options | {"config": PruningConfig.from_dict(chosen)}
        return options


def check_output(file: Path | None) -> None:
    """Check, before any work, that the losses can be written at the end.

    Raises:
        ConfigError: They cannot.
    """
    if file is None:
        return
    if not file.parent.is_dir():
        raise ConfigError(f"--output {str(file)!r} cannot be written: there is no folder {str(file.parent)!r}.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"--output {str(file)!r} cannot be written: permission denied. Choose another file.")
