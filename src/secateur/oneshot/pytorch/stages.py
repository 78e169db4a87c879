"""The parts of a model that are pruned one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.frameworks.view import WeightView
from secateur.masking.run import refuse_nan
from secateur.oneshot.pytorch.activations import Activations
from secateur.oneshot.pytorch.batches import Batch, name_failing_batch
from secateur.oneshot.pytorch.block_stack import Stack, find_block_stack
from secateur.oneshot.pytorch.targets import Target
from secateur.oneshot.pytorch.weight_storage import WeightStorage

__all__ = ["BlockStage", "ModelStage", "Stage", "build_stages"]

GRAM_BYTES = 1 << 28
"""Gram matrices that are added up in one pass through a model that has no stack of blocks."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Layers that are pruned from the inputs of one pass over the calibration data.

    Attributes:
        name: What to call it.
        targets: Its layers, in the model's order.
        batches: The calibration data.
    """

    name: str
    targets: Sequence[Target]
    batches: Sequence[Batch]

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What runs."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[object]:
        """While this is open, the weights that run are where they run."""

    @abstractmethod
    def forward(self, number: int) -> torch.Tensor | None:
        """Run on one batch; returns what the next stage reads, if this one hands anything on."""

    @abstractmethod
    def advance(self) -> None:
        """Hand what is now given out on to the next stage."""


@dataclass(frozen=True, kw_only=True)
class BlockStage(Stage):
    """One block of a stack, fed with what the pruned blocks before it give out.

    Attributes:
        stack: The stack.
        index: The block's place in it.
        inputs: The hidden states that it reads, and later those that it gives out.
        storage: Where the block is while others run.
    """

    stack: Stack
    index: int
    inputs: Activations
    storage: WeightStorage

    @property
    def module(self) -> nn.Module:
        """The block."""
        return self.stack.blocks[self.index]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """See `Stage.opened`.

        Raises:
            ScoreError: A weight has ``nan``.
        """
        with self.storage.open(self.module):
            refuse_nan({target.name: target.weight for target in self.targets})
            yield

    def forward(self, number: int) -> torch.Tensor:
        """See `Stage.forward`."""
        with name_failing_batch(number):
            hidden = self.inputs[number].to(self.storage.device(self.module))
            return self.stack.calls[number][self.index].run(self.module, hidden)

    def advance(self) -> None:
        """See `Stage.advance`."""
        for batch in self.batches:
            self.inputs[batch.number] = self.forward(batch.number)


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """Layers anywhere in a model, which runs as a whole.

    Attributes:
        model: The model.
        device: Where it runs.
        follow: Called when its layers are pruned.
    """

    model: nn.Module
    device: torch.device
    follow: Callable[[], object] | None = None

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    def opened(self) -> AbstractContextManager[object]:
        """See `Stage.opened`; outside its blocks a model runs where it is."""
        return nullcontext()

    def forward(self, number: int) -> None:
        """See `Stage.forward`."""
        self.batches[number].run(self.model, self.device)

    def advance(self) -> None:
        """See `Stage.advance`; every stage of a whole model begins at the beginning."""
        if self.follow is not None:
            self.follow()


def build_stages(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Sequence[Batch],
    inputs: Activations,
    storage: WeightStorage,
) -> list[Stage]:
    """All layers in the stages that prune them, in the order in which the model runs them.

    Args:
        model: The model.
        targets: Layer → how to prune it.
        batches: Calibration data.
        inputs: Takes the hidden states that blocks read.
        storage: Where the model's weights are.

    Raises:
        UnsupportedModelError: Layers lie in no stack of blocks, and the model as a whole cannot run.
    """
    home = storage.home
    stack = find_block_stack(model, targets, batches, inputs, storage)
    if stack is None:
        return list(_model_stages(model, list(targets.values()), batches, home))
    order = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    owner = {name: _owner(name, stack) for name in targets}
    outside = [targets[name] for name, index in owner.items() if index is None]
    storage.refuse_outside([target.name for target in outside])
    start = order[stack.names[0]]
    before = [target for target in outside if order[target.name] < start]
    after = [target for target in outside if order[target.name] >= start]
    blocks = [
        BlockStage(
            name=name,
            targets=[targets[layer] for layer, index in owner.items() if index == place],
            batches=batches,
            stack=stack,
            index=place,
            inputs=inputs,
            storage=storage,
        )
        for place, name in enumerate(stack.names)
    ]
    last = max(place for place, block in enumerate(blocks) if block.targets)
    first = list(_model_stages(model, before, batches, home))

    def record_again() -> None:
        """Have the blocks read what the pruned layers before them give out."""
        found = find_block_stack(model, targets, batches, inputs, storage)
        assert found is not None
        stack.calls[:] = found.calls

    if first:
        first[-1] = replace(first[-1], follow=record_again)
    return [
        *first,
        *blocks[: last + 1],
        *_model_stages(model, after, batches, home),
    ]


def _owner(layer: str, stack: Stack) -> int | None:
    """The block that a layer lies in."""
    return next((i for i, name in enumerate(stack.names) if layer == name or layer.startswith(f"{name}.")), None)


def _model_stages(
    model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch], device: torch.device
) -> Iterator[ModelStage]:
    group: list[Target] = []
    size = 0
    for target in targets:
        more = _gram_bytes(target.selector.view)
        if group and size + more > GRAM_BYTES:
            yield _model_stage(model, group, batches, device)
            group, size = [], 0
        group.append(target)
        size += more
    if group:
        yield _model_stage(model, group, batches, device)


def _model_stage(
    model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch], device: torch.device
) -> ModelStage:
    name = targets[0].name if len(targets) == 1 else f"{targets[0].name} to {targets[-1].name}"
    return ModelStage(name=name, targets=targets, batches=batches, model=model, device=device)


def _gram_bytes(view: WeightView) -> int:
    _, positions, inputs = view.canonical_shape
    return 4 * view.groups * (positions * inputs) ** 2
