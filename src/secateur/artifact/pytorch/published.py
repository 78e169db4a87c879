"""The tensors of a transformers model as the model is published: the names and shapes that ``save_pretrained`` writes.

transformers 5 converts some models while it loads them: it renames tensors, stacks experts, and splits projections that
are stored together. Other programs, and other versions of transformers, know the published form only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from secateur._huggingface.pytorch import is_pretrained
from secateur.frameworks.view import WeightView

__all__ = ["Conversion", "PublishedTensor", "list_published"]

MARKERS = 251
"""Different values of the markers that follow an axis through a conversion, which need one byte each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTensor:
    """A tensor in the published form of a model.

    Attributes:
        sources: Names of the model's tensors that it is built from.
        shape: Its shape.
        is_renamed: Whether it is a tensor of the model, under this name.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    is_renamed: bool


def list_published(model: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, PublishedTensor]:
    """List the published tensors of a model, in the order of the model's tensors.

    Args:
        model: The model.
        state: Its parameters and persistent buffers, under all their names; they may be on the meta device.

    Returns:
        Published name → tensor.
    """
    meta = {name: torch.empty_like(tensor, device="meta", requires_grad=False) for name, tensor in state.items()}
    tracker = _SourceTracker(meta)
    with tracker:
        published = _revert_conversion(model, meta)
    own = {id(tensor) for tensor in meta.values()}
    tensors = {
        name: PublishedTensor(
            sources=tracker.find_sources(tensor), shape=tuple(tensor.shape), is_renamed=id(tensor) in own
        )
        for name, tensor in published.items()
    }
    order = {name: position for position, name in enumerate(meta)}
    return dict(sorted(tensors.items(), key=lambda item: min(order[name] for name in item[1].sources)))


class Conversion:
    """Converts tensors of a model to their published form, together with those that are converted with them.

    The last result is kept, because the tensors of one conversion are usually read one after another.

    Args:
        model: The model.
        state: Its parameters and persistent buffers.
        published: The published tensors.
    """

    def __init__(
        self, model: nn.Module, state: Mapping[str, torch.Tensor], published: Mapping[str, PublishedTensor]
    ) -> None:
        self._model, self._state = model, state
        self._groups = _group_sources([tensor.sources for tensor in published.values() if not tensor.is_renamed])
        self._last: tuple[tuple[str, ...], dict[str, torch.Tensor]] = ((), {})
        self._traced: dict[tuple[str, ...], dict[str, WeightView]] = {}

    def read(self, source: str, name: str) -> torch.Tensor:
        """Return a published tensor.

        Args:
            source: A tensor of the model that it is built from.
            name: Its published name.
        """
        group = self._groups[source]
        if self._last[0] != group:
            self._last = ((), {})  # free it first
            sources = {key: self._state[key].detach() for key in group}
            self._last = (group, _revert_conversion(self._model, sources))
        return self._last[1][name]

    def trace_views(self, source: str, views: Mapping[str, WeightView]) -> dict[str, WeightView]:
        """Find the axes of all tensors that are converted with one tensor.

        Args:
            source: A tensor of the model.
            views: Tensor of the model → its axes, of those that are weights.

        Returns:
            Published name → its axes; without tensors whose axes each belong to several roles.
        """
        group = self._groups[source]
        if group not in self._traced:
            self._traced[group] = self._trace(group, views)
        return self._traced[group]

    def _trace(self, group: tuple[str, ...], views: Mapping[str, WeightView]) -> dict[str, WeightView]:
        if not all(name in views for name in group):
            return {}
        roles: dict[str, list[set[int]]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for role in range(3):
            marked = {name: _mark_axis(views[name], role) for name in group}
            for name, tensor in _revert_conversion(self._model, marked).items():
                roles.setdefault(name, []).append(_find_varying_axes(tensor))
                shapes[name] = tuple(tensor.shape)
        is_grouped = any(views[name].groups > 1 for name in group)
        traced = {name: _assign_axes(axes, shapes[name], is_grouped=is_grouped) for name, axes in roles.items()}
        return {name: view for name, view in traced.items() if view is not None}


class _SourceTracker(TorchDispatchMode):
    """Records which tensors each tensor is computed from.

    Args:
        tensors: Name → tensor to track.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sources: dict[int, tuple[str, ...]] = {id(tensor): (name,) for name, tensor in tensors.items()}
        self._alive: list[torch.Tensor] = []  # so that no id is used twice

    def find_sources(self, tensor: torch.Tensor) -> tuple[str, ...]:
        """Return the names of the tensors that a tensor is computed from."""
        return self._sources[id(tensor)]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = [self._sources.get(id(leaf), ()) for leaf in tree_leaves((args, kwargs))]
        sources = tuple(dict.fromkeys(name for names in inputs for name in names))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._sources[id(leaf)] = sources
                self._alive.append(leaf)
        return result


