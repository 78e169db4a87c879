"""The calibration options of ``secateur prune`` and ``secateur slim``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur._progress import ProgressDisplay
from secateur.cli.messages import say
from secateur.errors import ConfigError
from secateur.models import TrainedModel
from secateur.oneshot import Execution, Progress

__all__ = ["CalibrationOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """The options for calibration data.

    Attributes:
        file: File with text or inputs; Python's documentation by default.
        sequences: Number of text samples.
        length: Number of tokens per sample.
        device: Device to compute on; the CPU by default.
        facts: What was loaded, for the report.
    """

    file: Path | None = None
    sequences: int | None = None
    length: int | None = None
    device: str | None = None
    facts: dict[str, str] = field(default_factory=dict, compare=False)

    def check_unused(self, method: str) -> None:
        """Raise `ConfigError` if an option is set that has no effect without calibration data."""
        for name in ("sequences", "length", "device"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"--{name} is for calibration data, which --solver {method} does not use. Leave it out, choose "
                    f"another solver, or pass data with --calibration."
                )

    @property
    def is_set(self) -> bool:
        """Whether the user has specified the data."""
        return any(option is not None for option in (self.file, self.sequences, self.length))

    def load_batches(self, trained: TrainedModel) -> Any:
        """Load the data, and print a description of it.

        Raises:
            SecateurError: There is no data for this model, or it does not fit.
        """
        from secateur.models.calibration import sample_calibration

        sampled = sample_calibration(trained, self.file, self.sequences, self.length)
        self.facts["Calibration data"] = sampled.description
        say(f"Calibration data: {sampled.description}.")
        return sampled.batches

    def make_execution(self, steps: ProgressDisplay, folder: Path, weights: Path | None = None) -> Execution:
        """Return the settings of a run that can be resumed.

        Args:
            steps: Shows the progress.
            folder: The folder for finished parts.
            weights: Files with the weights of a model on the meta device.
        """

        def show_part(part: Progress) -> None:
            if part.done == 1 < part.total and part.action == "Pruned":
                say(f"Finished parts are stored in {folder}. After an interruption, run the same command to resume.")
            steps.show_part(part)

        return Execution(
            device=self.device,
            folder=folder,
            progress=show_part,
            weights=weights,
            keep_parts=True,  # until the artifact is written
        )
