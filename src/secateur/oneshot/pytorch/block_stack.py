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
from secateur.oneshot.pytorch.batches import Batch, move_to, version
from secateur.oneshot.pytorch.weight_storage import WeightStorage

__all__ = ["Call", "Stack", "find_block_stack"]


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
        found = self.outputs(block, hidden)
        hidden_after: torch.Tensor = found[0] if isinstance(found, (tuple, list)) else found
        return hidden_after

    def outputs(self, block: nn.Module, hidden: torch.Tensor) -> Any:
        """All that the block gives out."""
        device = hidden.device
        args, kwargs = move_to(self.args, device), move_to(dict(self.kwargs), device)
        if isinstance(self.place, int):
            args = (hidden, *args[1:])
        else:
            kwargs[self.place] = hidden
        return block(*args, **kwargs)


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
    calls: list[list[Call]]


def find_block_stack(
    model: nn.Module,
    layers: Collection[str],
    batches: Sequence[Batch],
    inputs: Activations,
    storage: WeightStorage,
) -> Stack | None:
    """The stack of blocks that holds most of the layers; ``None``: none runs in the simple way that is needed.

    That way is: each block runs once per batch, its output is all that the next one's hidden state is, and nothing else
    that blocks get depends on it. It is found out by calling the model with blocks that do nothing but note how they
    are called, and once more with blocks that give out something else.

    Args:
        model: The model.
        layers: Names of the layers to be pruned.
        batches: Calibration batches.
        inputs: Takes the first block's hidden state of each batch.
        storage: Where the model's weights are.

    Raises:
        UnsupportedModelError: There is none, and the model as a whole cannot run.
    """
    refusal: CalibrationError | None = None
    for name, container in _containers(model, layers):
        blocks = {f"{name}.{key}".lstrip("."): block for key, block in _blocks(container).items()}
        storage.load_outside(blocks)
        trial = _Trial(model, container, storage)
        if (calls := _recorded(trial, batches, inputs)) is not None:
            return Stack(list(blocks), list(blocks.values()), calls)
        refusal = refusal or trial.refusal
    storage.refuse_outside(list(layers), refusal)
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


def _blocks(container: nn.Module) -> dict[str, nn.Module]:
    """Key → block; one that stands in several places is there several times, other than in `children`."""
    return {key: block for key, block in container._modules.items() if block is not None}


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


class _Trial:
    """Runs of a model with blocks that do nothing but note how they are called.

    Args:
        model: The model.
        container: What holds the blocks.
        storage: Where the model's weights are.

    Attributes:
        calls: How each block was called in the last run.
        first: The hidden state of the first block.
        refusal: Why the model did not come to its last block, if it raised an error.
    """

    def __init__(self, model: nn.Module, container: nn.Module, storage: WeightStorage) -> None:
        self.model, self.container, self.storage = model, container, storage
        self.blocks = list(_blocks(container).values())
        self.calls: list[Call] = []
        self.first: Any = None
        self.refusal: CalibrationError | None = None
        self._handed_on: tuple[Any, int] = (None, 0)
        self._returns_tuple: bool | None = None

    def is_chain(self, batch: Batch, *, change: float = 0.0) -> bool:
        """Whether each block runs once, on nothing but what the one before it hands on.

        Args:
            batch: The batch.
            change: What blocks add to what they hand on; other than 0, the run goes on behind the last block.
        """
        self.calls = []

        def note(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number != len(self.calls) or not (args or kwargs):
                raise _NotAStackError
            call, hidden = Call.of(args, kwargs)
            self._check(number, hidden)
            self.calls.append(call)
            if not change and number == len(self.blocks) - 1:
                raise _StopError
            if self._returns_tuple is None:
                self._returns_tuple = self._first_returns_tuple(call, hidden)
            if number == 0 or change:  # not the batch itself, which the model may go on to change in place
                hidden = hidden + change
            self._handed_on = hidden, version(hidden)
            return (hidden,) if self._returns_tuple else hidden

        with _replaced(self.container, [_Recorder(block, place, note) for place, block in enumerate(self.blocks)]):
            try:
                batch.run(self.model, self.storage.home)
            except _NotAStackError:
                return False
            except _StopError:
                pass
            except CalibrationError as error:  # what stands behind the blocks may refuse what they hand on
                self.refusal = error if len(self.calls) < len(self.blocks) else None
        return len(self.calls) == len(self.blocks)

    def _first_returns_tuple(self, call: Call, hidden: torch.Tensor) -> bool:
        first = self.blocks[0]
        with self.storage.open(first):
            return isinstance(call.outputs(first, hidden.to(self.storage.device(first), copy=True)), tuple)

    def _check(self, number: int, hidden: Any) -> None:
        if not isinstance(hidden, torch.Tensor):
            raise _NotAStackError
        if number == 0:
            self.first = hidden
        elif hidden is not self._handed_on[0] or version(hidden) != self._handed_on[1]:
            raise _NotAStackError


def _recorded(trial: _Trial, batches: Sequence[Batch], inputs: Activations) -> list[list[Call]] | None:
    found = []
    for batch in batches:
        if not trial.is_chain(batch):
            return None
        inputs[batch.number] = trial.first
        found.append(trial.calls)
    # One row is enough to tell, if the model takes it: behind the blocks may stand a large head.
    is_independent = any(_is_independent(trial, one) for one in (batches[0].first_row(), batches[0]))
    return found if is_independent else None


def _is_independent(trial: _Trial, batch: Batch) -> bool:
    """Whether all else that blocks get is the same when those before them give out something else."""
    if not trial.is_chain(batch):
        return False
    calls = trial.calls
    return trial.is_chain(batch, change=1.0) and all(
        _are_equal(vars(call), vars(changed)) for call, changed in zip(calls, trial.calls, strict=True)
    )


def _are_equal(left: Any, right: Any) -> bool:
    """Whether two nests of tuples, lists and mappings hold equal tensors; ``nan`` equals itself."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(_are_equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_are_equal(left[key], right[key]) for key in left)
    return type(left) is type(right)


@contextmanager
def _replaced(container: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Other parts in a container, which gets its own back."""
    own = _blocks(container)
    try:
        for key, part in zip(own, parts, strict=True):
            container._modules[key] = part
        yield
    finally:
        container._modules.update(own)
