"""Find a model's stack of blocks and record how each block is called, so that it can run on its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.calibration.batches import Batch, get_version, move_to
from secateur.oneshot.pytorch.storage.weight_storage import WeightStorage

__all__ = ["BlockCall", "BlockStack", "find_block_stack"]


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block for one batch, except the hidden state.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        position: Position or name of the hidden state.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    position: int | str

    @classmethod
    def split(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[BlockCall, Any]:
        """Return the call and its hidden state: the first positional argument, or else the first keyword argument."""
        position: int | str = 0 if args else next(iter(kwargs))
        if isinstance(position, int):
            return cls((None, *args[1:]), kwargs, position), args[0]
        return cls(args, kwargs | {position: None}, position), kwargs[position]

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Run the block and return its hidden state."""
        output = self.call_block(block, hidden)
        next_hidden: torch.Tensor = output[0] if isinstance(output, (tuple, list)) else output
        return next_hidden

    def call_block(self, block: nn.Module, hidden: torch.Tensor) -> Any:
        """Run the block and return its whole output."""
        device = hidden.device
        args, kwargs = move_to(self.args, device), move_to(dict(self.kwargs), device)
        if isinstance(self.position, int):
            args = (hidden, *args[1:])
        else:
            kwargs[self.position] = hidden
        return block(*args, **kwargs)


@dataclass(frozen=True)
class BlockStack:
    """Blocks that run one after another.

    Attributes:
        names: Name of each block in the model, in the order in which they run.
        blocks: The blocks.
        calls: Number of a batch → block → its call.
    """

    names: Sequence[str]
    blocks: Sequence[nn.Module]
    calls: dict[int, list[BlockCall]]


def find_block_stack(
    model: nn.Module,
    layers: Collection[str],
    batches: Sequence[Batch],
    inputs: Activations,
    storage: WeightStorage,
) -> BlockStack | None:
    """Find the stack of blocks with the most layers to prune; ``None`` if no stack can run block by block.

    A stack can run block by block if each block runs once per batch, its output is the next block's hidden state, and
    no other argument of a block depends on it. To check this, the model runs with blocks that only record their calls,
    and once more with blocks that return something else.

    Args:
        model: The model.
        layers: Names of the layers to prune.
        batches: Calibration batches.
        inputs: Receives the first block's hidden state for each batch.
        storage: Stores the model's weights.

    Raises:
        UnsupportedModelError: There is no such stack, and the model cannot run as a whole.
    """
    refusal: CalibrationError | None = None
    for name, container in _find_containers(model, layers):
        blocks = {f"{name}.{key}".lstrip("."): block for key, block in _get_blocks(container).items()}
        storage.load_outside(blocks)
        trial = _Trial(model, container, storage)
        if (calls := _record_calls(trial, batches, inputs)) is not None:
            return BlockStack(list(blocks), list(blocks.values()), calls)
        refusal = refusal or trial.refusal
    storage.refuse_outside(list(layers), refusal)
    return None


def _find_containers(model: nn.Module, layers: Collection[str]) -> list[tuple[str, nn.Module]]:
    """Return the module lists with layers in at least two members, the one with the most layers first."""

    def count_layers(name: str) -> tuple[int, int]:
        prefix = f"{name}." if name else ""
        inside = [layer for layer in layers if layer.startswith(prefix)]
        return len({layer[len(prefix) :].split(".")[0] for layer in inside}), len(inside)

    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    ]
    candidates = [(name, module) for name, module in lists if count_layers(name)[0] >= 2]
    return sorted(candidates, key=lambda item: count_layers(item[0])[1], reverse=True)


def _get_blocks(container: nn.Module) -> dict[str, nn.Module]:
    """Return key → block; unlike `children`, a block in several places is returned several times."""
    return {key: block for key, block in container._modules.items() if block is not None}


class _StopError(Exception):
    """Stops a forward pass once all calls are recorded."""


class _NotAStackError(Exception):
    """Signals that the blocks do not run one after another."""


class _Recorder(nn.Module):
    """Replaces a block: records its call and returns its hidden state."""

    def __init__(self, block: nn.Module, number: int, record: Callable[[int, Any, Any], Any]) -> None:
        super().__init__()
        self.block, self.number, self.record = block, number, record

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)  # models read attributes of their blocks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.record(self.number, args, kwargs)


