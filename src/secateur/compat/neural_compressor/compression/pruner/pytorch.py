"""Record the inputs of a block of a torch model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from secateur.oneshot.pytorch.blockwise.block_stack import BlockCall
from secateur.oneshot.pytorch.calibration.batches import move_to

__all__ = ["record_inputs"]


class _RecordedError(Exception):
    """Stops a forward pass once the inputs of the block are recorded."""


@torch.no_grad()
def record_inputs(
    model: nn.Module, block: nn.Module, batches: Iterable[Any], device: Any
) -> tuple[list[Any], Sequence[Any], dict[str, list[Any]]]:
    """Run a model up to a block; see `secateur.compat.neural_compressor.compression.pruner.utils.collect_layer_inputs`.

    Args:
        model: The model.
        block: The block.
        batches: Batches of the model.
        device: Device of the result; ``None``: where the inputs are.
    """
    hidden: list[Any] = []
    positional: list[Any] = []
    named: dict[str, list[Any]] = {}

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call, state = BlockCall.split(args, kwargs)
        hidden.append(move_to(state, device))
        others = {name: value for name, value in call.kwargs.items() if name != call.position}
        rest = call.args[1:] if call.position == 0 else call.args
        if not positional:
            positional.extend(move_to(list(rest), device))
        for name, value in others.items():
            named.setdefault(name, []).append(move_to(value, device))
        raise _RecordedError

    hook = block.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for batch in batches:
            try:
                _call(model, move_to(batch, next(model.parameters()).device))
            except _RecordedError:
                continue
    finally:
        hook.remove()
    return hidden, positional, named


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, list | tuple):
        model(batch[0])
    else:
        model(batch)
