"""The stages of a run that removes units: blocks of a stack, and groups of units outside of blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

import torch
from torch import nn

from secateur.errors import CalibrationError
from secateur.oneshot.pytorch.blockwise.activations import Activations
from secateur.oneshot.pytorch.blockwise.block_stack import BlockStack, find_block_stack
from secateur.oneshot.pytorch.blockwise.shortcut import Shortcut
from secateur.oneshot.pytorch.blockwise.stages import (
    MAX_GRAM_BYTES,
    BlockStage,
    ModelStage,
    Stage,
    count_gram_bytes,
    find_block,
)
from secateur.oneshot.pytorch.calibration.batches import Batch
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.storage.weight_storage import WeightStorage
from secateur.oneshot.pytorch.units.residual_sums import Comparison
from secateur.oneshot.pytorch.units.unit_groups import UnitGroup

__all__ = ["UnitStage", "build_unit_stages", "join_stages", "record_statistics", "sort_by_execution"]


@dataclass(frozen=True, kw_only=True)
class UnitStage:
    """Groups of units that are pruned with the inputs of one part of the model.

    Attributes:
        part: The part.
        groups: The groups, in the order in which the model runs the layers that read them.
    """

    part: Stage
    groups: Sequence[UnitGroup]

    @property
    def name(self) -> str:
        """Its name in progress reports."""
        return self.part.name

    @property
    def has_work(self) -> bool:
        """Whether it has groups to prune."""
        return bool(self.groups)

    @property
    def block(self) -> BlockStage | None:
        """Its part, if that is a block of a stack."""
        return self.part.block

    def load_weights(self) -> AbstractContextManager[object]:
        """See `Stage.load_weights`."""
        return self.part.load_weights()

    def advance(self) -> None:
        """See `Stage.advance`."""
        self.part.advance()

    def list_readers(self) -> dict[str, nn.Module]:
        """Return layer → module for all layers that read the groups and whose inputs can be measured."""
        readers = [reader for group in self.groups for reader in group.readers]
        return {reader.name: reader.module for reader in readers if reader.blind is None}


def build_unit_stages(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Sequence[Batch],
    inputs: Activations,
    storage: WeightStorage,
) -> list[UnitStage]:
    """Build the stages that prune all groups.

    Groups whose readers are all in one block of a stack are pruned with that block, and others one by one, with the
    whole model: before the blocks if their first reader is before them, else after them.

    Args:
        model: The model.
        groups: The groups, sorted by execution.
        batches: Calibration data.
        inputs: Stores the hidden states that blocks read.
        storage: Stores the model's weights.
    """
    layers = dict.fromkeys(layer for group in groups for layer in group.layers)
    stack = find_block_stack(model, layers, batches, inputs, storage)
    owners = [None if stack is None else _find_owner(group, stack) for group in groups]

    def create(group: UnitGroup) -> UnitStage:
        device = storage.default_device
        part = ModelStage(name=group.name, targets=(), batches=batches, model=model, device=device)
        return UnitStage(part=part, groups=(group,))

    outside = [group for group, owner in zip(groups, owners, strict=True) if owner is None]
    if stack is None or len(outside) == len(groups):
        inputs.close()
        return [create(group) for group in groups]
    order = {name: position for position, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    start = order[stack.names[0]]
    before = [create(group) for group in outside if order[group.readers[0].name] < start]
    after = [create(group) for group in outside if order[group.readers[0].name] >= start]

    def record_again() -> None:
        """Record the calls of the blocks again, with the outputs of what was pruned before them."""
        recorded = find_block_stack(model, layers, batches, inputs, storage)
        assert recorded is not None
        stack.calls.update(recorded.calls)

    if before:
        part = before[-1].part
        assert isinstance(part, ModelStage)
        before[-1] = replace(before[-1], part=replace(part, on_advance=record_again))
    blocks = list(_create_blocks(stack, (groups, owners), batches, inputs, storage))
    return [*before, *blocks, *after]


def _create_blocks(
    stack: BlockStack,
    owned: tuple[Sequence[UnitGroup], Sequence[int | None]],
    batches: Sequence[Batch],
    inputs: Activations,
    storage: WeightStorage,
) -> Iterator[UnitStage]:
    """Yield the blocks up to the last one with groups."""
    last = max(owner for owner in owned[1] if owner is not None)
    for index, name in enumerate(stack.names[: last + 1]):
        part = BlockStage(
            name=name, targets=(), batches=batches, stack=stack, index=index, inputs=inputs, storage=storage
        )
        yield UnitStage(part=part, groups=[group for group, owner in zip(*owned, strict=True) if owner == index])


def _find_owner(group: UnitGroup, stack: BlockStack) -> int | None:
    """Return the index of the block that all readers of a group are in; ``None``: there is none."""
    found = {find_block(reader.name, stack) for reader in group.readers}
    return found.pop() if len(found) == 1 else None


def join_stages(stages: Sequence[UnitStage]) -> list[UnitStage]:
    """Join stages of the whole model that can share one pass over the calibration data, as long as nothing is pruned.

    Each has at most `MAX_GRAM_BYTES` of Gram matrices, if more than one group.
    """
    joined: list[UnitStage] = []
    size = 0
    for stage in stages:
        added = sum(
            count_gram_bytes(reader.pattern.views[reader.name]) for group in stage.groups for reader in group.readers
        )
        is_whole = isinstance(stage.part, ModelStage)
        if joined and is_whole and isinstance(joined[-1].part, ModelStage) and size + added <= MAX_GRAM_BYTES:
            joined[-1] = replace(joined[-1], groups=(*joined[-1].groups, *stage.groups))
            size += added
        else:
            joined.append(stage)
            size = added
    return joined


def record_statistics(
    stage: Stage,
    layers: Mapping[str, nn.Module],
    *,
    with_gram: bool,
    outputs: Activations | None = None,
    comparison: Comparison | None = None,
) -> InputStatistics:
    """Run the calibration data through a stage once, and collect the input statistics of layers in it.

    Args:
        stage: The stage.
        layers: Layer → module.
        with_gram: Whether Gram matrices are needed; otherwise, norms are enough.
        outputs: Where to store the outputs of the stage, if it has any; ``None``: they are not needed, and each batch
            only runs up to the last of the layers.
        comparison: Compares sums with those of the dense model, if there is any.
    """
    statistics = InputStatistics(layers, with_gram=with_gram)
    comparison = comparison or Comparison({}, {})
    shortcut = Shortcut(layers.values() if outputs is None else ())
    with statistics.record_inputs(), comparison.watch(shortcut.count), shortcut.watch_calls():
        for batch in stage.batches:
            statistics.start_batch(batch.keep)
            comparison.start_batch(batch.keep)
            output = shortcut.run(stage, batch)
            if outputs is not None and output is not None:
                outputs[batch.number] = output
    return statistics


def sort_by_execution(
    model: nn.Module, groups: Sequence[UnitGroup], batch: Batch, device: torch.device
) -> list[UnitGroup]:
    """Sort groups, and the readers in each, by the order in which the model runs the readers with a batch."""
    readers = {reader.name: reader.module for group in groups for reader in group.readers}
    attention = {id(module.out_proj): module for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    order: dict[str, int] = {}
    with ExitStack() as hooks:
        for name, module in readers.items():
            # The output projection of this attention never runs as a module.
            runs = attention.get(id(module), module)
            if isinstance(runs, nn.Module):
                handle = runs.register_forward_pre_hook(_make_recorder(name, order))
                hooks.callback(handle.remove)
        try:
            batch.first_row().run(model, device)
        except CalibrationError:  # not every model accepts one row
            batch.run(model, device)
    last = len(order)
    ranked = [
        replace(group, readers=sorted(group.readers, key=lambda reader: order.get(reader.name, last)))
        for group in groups
    ]
    return sorted(ranked, key=lambda group: order.get(group.readers[0].name, last))


def _make_recorder(name: str, order: dict[str, int]) -> Callable[..., None]:
    def record(*_: object) -> None:
        order.setdefault(name, len(order))

    return record
