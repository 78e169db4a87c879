"""Load, prune and save a model, for ``secateur prune``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from secateur._packages import is_installed, require_packages
from secateur._progress import ProgressDisplay
from secateur.cli.calibration_options import CalibrationOptions
from secateur.cli.destination import Destination
from secateur.cli.tracing import trace_groups
from secateur.config import PruningConfig
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import detect_framework
from secateur.models import TrainedModel, find_transformers_path, is_packed, load_model, load_trained
from secateur.oneshot import prune
from secateur.oneshot.magnitude import find_gradient_criterion
from secateur.planning.layer_selection import list_couplings
from secateur.results import PruningReport, SensitivityReport

__all__ = ["Method", "PruneJob", "count_bytes", "read_allocation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The solver, refiners and allocation, or a recipe for the first two.

    Attributes:
        solver: Name of the solver.
        refine: Names of the refiners, in order.
        recipe: Name of a recipe, which chooses the solver and the refiners.
        minutes: Time limit of the recipe.
        allocation: Name of the allocation, or a sensitivity report; by default, the scope in the configuration decides.
        permute: Whether channels are reordered first.
    """

    solver: str = "magnitude"
    refine: tuple[str, ...] = ()
    recipe: str | None = None
    minutes: float | None = None
    allocation: str | SensitivityReport | None = None
    permute: bool = False

    @property
    def reads_data(self) -> bool:
        """Whether calibration data is needed; plain magnitude pruning imports no framework.

        Raises:
            UnknownNameError: A name is unknown.
            ConfigError: The recipe and other options contradict each other.
            MissingPackageError: The method needs torch, which is not installed.
        """
        if self.recipe is not None or self.minutes is not None:
            require_packages("torch", extra="torch")
            from secateur.oneshot.pytorch.named_recipes import choose_members

            choose_members(self.recipe, self.minutes, self.solver, self.refine, has_units=False)
            return True
        is_plain = self.allocation is None or isinstance(self.allocation, SensitivityReport)
        if (self.solver, self.refine) == ("magnitude", ()) and is_plain and not self.permute:
            return False
        require_packages("torch", extra="torch")
        if self.permute:
            return True
        from secateur.oneshot.pytorch import SCOPES
        from secateur.oneshot.pytorch.recipe import Recipe

        reads = bool(Recipe.from_names(self.solver, self.refine).data_dependent)
        if self.allocation is None or (self.allocation in SCOPES and not reads):
            return reads
        return bool(Recipe.from_names(self.solver, self.refine, self.allocation).data_dependent)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneJob:
    """The arguments of one call of ``secateur prune``.

    Attributes:
        model: The model, in a form that `load_trained` accepts.
        weights: File with its weights.
        settings: The configuration.
        method: The solver, refiners and allocation.
        data: The options for calibration data.
        target: The output folder.
    """

    model: str
    weights: Path | None
    settings: PruningConfig
    method: Method
    data: CalibrationOptions
    target: Destination

    def run(self, steps: ProgressDisplay, *, low_memory: bool = False) -> PruningReport:
        """Run the job with the whole model in memory, or with one block at a time.

        Raises:
            SecateurError: The job failed. No files have changed, except for finished parts.
        """
        self.target.check()
        takes_examples = bool(list_couplings(self.settings)) and find_gradient_criterion(self.settings) is None
        reads_data = self.method.reads_data or low_memory or (self.data.file is not None and not takes_examples)
        if not reads_data:
            self.data.check_unused(self.method.solver)
        steps.begin(f"Reading {self.model}")
        return self._prune_files(steps) if low_memory else self._prune_in_memory(steps, reads_data=reads_data)

    def _prune_in_memory(self, steps: ProgressDisplay, *, reads_data: bool) -> PruningReport:
        from secateur.artifact.saving import save, save_over

        if reads_data and is_installed("torch"):
            from secateur.oneshot.pytorch.resume import set_seed

            set_seed()  # random weights must be the same when a run resumes
        trained = load_trained(self.model, self.weights)
        checkpoint = trained.open_checkpoint()  # open these files before the work starts
        companions = trained.companions if checkpoint is None else None
        framework = detect_framework(trained.model)
        if reads_data and framework == "keras":
            raise UnsupportedModelError(
                f"Calibration data requires a torch model, and {self.model!r} is a Keras model. Leave out --solver, "
                f"--refine, --allocation, --permute and --calibration to prune by magnitude."
            )
        self.target.check_space(count_bytes(trained.model))
        options: dict[str, Any] = {}
        if kinds := list_couplings(self.settings):
            steps.begin(f"Tracing {self.model}")
            options["example_inputs"] = trace_groups(trained, kinds, self.data.file)
        with self.target.open_parts() if reads_data else nullcontext() as folder:
            if folder is not None:
                options |= self._load_calibration(trained, steps, folder)
            steps.begin(f"Pruning {self.model}")
            report = prune(trained.model, self.settings, **options, **self._make_recipe())
            if not self.target.is_written:
                return report
            steps.begin(f"Writing {self.target.out}")
            if checkpoint is None:
                save(trained.model, self.target.out, report=report, tokenizer=companions)
            else:
                save_over(trained.model, checkpoint, self.target.out, report=report)
        return report

    def _prune_files(self, steps: ProgressDisplay) -> PruningReport:
        from secateur.artifact import convert

        if "channels" in list_couplings(self.settings):
            raise ConfigError(
                "--low-memory prunes block by block, and channels are found by running the whole model. Leave it out."
            )
        path = find_transformers_path(self.model)
        if path is None or path.is_file():
            raise ConfigError(
                f"--low-memory reads the safetensors files of a transformers folder block by block, and "
                f"{self.model!r} is not such a folder. Leave it out."
            )
        if not any(path.glob("*.safetensors")):
            raise ConfigError(f"--low-memory reads safetensors files, and {self.model!r} has none. Leave it out.")
        if is_packed(path):
            raise ConfigError(
                f"--low-memory reads dense files, and {self.model!r} is packed. Leave it out, or unpack the model with "
                f"secateur convert {self.model} FOLDER --dense."
            )
        trained = TrainedModel(load_model(self.model), path)
        self.target.check_space(count_bytes(trained.model))
        with self.target.open_parts() as folder:
            options = self._load_calibration(trained, steps, folder, weights=path)
            steps.begin(f"Pruning {self.model}")
            report = prune(trained.model.eval(), self.settings, **options, **self._make_recipe())
            if self.target.is_written:
                steps.begin(f"Writing {self.target.out}")
                convert(folder, self.target.out, report=report)
        return report

    def _make_recipe(self) -> dict[str, Any]:
        return {field.name: getattr(self.method, field.name) for field in fields(self.method)}

    def _load_calibration(
        self, trained: TrainedModel, steps: ProgressDisplay, folder: Path, weights: Path | None = None
    ) -> dict[str, Any]:
        """Load calibration data; return it with the execution options as arguments of `prune`."""
        if self.method.reads_data or self.data.is_set:
            batches = self.data.load_batches(trained)
        else:  # the values do not matter, only how the blocks are called
            batches = [trained.model.dummy_inputs]
        return {"calibration": batches, "execution": self.data.make_execution(steps, folder, weights)}


def read_allocation(text: str | None) -> str | SensitivityReport | None:
    """Return a name of an allocation, or the sensitivity report in a file.

    Raises:
        ArtifactError: The file cannot be read.
        ConfigError: The file does not contain a sensitivity report.
    """
    if text is None or not (text.endswith(".json") or Path(text).is_file()):
        return text
    return SensitivityReport.read(text)


def count_bytes(model: Any) -> int:
    """Count the bytes of a model's weights."""
    if detect_framework(model) == "keras":
        return sum(int(array.nbytes) for array in _get_keras_arrays(model))
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _get_keras_arrays(model: Any) -> Sequence[Any]:
    return model.get_weights()  # type: ignore[no-any-return]
