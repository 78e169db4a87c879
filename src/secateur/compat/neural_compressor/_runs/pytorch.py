"""Find the layers of elements in torch models, and start runs."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from secateur._wording import format_count, format_list
from secateur.compat._layer_settings import match_names
from secateur.compat.neural_compressor._elements import Layer, match_layers
from secateur.compat.neural_compressor._translation import translate_element
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.config import PruningConfig
from secateur.errors import LayerError
from secateur.frameworks.pytorch import unwrap_model
from secateur.masking.run_options import RunOptions
from secateur.oneshot import Execution
from secateur.oneshot.pytorch import prune
from secateur.planning.pytorch import find_candidates, plan
from secateur.results import PruningReport
from secateur.training.pytorch import PytorchPruner, prepare_together

__all__ = ["Part", "WrappedModel", "assign_elements", "find_modules", "make_masks", "prune_in_one_shot", "start_runs"]

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """An element with its layers.

    Attributes:
        element: The element, with all keys, which may change until the run starts.
        modules: Layer name → layer.
    """

    element: DotDict
    modules: dict[str, nn.Module]

    @property
    def config(self) -> PruningConfig:
        """The configuration that prunes these layers."""
        types = tuple(dict.fromkeys(type(module).__name__ for module in self.modules.values()))
        selection = {"op_names": (match_names(self.modules),), "pruning_op_types": types}
        return PruningConfig(**translate_element(self.element), **(selection if self.modules else {}))


def find_modules(
    element: Mapping[str, Any], model: nn.Module, where: str = "The configuration"
) -> dict[str, nn.Module]:
    """Return the layers of an element with all keys: name → layer."""
    candidates = find_candidates(model, prune_frozen=True)
    layers = [Layer(candidate.name, type(candidate.module).__name__, candidate.is_output) for candidate in candidates]
    modules = dict(unwrap_model(model).named_modules())
    return {name: modules[name] for name in match_layers(element, layers, modules, where)}


def assign_elements(config: WeightPruningConfig, model: nn.Module, *, prune_frozen: bool = False) -> list[Part]:
    """Return the elements with their layers; a warning names layers that cannot be pruned.

    Raises:
        SecateurError: The configuration does not fit the model.
    """
    elements = config.complete_elements()
    parts = []
    for index, element in enumerate(elements):
        where = f"pruning_configs[{index}]" if len(elements) > 1 else "The configuration"
        part = Part(element, find_modules(element, model, where))
        if part.modules:
            _check_part(part, model, where, prune_frozen=prune_frozen)
        parts.append(part)
    return parts


def _check_part(part: Part, model: nn.Module, where: str, *, prune_frozen: bool) -> None:
    """Check that an element fits its layers; a warning names layers that it cannot prune."""
    try:
        _limit_target(part, model, where, prune_frozen=prune_frozen)
        reasons = plan(model, part.config, prune_frozen=prune_frozen).dense
    except LayerError as error:
        logger.warning("%s prunes nothing. %s", where, error)
        part.modules.clear()
        return
    _warn_of_dense_layers({name: reason for name, reason in reasons.items() if name in part.modules})


def _limit_target(part: Part, model: nn.Module, where: str, *, prune_frozen: bool) -> None:
    """Lower the target of an element to what the maxima of its layers allow, with a warning."""
    config = part.config
    if config.kind == "pattern_lock" or config.target_sparsity is None or ":" in config.pattern:
        return
    free = config.model_copy(update={"target_sparsity": 0.0, "min_sparsity_ratio_per_op": 0.0})
    patterns = plan(model, free, prune_frozen=prune_frozen).patterns
    total = sum(units.count for pattern in patterns for units in pattern.units.values())
    most = sum(bound for pattern in patterns for bound in pattern.budget.upper_bounds().values())
    if total and round(config.target_sparsity * total) > most:
        logger.warning(
            "%s: max_sparsity_ratio_per_op=%s allows to prune %d of %d units, so target_sparsity=%s counts as %.6g.",
            where,
            config.max_sparsity_ratio_per_op,
            most,
            total,
            config.target_sparsity,
            most / total,
        )
        part.element["target_sparsity"] = most / total


def _warn_of_dense_layers(reasons: Mapping[str, str]) -> None:
    if reasons:
        logger.warning(
            "%s that the configuration matches cannot be pruned: %s.",
            format_count(len(reasons), "layer"),
            format_list([f"{name!r} ({reason})" for name, reason in reasons.items()], limit=3),
        )


def start_runs(model: nn.Module, parts: Iterable[Part], optimizer: Any) -> list[PytorchPruner | None]:
    """Start a pruner for each part with layers.

    Without an optimizer, the loop announces the steps.
    """
    parts = list(parts)
    active = [part for part in parts if part.modules]
    configs, options = [part.config for part in active], [_make_options(part, optimizer) for part in active]
    pruners = iter(prepare_together(model, configs, optimizer, options=options) if configs else [])
    return [next(pruners) if part.modules else None for part in parts]


def _make_options(part: Part, optimizer: Any) -> RunOptions:
    """Return the options with which a run has the timeline of Intel Neural Compressor.

    The learning rate of a loop that announces its steps is known with the first step of its optimizer.
    """
    return RunOptions(
        parts_until=math.floor(part.element["end_step"]), learning_rate=0.0 if optimizer is None else None
    )


def make_masks(part: Part) -> dict[str, torch.Tensor]:
    """Return masks that keep every weight of a part."""
    return {name: torch.ones_like(module.weight, dtype=torch.bool) for name, module in part.modules.items()}


def prune_in_one_shot(
    model: nn.Module, part: Part, *, batches: Iterable[Any], loss: Any = None, device: Any = None
) -> PruningReport:
    """Prune the layers of an element with calibration data."""
    if part.element["pruning_type"] == "retrain_free":
        return prune(model, part.config, calibration=batches, loss=_LossOfBatch(loss) if loss else None)
    execution = Execution(device=device)
    return prune(model, part.config, calibration=_ModelInputs(batches), solver="sparsegpt", execution=execution)


class _LossOfBatch:
    """Calls a loss function with the outputs of the model and the labels of a batch."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss

    def __call__(self, outputs: Any, batch: Any) -> Any:
        return self._loss(outputs, batch[1])


