"""Load a model, an objective and a space, and search, for ``secateur search``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from secateur._progress import ProgressDisplay
from secateur._yaml import parse_json_or_yaml, read_source
from secateur.cli.calibration_options import CalibrationOptions
from secateur.cli.options import read_config_options
from secateur.cli.prune_job import Method
from secateur.cli.sensitivity_job import check_output
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.models import load_trained
from secateur.models.python_objects import load_function
from secateur.oneshot import Execution
from secateur.searching import EarlyStop, PruningSpace, SearchReport, search

__all__ = ["SearchJob", "check_output_file"]


class LoadedSearch(NamedTuple):
    """The model, the objective, the space and the calibration data; ``None``: no data is needed."""

    model: Any
    objective: Callable[[Any], float]
    space: PruningSpace
    calibration: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchJob:
    """The arguments of one call of ``secateur search``.

    Attributes:
        model: The model, in a form that `load_trained` accepts.
        weights: File with its weights.
        space: File with the space.
        objective: The function, as ``package.module:name``.
        config: File with settings that all trials share.
        data: The options for calibration data.
        max_error: Stops trials whose layers lost more.
        options: Other arguments of `secateur.search`.
    """

    model: str
    weights: Path | None
    space: Path
    objective: str
    config: Path | None
    data: CalibrationOptions
    max_error: float | None
    options: dict[str, Any]

    def load(self, steps: ProgressDisplay) -> LoadedSearch:
        """Load everything.

        Raises:
            SecateurError: The arguments, the model or the data are unsuitable.
        """
        space = PruningSpace.parse(parse_json_or_yaml(read_source(self.space, "space"), "space"))
        objective = load_function(self.objective)
        steps.begin(f"Reading {self.model}")
        trained = load_trained(self.model, self.weights)
        if detect_framework(trained.model) == "keras":
            raise UnsupportedModelError(f"A search needs a torch model, and {self.model!r} is a Keras model.")
        calibration = self.data.load_batches(trained) if self._reads_data(space) else None
        return LoadedSearch(trained.model.eval(), objective, space, calibration)

    def search(self, loaded: LoadedSearch) -> SearchReport:
        """Search, and show the progress.

        Raises:
            SecateurError: The space does not fit the model, or all trials failed.
        """
        config = None
        if self.config is not None:
            settings = read_config_options(self.config, None, None).model_dump(exclude_defaults=True)
            config = {key: value for key, value in settings.items() if key not in ("pattern", "target_sparsity")}
        return search(
            loaded.model,
            loaded.objective,
            loaded.space,
            config=config,
            calibration=loaded.calibration,
            execution=None if loaded.calibration is None else Execution(device=self.data.device),
            stop=EarlyStop(max_error=self.max_error),
            progress=True,
            **self.options,
        )

    def _reads_data(self, space: PruningSpace) -> bool:
        """Whether calibration data is to be loaded."""
        needs = any(
            Method(solver=solver, refine=refine).reads_data for solver in space.solver for refine in space.refine
        )
        return needs or self.data.is_set or self.max_error is not None or space.width != (1.0,)

    def write_best(self, report: SearchReport, output: Path, max_cost: float | None) -> str:
        """Write the configuration of the best trial, and return a description of it.

        Raises:
            ConfigError: No trial is cheap enough.
        """
        best = report.best(max_cost=None if max_cost is None else max_cost * report.dense.cost)
        config = best.config or best.slim_config
        assert config is not None
        output.write_text(config.to_yaml(), "utf-8")
        command = "prune" if best.config is not None else "slim"
        steps = " after secateur slim, see --json," if best.config is not None and best.slim_config is not None else ""
        return f"Written to {output}: trial {best.number}, for secateur {command}{steps} with {best.describe()}."


def check_output_file(output: Path | None, max_cost: float | None) -> None:
    """Check, before any work, that the best configuration can be written at the end.

    Raises:
        ConfigError: It cannot, or `max_cost` has no effect.
    """
    check_output(output)
    if output is None and max_cost is not None:
        raise ConfigError("--max-cost picks the trial that --output writes. Add --output.")
