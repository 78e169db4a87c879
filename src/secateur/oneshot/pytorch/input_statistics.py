"""What calibration tells of the inputs of layers, added up over batches.

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
from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.batches import version
from secateur.oneshot.pytorch.input_features import features

__all__ = ["InputStatistics"]

PROJECTION = 11
"""Place of the output projection's weight among the arguments of ``multi_head_attention_forward``."""


class _AttentionCalls(TorchFunctionMode):
    """Notes what the output projections of ``nn.MultiheadAttention`` read, which never run as modules.

    Args:
        notes: Identity of a projection's weight → called with positional and keyword arguments of a module.
    """

    def __init__(self, notes: Mapping[int, Callable[[tuple[Any, ...], dict[str, Any]], None]]) -> None:
        super().__init__()
        self._notes = notes

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not functional.multi_head_attention_forward or id(args[PROJECTION]) not in self._notes:
            return func(*args, **kwargs)
        weight, bias, *rest = args[PROJECTION:]
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        call: Any = func  # mypy takes the comparison above for a narrower type
        heads, attention = call(*args[:PROJECTION], identity, None, *rest, **kwargs)
        self._notes[id(weight)]((heads,), {})
        return functional.linear(heads, weight, bias), attention


class InputStatistics:
    """Gram matrices or norms of what layers read; layers that read the very same tensor share theirs.

    Args:
        layers: Layer name → module.
        with_gram: Whether to add up ``Xᵀ X``, or only its diagonal.

    Attributes:
        keep: Booleans of shape (batch, tokens) for the batch under way, ``False`` = padding; ``None``: all count.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, with_gram: bool) -> None:
        self.layers = dict(layers)
        self.with_gram = with_gram
        self.keep: torch.Tensor | None = None
        self._leaders: dict[str, str] = {}
        self._calls: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._sums: dict[str, torch.Tensor] = {}
        self._seen: dict[tuple[int, int], tuple[str, Any]] = {}

    @contextmanager
    def record_inputs(self) -> Iterator[None]:
        """Add up whatever the layers read while this is open."""
        projections = {
            name: module for name, module in self.layers.items() if isinstance(module, NonDynamicallyQuantizableLinear)
        }
        with ExitStack() as hooks:
            for name in self.layers.keys() - projections.keys():
                handle = self.layers[name].register_forward_pre_hook(self._hook(name), with_kwargs=True)
                hooks.callback(handle.remove)
            if projections:
                notes = {id(module.weight): partial(self._hook(name), module) for name, module in projections.items()}
                hooks.enter_context(_AttentionCalls(notes))
            yield

    def start_batch(self, keep: torch.Tensor | None) -> None:
        """Say that another batch begins, and which of its tokens count."""
        self.keep = keep
        self._seen.clear()

    def groups(self) -> list[tuple[str, ...]]:
        """The layers that read the same inputs, in the order given.

        Raises:
            CalibrationError: A layer read nothing, or nothing but padding or zeros, or what it read is not finite.
        """
        self._seen.clear()
        if missing := [name for name in self.layers if not self._rows[self._leaders.get(name, name)]]:
            raise CalibrationError(
                f"{format_list(map(repr, missing))} read nothing while the calibration data went through the model. "
                f"Exclude them, or give data that reach them."
            )
        found: dict[str, list[str]] = {}
        for name in self.layers:
            if self._calls[name] != self._calls[self._leaders[name]]:
                raise self._shared_at_times(name)
            found.setdefault(self._leaders[name], []).append(name)
        for leader in found:
            if not bool(torch.isfinite(self._sums[leader]).all()):
                raise CalibrationError(
                    f"layer {leader!r}: what it reads must be finite, found inf or nan. Look at the calibration data "
                    f"and at the layers before it."
                )
            if not bool(self._sums[leader].any()):
                raise CalibrationError(
                    f"layer {leader!r} reads nothing but zeros, which do not tell which of its weights matter. Exclude "
                    f"it, or give other data."
                )
        return [tuple(names) for names in found.values()]

    def norms(self, layer: str) -> torch.Tensor:
        """Norm of each input feature over all tokens."""
        total = self._sums[self._leaders[layer]]
        return (total.diagonal(dim1=-2, dim2=-1) if self.with_gram else total).clamp(min=0).sqrt()

    def pop_gram(self, layer: str) -> torch.Tensor | None:
        """The Gram matrix, which is not held here any longer; ``None``: not added up."""
        return self._sums.pop(self._leaders[layer]) if self.with_gram else None

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = (*args, *kwargs.values())
            # The tensor is held, so that no other gets its identity within the batch; changed in place, it is another.
            leader, _ = self._seen.setdefault((id(inputs[0]), version(inputs[0])), (name, inputs[0]))
            if not self._may_share(name, leader):
                leader = name
            if self._leaders.setdefault(name, leader) != leader:
                raise self._shared_at_times(name)
            self._calls[name] += 1
            if leader == name:
                for chunk in features(name, module, inputs, self.keep):
                    self._add(name, chunk)

        return note

    def _shared_at_times(self, name: str) -> CalibrationError:
        return CalibrationError(
            f"layer {name!r} shares its input with {self._leaders[name]!r} in some batches and not in others. "
            f"Exclude one of them."
        )

    def _may_share(self, name: str, leader: str) -> bool:
        """Whether two layers that read one tensor make the same features of it."""
        mine, theirs = self.layers[name], self.layers[leader]
        plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
        return name == leader or (not isinstance(mine, plain) and not isinstance(theirs, plain))

    def _add(self, name: str, rows_NGF: torch.Tensor) -> None:
        self._rows[name] += len(rows_NGF)
        if not self.with_gram:
            fresh = rows_NGF.square().sum(dim=0)
            self._sums[name] = self._sums[name].add_(fresh) if name in self._sums else fresh
            return
        rows_GNF = rows_NGF.transpose(0, 1)
        if name not in self._sums:
            groups, _, width = rows_GNF.shape
            self._sums[name] = rows_GNF.new_zeros((groups, width, width))
        self._sums[name].baddbmm_(rows_GNF.transpose(1, 2), rows_GNF)