class _Trial:
    """Runs a model with blocks that only record their calls.

    Args:
        model: The model.
        container: The module list of the blocks.
        storage: Stores the model's weights.

    Attributes:
        calls: The call of each block in the last run.
        first: The hidden state of the first block.
        refusal: The error that prevented the model from reaching its last block, if any.
    """

    def __init__(self, model: nn.Module, container: nn.Module, storage: WeightStorage) -> None:
        self.model, self.container, self.storage = model, container, storage
        self.blocks = list(_get_blocks(container).values())
        self.calls: list[BlockCall] = []
        self.first: Any = None
        self.refusal: CalibrationError | None = None
        self._last_output: tuple[Any, int] = (None, 0)
        self._returns_tuple: bool | None = None

    def is_chain(self, batch: Batch, *, change: float = 0.0) -> bool:
        """Whether each block runs once, on the output of the previous block.

        Args:
            batch: The batch.
            change: Added to the output of each block. If not 0, the run continues after the last block.
        """
        self.calls = []

        def record(number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if number != len(self.calls) or not (args or kwargs):
                raise _NotAStackError
            call, hidden = BlockCall.split(args, kwargs)
            self._check(number, hidden)
            self.calls.append(call)
            if not change and number == len(self.blocks) - 1:
                raise _StopError
            if self._returns_tuple is None:
                self._returns_tuple = self._first_returns_tuple(call, hidden)
            if number == 0 or change:  # not the batch itself, which the model may change in place
                hidden = hidden + change
            self._last_output = hidden, get_version(hidden)
            return (hidden,) if self._returns_tuple else hidden

        with _replace_members(
            self.container, [_Recorder(block, number, record) for number, block in enumerate(self.blocks)]
        ):
            try:
                batch.run(self.model, self.storage.default_device)
            except _NotAStackError:
                return False
            except _StopError:
                pass
            except CalibrationError as error:  # modules after the blocks may reject the output
                self.refusal = error if len(self.calls) < len(self.blocks) else None
        return len(self.calls) == len(self.blocks)

    def _first_returns_tuple(self, call: BlockCall, hidden: torch.Tensor) -> bool:
        first = self.blocks[0]
        with self.storage.load(first):
            return isinstance(call.call_block(first, hidden.to(self.storage.device(first), copy=True)), tuple)

    def _check(self, number: int, hidden: Any) -> None:
        if not isinstance(hidden, torch.Tensor):
            raise _NotAStackError
        if number == 0:
            self.first = hidden
        elif hidden is not self._last_output[0] or get_version(hidden) != self._last_output[1]:
            raise _NotAStackError


def _record_calls(trial: _Trial, batches: Sequence[Batch], inputs: Activations) -> dict[int, list[BlockCall]] | None:
    calls = {}
    for batch in batches:
        if not trial.is_chain(batch):
            return None
        inputs[batch.number] = trial.first
        calls[batch.number] = trial.calls
    # Try one row first, because the blocks may be followed by a large head. Not every model accepts it.
    is_independent = any(_is_independent(trial, batch) for batch in (batches[0].first_row(), batches[0]))
    return calls if is_independent else None


def _is_independent(trial: _Trial, batch: Batch) -> bool:
    """Whether the other arguments of the blocks stay the same when the blocks return something else."""
    if not trial.is_chain(batch):
        return False
    calls = trial.calls
    return trial.is_chain(batch, change=1.0) and all(
        _are_equal(vars(call), vars(changed)) for call, changed in zip(calls, trial.calls, strict=True)
    )


def _are_equal(left: Any, right: Any) -> bool:
    """Whether nested tuples, lists and mappings have equal tensors; ``nan`` equals itself."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(map(_are_equal, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_are_equal(left[key], right[key]) for key in left)
    return type(left) is type(right)


@contextmanager
def _replace_members(container: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Replace the members of a container within this context."""
    members = _get_blocks(container)
    try:
        for key, part in zip(members, parts, strict=True):
            container._modules[key] = part
        yield
    finally:
        container._modules.update(members)