def _revert_conversion(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convert tensors of a model to their published form."""
    if not is_pretrained(model):
        return state
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return _revert_names(model, state)
    pretrained: Any = model
    reverted: dict[str, torch.Tensor] = revert_weight_conversion(pretrained, dict(state))
    return reverted


def _revert_names(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename tensors as ``save_pretrained`` did before transformers 5, for the model classes for which it did."""
    from transformers import modeling_utils

    families: Iterable[str] = getattr(modeling_utils, "VLMS", ())
    classes = [base.__name__.lower() for base in type(model).__mro__]
    if not any(family in name for family in families for name in classes):
        return state
    prefixes = {
        new: re.sub(r"\(.*\)", "", old.lstrip("^"))
        for old, new in getattr(model, "_checkpoint_conversion_mapping", {}).items()
    }
    return {_replace_prefix(name, prefixes): tensor for name, tensor in state.items()}


def _replace_prefix(name: str, patterns: Mapping[str, str]) -> str:
    """Replace the first pattern that occurs in a name."""
    for pattern, replacement in patterns.items():
        replaced, count = re.subn(pattern, replacement, name)
        if count:
            return replaced
    return name


def _group_sources(sets: Iterable[tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Merge overlapping sets: name → the names of its set, in order."""
    groups: dict[str, dict[str, None]] = {}
    for names in sets:
        merged = dict.fromkeys(other for name in names for other in groups.get(name, {name: None}))
        for name in merged:
            groups[name] = merged
    return {name: tuple(group) for name, group in groups.items()}


def _mark_axis(view: WeightView, role: int) -> torch.Tensor:
    """Return a tensor of the weight's shape whose values number its outputs, kernel positions or inputs."""
    sizes = view.canonical_shape
    marker = torch.arange(sizes[role]).remainder(MARKERS).to(torch.uint8)
    shape = [sizes[axis] if axis == role else 1 for axis in range(3)]
    marked: torch.Tensor = view.to_stored(marker.reshape(shape).expand(sizes))
    return marked


def _find_varying_axes(tensor: torch.Tensor) -> set[int]:
    """Return the axes along which the values differ."""
    return {
        axis for axis, size in enumerate(tensor.shape) if size > 1 and bool((tensor != tensor.narrow(axis, 0, 1)).any())
    }


def _assign_axes(axes: list[set[int]], shape: tuple[int, ...], *, is_grouped: bool) -> WeightView | None:
    """Build a view from the axes of outputs, kernel positions and inputs; ``None`` if an axis has several roles."""
    outputs, kernel, inputs = axes
    if outputs & kernel or outputs & inputs or kernel & inputs or 0 in shape:
        return None
    outputs |= {axis for axis in range(len(shape)) if axis not in outputs | kernel | inputs}  # axes of length 1
    ordered = tuple(sorted(outputs))
    return WeightView(
        shape=shape,
        output_axes=ordered,
        kernel_axes=tuple(sorted(kernel)),
        input_axes=tuple(sorted(inputs)),
        groups=shape[ordered[0]] if is_grouped and len(ordered) > 1 else 1,
    )
