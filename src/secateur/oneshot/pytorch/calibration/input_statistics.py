"""Accumulate statistics of layer inputs over the calibration batches: Gram matrices or norms.

Legend: G groups, F input features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode

from secateur._wording import format_list
from secateur.distributed.pytorch.team import Team
from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.calibration.batches import get_version
from secateur.oneshot.pytorch.calibration.gram_sums import add_gram, mirror_gram
from secateur.oneshot.pytorch.calibration.input_features import iterate_features

__all__ = ["AttentionCalls", "InputStatistics", "widen"]

PROJECTION_ARGUMENT = 11
"""Position of the output projection's weight in the arguments of ``multi_head_attention_forward``."""


class AttentionCalls(TorchFunctionMode):
    """Replaces the output projections of ``nn.MultiheadAttention``, which never run as modules.

    Args:
        projections: Identity of a projection's weight → function of the heads, of shape (tokens, batch, features), the
            weight and the bias, which returns the output.
    """

    def __init__(self, projections: Mapping[int, Callable[..., torch.Tensor]]) -> None:
        super().__init__()
        self._projections = projections

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if (
            func is not functional.multi_head_attention_forward
            or id(args[PROJECTION_ARGUMENT]) not in self._projections
        ):
            return func(*args, **kwargs)
        weight, bias, *rest = args[PROJECTION_ARGUMENT:]
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        call: Any = func  # mypy narrows the type after the comparison above
        heads, attention = call(*args[:PROJECTION_ARGUMENT], identity, None, *rest, **kwargs)
        return self._projections[id(weight)](heads, weight, bias), attention


