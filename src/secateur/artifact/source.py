"""Tensors on their way into an artifact, whatever holds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from secateur.artifact.dtypes import Bits
from secateur.artifact.manifest import Builder
from secateur.frameworks.view import WeightView

__all__ = ["Source", "SourceTensor", "usual_view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTensor:
    """One tensor.

    Attributes:
        dtype: Type, as in `DTYPES`.
        shape: Its shape.
        read: Its bit patterns in that shape; called more than once.
        view: Where its channels lie; ``None``: it is no weight that patterns tile.
        layer: The layer that it is the weight of; ``None``: of none that can be pruned.
        is_prunable: Whether a plan for the whole model would prune it: it is neither an output layer nor an embedding.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Bits]
    view: WeightView | None = None
    layer: str | None = None
    is_prunable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Tensors, and what belongs to them.

    Attributes:
        tensors: Name → tensor, in the model's order.
        aliases: Another name → the tensor that it means too.
        model: What builds the model again.
        write_files: Writes what belongs beside the shards, such as configuration and tokenizer, into a folder.
    """

    tensors: Mapping[str, SourceTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    model: Builder | None = None
    write_files: Callable[[Path], object] = lambda folder: None  # noqa: ARG005


def usual_view(shape: tuple[int, ...]) -> WeightView | None:
    """Where the channels of most weights lie: outputs, inputs, kernel; ``None``: it has no two axes, or no numbers."""
    if len(shape) < 2 or 0 in shape:
        return None
    return WeightView(shape=shape, output_axes=(0,), kernel_axes=tuple(range(2, len(shape))), input_axes=(1,))
