"""Compare residual streams of the dense and the pruned model, so that repairs make up for errors of earlier layers.

Legend: N tokens that count, R outputs of a layer, F its input features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode

from secateur.frameworks.pytorch import is_transformers_conv1d
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.units.unit_problems import Correction

__all__ = ["Comparison", "DenseSums"]

ADDITIONS = {"add", "add_", "__add__", "__iadd__", "__radd__"}

DENSE_SHARE = 0.5
"""Share of the difference from the dense model that repairs make up for, as for the targets of `Block`. For SmolLM2
without 20 % of its blocks, it reduces the rise of the log-perplexity by 10 %."""

OnSum = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Receives the name of a layer, its input, and the sum that its output is added to, of shape (..., R)."""


class SumWatch(TorchFunctionMode):
    """Watches for sums of the output of a linear layer and another tensor of the same shape.

    Args:
        layers: Layer name → module; others than linear layers are not watched.
        on_sum: Called for each sum.
    """

    def __init__(self, layers: Mapping[str, nn.Module], on_sum: OnSum) -> None:
        super().__init__()
        self._layers = {name: module for name, module in layers.items() if _is_linear(module)}
        self._on_sum = on_sum
        self._outputs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch in this context."""
        with ExitStack() as hooks:
            for name, module in self._layers.items():
                hooks.callback(module.register_forward_hook(partial(self._keep, name), with_kwargs=True).remove)
            hooks.callback(self._outputs.clear)
            hooks.enter_context(self)
            yield

    def _keep(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._outputs[name] = (args[0] if args else next(iter(kwargs.values()))), output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._outputs and getattr(func, "__name__", "") in ADDITIONS:
            terms = [term for term in args[:2] if isinstance(term, torch.Tensor)]
            for name, (inputs, output) in list(self._outputs.items()):
                if len(terms) > 1 and any(term is output for term in terms) and result.shape == output.shape:
                    del self._outputs[name]
                    self._on_sum(name, inputs, result)
        return result


class DenseSums:
    """The sums in one block of the dense model.

    Args:
        offload: Where to store them; see `Activations`.
    """

    def __init__(self, offload: Literal["memory", "disk"]) -> None:
        self._offload = offload
        self._sums: dict[str, Activations] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def record(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Record the sums of all batches that run through a block in this context, in place of those known before."""
        self.close()
        with SumWatch(layers, self._store).watch():
            yield

    def close(self) -> None:
        """Free memory and disk space."""
        for sums in self._sums.values():
            sums.close()
        self._sums, self._counts = {}, {}

    def start(self, layers: Mapping[str, nn.Module], batches: int) -> Comparison:
        """Return the comparison for those of the layers with one sum per batch."""
        known = {name: self._sums[name] for name in layers if self._counts.get(name) == batches}
        return Comparison({name: layers[name] for name in known}, known)

    def _store(self, name: str, _: torch.Tensor, total: torch.Tensor) -> None:
        number = self._counts.get(name, 0)
        self._sums.setdefault(name, Activations(self._offload))[number] = total.detach().clone()
        self._counts[name] = number + 1


class Comparison:
    """The differences of sums in the dense and in the pruned model, for all batches in turn.

    Args:
        layers: Layer name → module.
        dense: Layer name → number of a batch → sum in the dense model.
    """

    def __init__(self, layers: Mapping[str, nn.Module], dense: Mapping[str, Activations]) -> None:
        self.layers = layers
        self._dense = dense
        self._batches = {name: len(sums) for name, sums in dense.items()}
        self._keep: torch.Tensor | None = None
        self._counts = dict.fromkeys(layers, 0)
        self._rows = dict.fromkeys(layers, 0)
        self._found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._on_sum: Callable[[nn.Module], None] = lambda _: None

    @contextmanager
    def watch(self, on_sum: Callable[[nn.Module], None]) -> Iterator[None]:
        """Compare what runs in this context; `on_sum` is called with a layer once its sum is known."""
        self._on_sum = on_sum
        with SumWatch(self.layers, self._compare).watch():
            yield

    def start_batch(self, keep: torch.Tensor | None) -> None:
        """Start the next batch; `keep` says which of its tokens count."""
        self._keep = keep

    def read(self, names: Sequence[str]) -> dict[str, Correction]:
        """Return layer → what a repair adds to its outputs, for those of the layers that were compared."""
        corrections = {}
        for name in names:
            if name in self._found and self._counts[name] == self._batches[name]:
                products_RF, total_R = self._found[name]
                mean_R = total_R / max(1, self._rows[name])
                corrections[name] = Correction((DENSE_SHARE * products_RF).float(), (DENSE_SHARE * mean_R).float())
        return corrections

    def _compare(self, name: str, inputs: torch.Tensor, total: torch.Tensor) -> None:
        dense = self._dense[name][self._counts[name]].to(total.device)
        self._counts[name] += 1
        rows_NR = self._select_tokens(dense.float() - total.float())
        rows_NF = self._select_tokens(inputs.float())
        products_RF, total_R = rows_NR.T @ rows_NF, rows_NR.sum(dim=0)
        if name in self._found:
            self._found[name][0].add_(products_RF)
            self._found[name][1].add_(total_R)
        else:
            self._found[name] = products_RF.double(), total_R.double()
        self._rows[name] += len(rows_NR)
        self._on_sum(self.layers[name])

    def _select_tokens(self, values: torch.Tensor) -> torch.Tensor:
        if self._keep is not None and self._keep.shape == values.shape[:-1]:
            return values[self._keep.to(values.device)]
        return values.reshape(-1, values.shape[-1])


def _is_linear(module: nn.Module) -> bool:
    is_linear = isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)
    return is_linear or is_transformers_conv1d(module)