class InputStatistics:
    """Gram matrices or norms of layer inputs, and their means. Layers that read the same tensor share them.

    Sums over one batch are in float32, and sums over batches in float64, so that their order hardly matters.

    Args:
        layers: Layer name → module.
        with_gram: Whether to accumulate ``Xᵀ X``, or only its diagonal.

    Attributes:
        keep: Booleans of shape (batch, tokens) for the current batch, ``False`` = padding; ``None``: all tokens count.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, with_gram: bool) -> None:
        self.layers = dict(layers)
        self.with_gram = with_gram
        self.keep: torch.Tensor | None = None
        self._leaders: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._sums: dict[str, torch.Tensor] = {}
        self._totals: dict[str, torch.Tensor] = {}
        self._seen: dict[tuple[int, int], tuple[str, Any]] = {}

    @contextmanager
    def record_inputs(self) -> Iterator[None]:
        """Accumulate the inputs of the layers in this context."""
        projections = {
            name: module for name, module in self.layers.items() if isinstance(module, NonDynamicallyQuantizableLinear)
        }
        with ExitStack() as hooks:
            for name in self.layers.keys() - projections.keys():
                handle = self.layers[name].register_forward_pre_hook(self._hook(name), with_kwargs=True)
                hooks.callback(handle.remove)
            if projections:
                calls = {id(module.weight): partial(self._project, name) for name, module in projections.items()}
                hooks.enter_context(AttentionCalls(calls))
            yield

    def _project(self, name: str, heads: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        self._hook(name)(self.layers[name], (heads,), {})
        return functional.linear(heads, weight, bias)

    def start_batch(self, keep: torch.Tensor | None) -> None:
        """Start the next batch; `keep` says which of its tokens count."""
        self.keep = keep
        self._seen.clear()

    def group_layers(self, *, allow_zeros: bool = False) -> list[tuple[str, ...]]:
        """Group the layers that read the same inputs, in the order of `layers`.

        Args:
            allow_zeros: Whether inputs may be all zero.

        Raises:
            CalibrationError: A layer read nothing, only padding or only zeros, or its inputs are not finite.
        """
        self._seen.clear()
        if missing := [name for name in self.layers if not self._rows[self._leaders.get(name, name)]]:
            raise CalibrationError(
                f"{format_list(map(repr, missing))} read no calibration data. Exclude them, or provide data that "
                f"reaches them. If the model multiplies by their weight without calling them, as Mamba does with "
                f"dt_proj, add them to excluded_op_names."
            )
        groups: dict[str, list[str]] = {}
        for name in self.layers:
            if self._calls[name] != self._calls[self._leaders[name]]:
                raise self._create_sharing_error(name)
            groups.setdefault(self._leaders[name], []).append(name)
        for leader in groups:
            if not bool(torch.isfinite(self._sums[leader].float()).all()):
                raise CalibrationError(
                    f"layer {leader!r}: its inputs must be finite, found inf or nan. Check the calibration data and "
                    f"the layers before it."
                )
            if not allow_zeros and not bool(self._sums[leader].any()):
                raise CalibrationError(
                    f"layer {leader!r}: its inputs are all zero, so they do not show which weights matter. Exclude it, "
                    f"or provide other data."
                )
        return [tuple(names) for names in groups.values()]

    def add_other_ranks(self, team: Team) -> None:
        """Add the statistics of the other ranks, so that all ranks have those of all batches.

        Raises:
            CalibrationError: Layers share their inputs on some ranks and not on others.
            RankError: Another rank has failed or exited.
        """
        if team.size == 1:
            return
        self._seen.clear()
        shapes = {name: tuple(total.shape) for name, total in self._sums.items()}
        answers = team.gather((self._leaders, self._calls, self._rows, shapes))
        self._calls, self._rows = Counter(), Counter()
        known: dict[str, tuple[int, ...]] = {}
        for leaders, calls, rows, others in answers:
            for name, leader in leaders.items():
                if self._leaders.setdefault(name, leader) != leader:
                    raise self._create_sharing_error(name)
            self._calls += calls
            self._rows += rows
            known |= others
        names = [name for name in self.layers if name in known]
        for store, axes in ((self._sums, None), (self._totals, 2)):
            own = (store[name] if name in store else self._create_zeros(name, known[name][:axes]) for name in names)
            store.update(zip(names, team.add(own), strict=True))

    def _create_zeros(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the statistics of a layer that has read nothing, beside those of the others."""
        device = next((weight.device for weight in self.layers[name].parameters()), None)
        return widen(torch.zeros(shape, device=device))

    def norms(self, layer: str) -> torch.Tensor:
        """Return the norm of each input feature over all tokens."""
        total = self._sums[self._leaders[layer]]
        return (total.diagonal(dim1=-2, dim2=-1) if self.with_gram else total).clamp(min=0).sqrt().float()

    def compute_moments(self, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the variance of each input feature over all tokens."""
        leader = self._leaders[layer]
        means = (self._totals[leader] / self._rows[leader]).float()
        return means, (self.norms(layer).square() / self._rows[leader] - means.square()).clamp(min=0)

    def count_rows(self, layer: str) -> int:
        """Return the number of tokens, or output positions of a convolution, that were read."""
        return self._rows[self._leaders[layer]]

    def pop_gram(self, layer: str) -> torch.Tensor | None:
        """Return and discard the Gram matrix; ``None`` if it was not accumulated."""
        return mirror_gram(self._sums.pop(self._leaders[layer])) if self.with_gram else None

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (*args, *kwargs.values())
            if not isinstance(inputs[0], torch.Tensor):
                return  # the layer itself says what it cannot read
            # Keep the tensor, so that its id stays unique within the batch. An in-place update makes it another one.
            leader, _ = self._seen.setdefault((id(inputs[0]), get_version(inputs[0])), (name, inputs[0]))
            if not self._can_share(name, leader):
                leader = name
            if self._leaders.setdefault(name, leader) != leader:
                raise self._create_sharing_error(name)
            self._calls[name] += 1
            if leader == name:
                for chunk in iterate_features(name, module, inputs, self.keep):
                    self._add(name, chunk)

        return record

    def _create_sharing_error(self, name: str) -> CalibrationError:
        return CalibrationError(
            f"layer {name!r} shares its input with {self._leaders[name]!r} in some batches and not in others. "
            f"Exclude one of them."
        )

    def _can_share(self, name: str, leader: str) -> bool:
        """Whether two layers that read the same tensor have the same input features."""
        special = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
        return name == leader or not any(isinstance(self.layers[layer], special) for layer in (name, leader))

    def _add(self, name: str, rows_NGF: torch.Tensor) -> None:
        self._rows[name] += len(rows_NGF)
        if name not in self._totals:
            groups, features = rows_NGF.shape[1:]
            self._totals[name] = widen(rows_NGF.new_zeros(groups, features))
            self._sums[name] = widen(rows_NGF.new_zeros(groups, features, *[features] * self.with_gram))
        self._totals[name] += rows_NGF.sum(dim=0)
        if self.with_gram:
            add_gram(self._sums[name], rows_NGF.transpose(0, 1))
        else:
            self._sums[name] += rows_NGF.square().sum(dim=0)


def widen(total: torch.Tensor) -> torch.Tensor:
    """Return a sum over one batch in float64, to which those of other batches are added.

    Results that are then rounded to float32 rarely depend on their order, and therefore on which process adds which
    batch.
    """
    return total if total.device.type == "mps" else total.double()