class _ModelInputs:
    """Iterates over batches without their labels: the first element of a sequence is the model's input."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield batch[0] if isinstance(batch, list | tuple) and batch else batch


class WrappedModel(nn.Module):
    """A model as a `CompressionManager` presents it; otherwise it behaves like the model itself.

    Attributes:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the model, with the names of the model."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a state of the model."""
        return self.model.load_state_dict(state_dict, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.model[index]

    def __len__(self) -> int:
        return len(self.model)

    def save(self, root: str | Path | None = None) -> None:
        """Save the model's ``state_dict`` as ``best_model.pt`` in a folder, which is created if needed.

        Args:
            root: The folder; by default ``"nc_workspace"``.
        """
        folder = Path("nc_workspace" if root is None else root)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(unwrap_model(self.model).state_dict(), folder / "best_model.pt")
        logger.info("Saved %s.", folder / "best_model.pt")

    def report_sparsity(self) -> tuple[Any, float]:
        """Return a table of the zeros of each weight of two or more axes, and their share of all in percent.

        The last row has the totals.

        The table is a pandas ``DataFrame`` where pandas is installed, and otherwise a list of dictionaries.
        """
        rows: list[dict[str, Any]] = [
            {
                "Name": name,
                "Shape": list(weight.shape),
                "NNZ (dense)": weight.numel() - int((weight == 0).sum()),
                "NNZ (sparse)": int((weight == 0).sum()),
                "Sparsity(%)": 100 * int((weight == 0).sum()) / weight.numel(),
            }
            for name, weight in self.model.named_parameters()
            if weight.dim() > 1
        ]
        zeros = sum(row["NNZ (sparse)"] for row in rows)
        total = zeros + sum(row["NNZ (dense)"] for row in rows)
        share = 100 * zeros / total
        rows.append(
            {
                "Name": "Total sparsity:",
                "Shape": total,
                "NNZ (dense)": total - zeros,
                "NNZ (sparse)": zeros,
                "Sparsity(%)": share,
            }
        )
        try:
            from pandas import DataFrame
        except ImportError:
            return rows, share
        return DataFrame(rows), share
