"""Accumulate statistics of the inputs of each stacked expert, where its matrix is multiplied.

Legend: E experts, F input features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from secateur._wording import format_list
from secateur.distributed.pytorch.team import Team
from secateur.frameworks.pytorch import StackedWeight, get_parameter, get_view
from secateur.oneshot.pytorch.calibration.batches import iterate_tensors
from secateur.oneshot.pytorch.calibration.gram_sums import add_gram, mirror_gram
from secateur.oneshot.pytorch.calibration.input_statistics import widen

__all__ = ["ExpertStatistics"]

PRODUCTS = frozenset({torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__})
"""Operators whose second operand is a matrix that is stored with its inputs first."""

UNKNOWN_USE = "its experts are not multiplied one by one, so their inputs cannot be measured"
UNKNOWN_PADDING = "padding cannot be distinguished from tokens in the inputs of its experts"
NO_DATA = "none of its experts read calibration data"

IMPLEMENTATION = "_experts_implementation"
"""Setting of transformers' configurations; ``"eager"`` uses experts one by one."""


class _Matrix(NamedTuple):
    """The matrix of one expert; `tensor` keeps its identity unique."""

    layer: str
    expert: int
    tensor: torch.Tensor


class ExpertStatistics(TorchFunctionMode):
    """Gram matrices or norms of the inputs of each expert.

    Only tokens that reach an expert count for it. A layer is measured if each of its uses is the product of one
    expert's matrix with its inputs; otherwise `find_reason` says why it is not.

    Args:
        layers: Layer name → stacked experts.
        with_gram: Whether to accumulate ``Xᵀ X``, or only its diagonal.
    """

    def __init__(self, layers: Mapping[str, StackedWeight], *, with_gram: bool) -> None:
        super().__init__()
        self.layers = dict(layers)
        self.with_gram = with_gram
        self._names = {id(get_parameter(layer)): name for name, layer in layers.items()}
        self._views = {name: get_view(layer) for name, layer in layers.items()}
        self._rows = {name: torch.zeros(view.groups, dtype=torch.long) for name, view in self._views.items()}
        self._sums: dict[str, torch.Tensor] = {}
        self._reasons: dict[str, str] = {}
        self._keep: torch.Tensor | None = None
        self._matrices: dict[int, _Matrix] = {}
        self._hidden: torch.Tensor | None = None
        self._row_keeps: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._expert_keeps: dict[int, torch.Tensor] = {}

    @contextmanager
    def record_inputs(self) -> Iterator[None]:
        """Accumulate the inputs of the experts in this context."""
        modules = {id(layer.module): layer.module for layer in self.layers.values()}
        with ExitStack() as cleanup:
            for module in modules.values():
                handle = module.register_forward_pre_hook(self._start_call, with_kwargs=True)
                cleanup.callback(handle.remove)
                config = getattr(module, "config", None)
                if hasattr(config, IMPLEMENTATION):
                    cleanup.callback(setattr, config, IMPLEMENTATION, getattr(config, IMPLEMENTATION))
                    setattr(config, IMPLEMENTATION, "eager")
            if modules:
                cleanup.enter_context(self)
            yield

    def start_batch(self, keep: torch.Tensor | None) -> None:
        """Start the next batch; `keep` says which of its tokens count, ``None``: all."""
        self._keep = None if keep is None or bool(keep.all()) else keep.reshape(-1)

    def add_other_ranks(self, team: Team) -> None:
        """Add the statistics of the other ranks, so that all ranks have those of all batches.

        Raises:
            RankError: Another rank has failed or exited.
        """
        if team.size == 1 or not self.layers:
            return
        answers = team.gather((self._reasons, self._rows, list(self._sums)))
        self._reasons = {name: reason for reasons, _, _ in reversed(answers) for name, reason in reasons.items()}
        self._rows = {name: torch.stack([rows[name] for _, rows, _ in answers]).sum(dim=0) for name in self.layers}
        names = [name for name in self.layers if any(name in known for _, _, known in answers)]
        own = [self._sums[name] if name in self._sums else self._create_zeros(name) for name in names]
        self._sums = dict(zip(names, team.add(own), strict=True))

    def _create_zeros(self, name: str) -> torch.Tensor:
        """Return the statistics of a layer whose experts have read nothing."""
        view = self._views[name]
        _, positions, inputs = view.canonical_shape
        shape = (view.groups, *[positions * inputs] * (2 if self.with_gram else 1))
        return widen(torch.zeros(shape, device=get_parameter(self.layers[name]).device))

    def find_reason(self, layer: str) -> str | None:
        """Return why the inputs of a layer are unknown; ``None`` if those of at least one expert are known."""
        if layer in self._reasons:
            return self._reasons[layer]
        return None if bool(self._rows[layer].any()) else NO_DATA

    def find_unused_experts(self, layer: str) -> list[int]:
        """Return the experts that read no calibration data, or only zeros."""
        return [expert for expert, rows in enumerate(self._rows[layer].tolist()) if not rows]

    def describe_unused(self, layer: str) -> str:
        """Describe which experts read no calibration data."""
        numbers = format_list(map(str, self.find_unused_experts(layer)))
        return f"its experts {numbers} read no calibration data"

    def get_sums(self, layer: str) -> torch.Tensor:
        """Return the Gram matrices (E, F, F), or their diagonals (E, F); zero for unused experts."""
        return mirror_gram(self._sums[layer]) if self.with_gram else self._sums[layer].float()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and record what it multiplies with an expert's matrix."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.Tensor.__getitem__:
            self._observe_selection(args[0], args[1], result)
        elif not _is_plain(result):
            self._observe_use(func, args, kwargs)
        return result

    def _start_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self._matrices.clear()
        self._row_keeps.clear()
        self._expert_keeps.clear()
        self._hidden = next((item for item in (*args, *kwargs.values()) if isinstance(item, torch.Tensor)), None)

    def _observe_selection(self, source: torch.Tensor, index: Any, result: torch.Tensor) -> None:
        if (layer := self._names.get(id(source))) is not None:
            is_scalar = isinstance(index, torch.Tensor) and index.ndim == 0 and index.dtype is torch.long
            if is_scalar or type(index) is int:
                self._matrices[id(result)] = _Matrix(layer, int(index), result)
            else:
                self._reasons[layer] = UNKNOWN_USE
        elif (matrix := self._matrices.get(id(source))) is not None:
            self._reasons[matrix.layer] = UNKNOWN_USE
        elif source is self._hidden and self._keep is not None and len(source) == len(self._keep):
            self._row_keeps[id(result)] = (result, self._keep.to(source.device)[index])

    def _observe_use(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        operands = list(iterate_tensors((args, kwargs)))
        layers = [self._names[id(operand)] for operand in operands if id(operand) in self._names]
        matrices = [self._matrices[id(operand)] for operand in operands if id(operand) in self._matrices]
        layers += [matrix.layer for matrix in matrices]
        if not layers:
            return
        if len(layers) == 1 and matrices and len(args) > 1 and args[1] is matrices[0].tensor:
            is_transposed = self.layers[layers[0]].is_transposed
            if func in PRODUCTS if is_transposed else func is functional.linear:
                self._add(matrices[0], args[0])
                return
        self._reasons |= dict.fromkeys(layers, UNKNOWN_USE)

    def _add(self, matrix: _Matrix, inputs: torch.Tensor) -> None:
        layer, expert, _ = matrix
        rows_NF = inputs.reshape(-1, inputs.shape[-1]).float()
        if self._keep is not None:
            _, keep = self._row_keeps.get(id(inputs), (None, self._expert_keeps.get(expert)))
            if keep is None or keep.shape != rows_NF.shape[:1]:
                self._reasons[layer] = UNKNOWN_PADDING
                return
            self._expert_keeps[expert] = keep
            rows_NF = rows_NF[keep]
        self._rows[layer][expert] += int(rows_NF.any(dim=1).sum())
        if layer not in self._sums:
            shape = (self._views[layer].groups, *[rows_NF.shape[1]] * (2 if self.with_gram else 1))
            self._sums[layer] = widen(rows_NF.new_zeros(shape))
        if self.with_gram:
            add_gram(self._sums[layer][expert : expert + 1], rows_NF[None])
        else:
            self._sums[layer][expert] += rows_NF.square().sum(dim=0)


def _is_plain(result: Any) -> bool:
    """Whether an operator returned a property of its operand, such as a shape, rather than tensors."""
    return result is None or isinstance(
        result, (bool, int, float, str, torch.Size, torch.device, torch.dtype, torch.layout)
    )
