"""Start runs for torch models, and wrap the models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.compat.neural_compressor._elements import Layer, prunes_heads
from secateur.compat.neural_compressor._runs.parts import MakeOptions, Part, assign_parts, summarize_sparsity
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import CalibrationError
from secateur.frameworks.pytorch import unwrap_model
from secateur.graph import Graph, Group, trace
from secateur.graph.pytorch import find_groups
from secateur.oneshot import Execution
from secateur.oneshot.pytorch import prune
from secateur.oneshot.pytorch.calibration.batches import move_to
from secateur.planning.pytorch import find_candidates, plan
from secateur.results import PruningReport
from secateur.training.pytorch import PytorchPruner, prepare_together

__all__ = [
    "PresentedModule",
    "assign_elements",
    "count_weights",
    "find_heads",
    "find_nonzero",
    "make_masks",
    "make_pattern",
    "present_model",
    "prune_in_one_shot",
    "read_example_inputs",
    "start_runs",
    "unwrap_presented",
]

logger = logging.getLogger(__name__)


def assign_elements(
    config: WeightPruningConfig, model: nn.Module, *, prune_frozen: bool = False, batches: Iterable[Any] | None = None
) -> list[Part]:
    """Return the elements with their layers; see `assign_parts`.

    Args:
        config: The configuration.
        model: The model.
        prune_frozen: Whether frozen layers may be pruned too.
        batches: Batches that the model accepts, with which attention heads are found; ``None``: find them by name.
    """
    modules = dict(unwrap_model(model).named_modules())
    needs_graph = any(prunes_heads(element) for element in config.complete_elements())
    heads, graph = find_heads(model, batches if needs_graph else None)
    members = [member for group in heads for member in group.members]
    attention = {member.parameter.rpartition(".")[0] for member in members}
    layers = {
        Layer(found.name, type(found.module).__name__, found.is_output, found.name in attention): modules[found.name]
        for found in find_candidates(model, prune_frozen=True)
        if found.name in modules
    }
    make_plan = partial(plan, model, example_inputs=graph, prune_frozen=prune_frozen)
    return assign_parts(config, layers, modules, make_plan, graph)


def find_heads(model: nn.Module, batches: Iterable[Any] | None) -> tuple[Sequence[Group], Graph | None]:
    """Return the attention heads of a model, and the graph that has them.

    Args:
        model: The model.
        batches: Batches that it accepts, with which it is traced. ``None``: find the heads by the names of their
            layers, as well as where the graph has none that can be pruned.

    Raises:
        CalibrationError: The model does not accept the first batch.
    """
    if batches is not None:
        inner = unwrap_presented(model)
        graph = trace(inner, read_example_inputs(inner, batches))
        if heads := [group for group in graph.groups if group.kind == "heads" and group.obstacle is None]:
            return heads, graph
    return find_groups(model, "heads"), None


def start_runs(
    model: nn.Module, parts: Sequence[Part], optimizer: Any, make_options: Sequence[MakeOptions]
) -> list[PytorchPruner | None]:
    """Start a pruner for each part with layers.

    Without an optimizer, the loop announces the steps, and the first one sets the learning rate.

    Args:
        model: The model.
        parts: The elements with their layers.
        optimizer: The optimizer; ``None``: the loop announces the steps.
        make_options: For each part, returns the options of its run.
    """
    active = [(part, make) for part, make in zip(parts, make_options, strict=True) if part.modules]
    options = [make(0.0 if optimizer is None else None) for _, make in active]
    configs = [part.config for part, _ in active]
    pruners = iter(
        prepare_together(model, configs, optimizer, options, example_inputs=parts[0].graph) if configs else []
    )
    return [next(pruners) if part.modules else None for part in parts]


def make_masks(part: Part) -> dict[str, torch.Tensor]:
    """Return masks that keep every weight of a part."""
    return {name: torch.ones_like(module.weight, dtype=torch.bool) for name, module in part.modules.items()}


def make_pattern(model: nn.Module, part: Part) -> Any:
    """Return the pattern of a part with its layers."""
    return plan(model, part.config, example_inputs=part.graph, prune_frozen=True).patterns[0]


def count_weights(model: nn.Module) -> int:
    """Return the number of weights of a model."""
    return sum(weight.numel() for weight in model.parameters())


def find_nonzero(part: Part) -> dict[str, torch.Tensor]:
    """Return the masks of a pruned model: which weights of a part are not zero."""
    return {name: module.weight.detach() != 0 for name, module in part.modules.items()}


def prune_in_one_shot(
    model: nn.Module, part: Part, *, batches: Iterable[Any], loss: Any = None, device: Any = None
) -> PruningReport:
    """Prune the layers of an element with calibration data."""
    if part.element["pruning_type"] == "retrain_free":
        loss = _LossOfBatch(loss) if loss else None
        return prune(model, part.config, calibration=batches, loss=loss, example_inputs=part.graph)
    execution = Execution(device=device)
    return prune(model, part.config, calibration=_ModelInputs(batches), solver="sparsegpt", execution=execution)


def unwrap_presented(model: nn.Module) -> nn.Module:
    """Return the user's model, which `present_model` and other wrappers contain."""
    return unwrap_model(model.model if isinstance(model, PresentedModule) else model)


def read_example_inputs(model: nn.Module, batches: Iterable[Any]) -> Any:
    """Return the first batch without its labels, on the device of the model.

    Raises:
        CalibrationError: There is no batch.
    """
    inputs = next(iter(_ModelInputs(batches)), None)
    if inputs is None:
        raise CalibrationError("The dataloader must have at least one batch, found none.")
    if isinstance(inputs, Mapping):
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return move_to(inputs, next(model.parameters()).device)


def present_model(model: nn.Module, callbacks: Any) -> PresentedModule:  # noqa: ARG001 - only Keras needs callbacks
    """Return the wrapper of a model in a `CompressionManager`."""
    return PresentedModule(model)


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


class PresentedModule(nn.Module):
    """The wrapper of a model in a `CompressionManager`, which otherwise behaves like the model itself.

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

    def __getitem__(self, index: Any) -> Any:
        model: Any = self.model
        return model[index]

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        model: Any = self.model
        return len(model)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the model, with the names of the model."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a state of the model."""
        return self.model.load_state_dict(state_dict, **kwargs)

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
        """Return a table of the zeros of each weight of two or more axes, and their share of all in percent."""
        weights = {name: weight for name, weight in self.model.named_parameters() if weight.dim() > 1}
        return summarize_sparsity({name: (tuple(w.shape), int((w == 0).sum())) for name, w in weights.items()})
