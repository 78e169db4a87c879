"""Describe the source of an artifact: the tensors of a model, a checkpoint or another artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from secateur._wording import format_list
from secateur.artifact.dtypes import Bits
from secateur.artifact.manifest import BranchEntry, Builder, Claim, explain_invalid
from secateur.config import PruningConfig
from secateur.errors import StateError
from secateur.frameworks.view import WeightView
from secateur.results import LayerResult, PruningReport

__all__ = ["Source", "SourceTensor", "guess_view"]

PEFT_PREFIX = "base_model.model."
PEFT_SUFFIX = ".base_layer"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """A tensor to write.

    Attributes:
        dtype: The data type, a key of `DTYPES`.
        shape: The dense shape.
        read: Reads the bit patterns in this shape; called more than once.
        view: The roles of the axes; ``None``: it is not a weight that patterns apply to.
        layer: The layer whose weight it is; ``None``: it is not the weight of a layer that can be pruned.
        is_prunable: Whether a plan for the whole model would prune it, which excludes output layers and embeddings.
        origins: The layers of the model that it is built from, if it is written in a different layout.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Bits]
    view: WeightView | None = None
    layer: str | None = None
    is_prunable: bool = False
    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Everything that is written into an artifact.

    Attributes:
        tensors: Name → tensor, in the order of the model.
        aliases: Alternative name → name of the tensor (tied weights).
        model: How to build the model; ``None``: unknown.
        claims: Layer → what pruning did to its weight.
        configs: The configurations of the pruning run, as plain values.
        write_files: Writes companion files, such as configuration and tokenizer, into a folder.
        sizes: Slimmed module → its attributes that changed → their values; see `Manifest`.
        branches: Module that was removed → what is returned in its place; see `BranchEntry`.
        blocks: List of modules → the positions of those that were removed from it.
        elsewhere: Layers whose weights are in companion files, about which the manifest states nothing.
        converted: Layer → its weight in the model, of layers that are written in another layout; see `restate_claim`.
    """

    tensors: Mapping[str, SourceTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    model: Builder | None = None
    claims: Mapping[str, Claim] = field(default_factory=dict)
    configs: Sequence[Mapping[str, Any]] = ()
    write_files: Callable[[Path], object] = lambda folder: None  # noqa: ARG005
    converted: Mapping[str, SourceTensor] = field(default_factory=dict)
    sizes: Mapping[str, Mapping[str, int | tuple[int, ...]]] | None = None
    branches: Mapping[str, BranchEntry] | None = None
    blocks: Mapping[str, tuple[int, ...]] | None = None
    elsewhere: frozenset[str] = frozenset()

    @property
    def is_slimmed(self) -> bool:
        """Whether the model has other sizes or fewer modules than its code and configuration say."""
        return any(part is not None for part in (self.sizes, self.branches, self.blocks))

    def find_claim(self, tensor: SourceTensor) -> Claim | None:
        """Return what pruning did to a tensor, or to the first of the layers that it is built from."""
        layers = tensor.origins or ((tensor.layer,) if tensor.layer is not None else ())
        return next((self.claims[layer] for layer in layers if layer in self.claims), None)

    def add_report(self, report: PruningReport | None) -> Source:
        """Take claims and configurations from a report; ``None``: keep the current ones.

        Raises:
            StateError: The report belongs to another model.
        """
        if report is None:
            return self
        layers = {tensor.layer for tensor in self.tensors.values()} | self.converted.keys() | self.elsewhere
        names = {layer.name: _find_merged(layer.name, layers) for layer in report.layers}
        if unknown := [name for name, found in names.items() if found not in layers]:
            raise StateError(f"The report belongs to another model: this one has no {format_list(map(repr, unknown))}.")
        with explain_invalid("the report"):
            kinds = {group.kind for group in report.groups}
            errors = {record.name: record.error for record in report.summarize().layers}
            claims = {
                names[layer.name]: _make_claim(layer, errors.get(layer.name), is_coupled=layer.pattern in kinds)
                for layer in report.layers
            }
        return replace(self, claims=claims, configs=[_to_plain_config(config) for config in report.configs])


def _make_claim(layer: LayerResult, error: float | None, *, is_coupled: bool) -> Claim:
    """State what is pruned in the weight of a layer; slices of two groups are not a pattern of a single weight."""
    if error is not None and not math.isfinite(error):
        error = None  # JSON has no such number
    if is_coupled:
        return Claim(pattern="1x1", units=layer.weights, pruned_units=layer.pruned_weights, error=error)
    return Claim(pattern=layer.pattern, units=layer.units, pruned_units=layer.pruned_units, error=error)


def _find_merged(name: str, layers: Collection[str | None]) -> str:
    """Return the name of a layer of a report, without what PEFT adds to names until adapters are merged."""
    merged = name.removeprefix(PEFT_PREFIX).removesuffix(PEFT_SUFFIX)
    return merged if name not in layers and merged in layers else name


def guess_view(shape: tuple[int, ...]) -> WeightView | None:
    """Assume the usual axes: outputs, inputs, kernel; ``None``: there are fewer than two axes, or no elements."""
    if len(shape) < 2 or 0 in shape:
        return None
    return WeightView(shape=shape, output_axes=(0,), kernel_axes=tuple(range(2, len(shape))), input_axes=(1,))


def _to_plain_config(config: PruningConfig) -> dict[str, Any]:
    """Convert a configuration to JSON values; a schedule that is a function is replaced by its name."""
    schedule = config.sparsity_decay_type
    if callable(schedule):
        config = config.model_copy(update={"sparsity_decay_type": getattr(schedule, "__name__", "a function")})
    return config.to_dict()
