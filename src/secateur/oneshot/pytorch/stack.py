"""A model's stack of blocks: how each is called, so that one can run after another without the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.activations import Activations
from secateur.oneshot.pytorch.batches import Batch, moved

__all__ = ["Call", "Stack", "find_stack"]


@dataclass(frozen=True)
class Call:
    """All that one block gets in one batch, but for the hidden state.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        place: Which of them is the hidden state.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: int | str

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, Any]:
        """The call and its hidden state: the first positional argument, or the first of all."""
        place: int | str = 0 if args else next(iter(kwargs))
        if isinstance(place, int):
            return cls((None, *args[1:]), kwargs, place), args[0]
        return cls(args, kwargs | {place: None}, place), kwargs[place]

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block's next hidden state."""
        device = hidden.device
        args, kwargs = moved(self.args, device), moved(dict(self.kwargs), device)
        if isinstance(self.place, int):
            args = (hidden, *args[1:])
        else:
            kwargs[self.place] = hidden
        found = block(*args, **kwargs)
        hidden_after: torch.Tensor = found[0] if isinstance(found, (tuple, list)) else found
        return hidden_after


@dataclass(frozen=True)
class Stack:
    """Blocks that run one after another.

    Attributes:
        names: Name of each block in the model, in the order in which they run.
        blocks: The blocks.
        calls: Batch → block → how it is called.
    """

    names: Sequence[str]
    blocks: Sequence[nn.Module]
    calls: Sequence[Sequence[Call]]


def find_stack(
    model: nn.Module,
    layers: Collection[str],
    batches: Sequence[Batch],
    inputs: Activations,
    device: torch.device | None,
) -> Stack | None:
    """The stack of blocks that holds most of the layers; ``None``: none runs in the simple way that is needed.

    That way is: each block runs once per batch, and its output is all that the next one's hidden state is. It is found
    out by calling the model with blocks that do nothing but note how they are called.

    Args:
        model: The model.
        layers: Names of the layers to be pruned.
        batches: Calibration batches.
        inputs: Takes the first block's hidden state of each batch.
        device: Where the model runs outside its blocks.
    """
    for name, container in _containers(model, layers):
        names = [f"{name}.{key}".lstrip(".") for key in container._modules]
        if (calls := _recorded(model, container, batches, inputs, device)) is not None:
            return Stack(names, list(container.children()), calls)
    return None


def _containers(model: nn.Module, layers: Collection[str]) -> list[tuple[str, nn.Module]]:
    """Lists of at least two parts that hold layers, the one with most of them first."""

    def share(name: str) -> tuple[int, int]:
        prefix = f"{name}." if name else ""
        held = [layer for layer in layers if layer.startswith(prefix)]
        return len({layer[len(prefix) :].split(".")[0] for layer in held}), len(held)

    found = [
        (name, module) for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    ]
    several = [(name, module) for name, module in found if share(name)[0] >= 2]
    return sorted(several, key=lambda one: share(one[0])[1], reverse=True)


class _StopError(Exception):
    """Ends a forward pass: all that was wanted is known."""


class _NotAStackError(Exception):
    """The blocks do not run one after another."""


class _Recorder(nn.Module):
    """Stands in for a block: notes how it is called, and hands its hidden state on."""

    def __init__(self, block: nn.Module, number: int, note: Callable[[int, Any, Any], Any]) -> None:
        super().__init__()
        self.block, self.number, self.note = block, number, note

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)  # models look at attributes of their blocks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.note(self.number, args, kwargs)


def _recorded(
    model: nn.Module, container: nn.Module, batches: Sequence[Batch], inputs: Activations, device: torch.device | None
) -> list[list[Call]] | None:
    found: list[list[Call]] = []
    returns_tuple: list[bool] = []
    last: list[Any] = [None]
    blocks = list(container.children())

    def note(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if number != len(found[-1]) or not (args or kwargs):
            raise _NotAStackError
        call, hidden = Call.of(args, kwargs)
        if not isinstance(hidden, torch.Tensor) or (number and hidden is not last[0]):
            raise _NotAStackError
        if number == 0:
            inputs[len(found) - 1] = hidden
        found[-1].append(call)
        if number == len(blocks) - 1:
            raise _StopError
        if not returns_tuple:
            returns_tuple.append(isinstance(blocks[0](*args, **kwargs), tuple))
        last[0] = hidden
        return (hidden,) if returns_tuple[0] else hidden

    with _replaced(container, [_Recorder(block, number, note) for number, block in enumerate(blocks)]):
        for batch in batches:
            found.append([])
            try:
                batch.run(model, device)
            except _StopError:
                continue
            except (_NotAStackError, CalibrationError):  # what stands between the blocks may refuse what they hand on
                return None
            return None  # the last block was never reached
    return found


@contextmanager
def _replaced(container: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Other parts in a container, which gets its own back."""
    own = dict(container._modules)
    try:
        for key, part in zip(own, parts, strict=True):
            container._modules[key] = part
        yield
    finally:
        container._modules.update(own)
