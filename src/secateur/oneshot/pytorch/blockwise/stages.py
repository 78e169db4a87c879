"""The stages of a calibrated run: parts of a model that are pruned one after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.frameworks.view import WeightView
from secateur.masking.run import refuse_nan
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.block_stack import BlockStack, find_block_stack
from secateur.oneshot.pytorch.calibration.batches import Batch, name_failing_batch
from secateur.oneshot.pytorch.storage.weight_storage import WeightStorage
from secateur.oneshot.pytorch.targets import Target

__all__ = ["BlockStage", "ModelStage", "Stage", "build_stages", "count_gram_bytes", "find_block"]

MAX_GRAM_BYTES = 1 << 29
"""Size, in float32, of the Gram matrices accumulated in one pass through a model without a stack of blocks."""


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """Layers that are pruned with the inputs of one pass over the calibration data.

    Attributes:
        name: Its name in progress reports.
        targets: Its layers, in the model's order.
        batches: The calibration data.
    """

    name: str
    targets: Sequence[Target]
    batches: Sequence[Batch]

    @property
    def has_work(self) -> bool:
        """Whether it has layers to prune."""
        return bool(self.targets)

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """The module that runs."""

    @property
    def block(self) -> BlockStage | None:
        """Itself, if it is a block of a stack."""
        return None

    @abstractmethod
    def load_weights(self) -> AbstractContextManager[object]:
        """Load the weights onto the device that runs the stage, within this context."""

    @abstractmethod
    def forward(self, number: int) -> torch.Tensor | None:
        """Run on one batch; return the inputs of the next stage, or ``None`` if it does not read any."""

    @abstractmethod
    def advance(self) -> None:
        """Pass the current outputs on to the next stage."""


@dataclass(frozen=True, kw_only=True)
class BlockStage(Stage):
    """One block of a stack, which reads the outputs of the pruned blocks before it.

    Attributes:
        stack: The stack.
        index: Index of the block in the stack.
        inputs: Its input hidden states, later replaced by its outputs.
        storage: Stores the weights of the block.
    """

    stack: BlockStack
    index: int
    inputs: Activations
    storage: WeightStorage

    @property
    def module(self) -> nn.Module:
        """The block."""
        return self.stack.blocks[self.index]

    @property
    def block(self) -> BlockStage:
        """See `Stage.block`."""
        return self

    @contextmanager
    def load_weights(self) -> Iterator[None]:
        """See `Stage.load_weights`.

        Raises:
            ScoreError: A weight is ``nan``.
        """
        with self.storage.load(self.module):
            refuse_nan({target.name: target.weight for target in self.targets})
            yield

    def forward(self, number: int) -> torch.Tensor:
        """See `Stage.forward`."""
        return self.run(number, self.inputs[number])

    def run(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run on other hidden states, with the other inputs of a batch."""
        with name_failing_batch(number):
            return self.stack.calls[number][self.index].run(self.module, hidden.to(self.storage.device(self.module)))

    def advance(self) -> None:
        """See `Stage.advance`."""
        for batch in self.batches:
            self.inputs[batch.number] = self.forward(batch.number)


@dataclass(frozen=True, kw_only=True)
class ModelStage(Stage):
    """Layers anywhere in a model that runs as a whole.

    Attributes:
        model: The model.
        device: The device it runs on.
        on_advance: Called when the layers of this stage are pruned.
    """

    model: nn.Module
    device: torch.device
    on_advance: Callable[[], object] | None = None

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.model

    def load_weights(self) -> AbstractContextManager[object]:
        """See `Stage.load_weights`; the whole model stays on its device."""
        return nullcontext()

    def forward(self, number: int) -> None:
        """See `Stage.forward`."""
        next(batch for batch in self.batches if batch.number == number).run(self.model, self.device)

    def advance(self) -> None:
        """See `Stage.advance`; every stage of a whole model runs from the start."""
        if self.on_advance is not None:
            self.on_advance()


def build_stages(
    model: nn.Module,
    targets: Mapping[str, Target],
    batches: Sequence[Batch],
    inputs: Activations,
    storage: WeightStorage,
) -> list[Stage]:
    """Build the stages that prune all layers, in the order in which the model runs them.

    Args:
        model: The model.
        targets: Layer → its target.
        batches: Calibration data.
        inputs: Stores the hidden states that blocks read.
        storage: Stores the model's weights.

    Raises:
        UnsupportedModelError: Layers are outside of a stack of blocks, and the model cannot run as a whole.
    """
    device = storage.default_device
    stack = find_block_stack(model, targets, batches, inputs, storage)
    if stack is None:
        return list(_group_into_stages(model, list(targets.values()), batches, device))
    order = {name: position for position, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    order |= {name: order[name.rpartition(".")[0]] for name in targets if name not in order}
    owner = {name: find_block(name, stack) for name in targets}
    outside = [targets[name] for name, index in owner.items() if index is None]
    storage.refuse_outside([target.name for target in outside])
    start = order[stack.names[0]]
    before = [target for target in outside if order[target.name] < start]
    after = [target for target in outside if order[target.name] >= start]
    blocks = [
        BlockStage(
            name=name,
            targets=[targets[layer] for layer, index in owner.items() if index == position],
            batches=batches,
            stack=stack,
            index=position,
            inputs=inputs,
            storage=storage,
        )
        for position, name in enumerate(stack.names)
    ]
    last = max(position for position, block in enumerate(blocks) if block.targets)
    first = list(_group_into_stages(model, before, batches, device))

    def record_again() -> None:
        """Record the calls of the blocks again, with the outputs of the pruned layers before them."""
        recorded = find_block_stack(model, targets, batches, inputs, storage)
        assert recorded is not None
        stack.calls.update(recorded.calls)

    if first:
        first[-1] = replace(first[-1], on_advance=record_again)
    return [
        *first,
        *blocks[: last + 1],
        *_group_into_stages(model, after, batches, device),
    ]


def find_block(layer: str, stack: BlockStack) -> int | None:
    """Return the index of the block that a layer is in, or ``None``."""
    return next((i for i, name in enumerate(stack.names) if layer == name or layer.startswith(f"{name}.")), None)


def _group_into_stages(
    model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch], device: torch.device
) -> Iterator[ModelStage]:
    group: list[Target] = []
    size = 0
    for target in targets:
        added = count_gram_bytes(target.selector.view)
        if group and size + added > MAX_GRAM_BYTES:
            yield _create_model_stage(model, group, batches, device)
            group, size = [], 0
        group.append(target)
        size += added
    if group:
        yield _create_model_stage(model, group, batches, device)


def _create_model_stage(
    model: nn.Module, targets: Sequence[Target], batches: Sequence[Batch], device: torch.device
) -> ModelStage:
    name = targets[0].name if len(targets) == 1 else f"{targets[0].name} to {targets[-1].name}"
    return ModelStage(name=name, targets=targets, batches=batches, model=model, device=device)


def count_gram_bytes(view: WeightView) -> int:
    """Return the size of the Gram matrices of a layer while they are added up, in float64."""
    _, positions, inputs = view.canonical_shape
    return 8 * view.groups * (positions * inputs) ** 2
