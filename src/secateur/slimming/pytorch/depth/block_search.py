"""Find blocks that return their input once their branches are removed, and remove them from their list."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._huggingface.pytorch import is_pretrained
from secateur._resizing.pytorch import drop_blocks, list_children, record_blocks
from secateur.slimming.pytorch.configuration import list_configs
from secateur.slimming.pytorch.depth.constant_outputs import disturb_inputs
from secateur.slimming.pytorch.depth.depth_configuration import find_depth_fields, list_differences
from secateur.slimming.pytorch.journal import Journal

__all__ = ["BlockCut", "configure_cut", "find_identities", "find_pretrained", "remove_blocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCut:
    """Blocks to remove from a list.

    Attributes:
        container: Name of the module with the list.
        positions: Which of its modules to remove, in ascending order.
        config: Fields of the configuration of a transformers model → their new values.
    """

    container: str
    positions: tuple[int, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def find_identities(model: nn.Module, branches: Collection[str], example: ExampleRun) -> dict[str, tuple[int, ...]]:
    """Run a model whose branches are removed, and find the blocks that return their input.

    Args:
        model: The model.
        branches: Names of the modules that were replaced.
        example: Runs the model.

    Returns:
        Name of a list of modules → the positions of the blocks.
    """
    places = {}
    for container, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for position, name in enumerate(list_children(model, container)):
                if any(branch.startswith(f"{name}.") for branch in branches):
                    places[name] = (container, position)
    is_identity: dict[str, bool] = {}

    def observe(name: str, _: nn.Module, inputs: Mapping[str, Any], output: Any) -> None:
        value, *others = output if isinstance(output, tuple) and output else (output,)
        is_same = any(_is_equal(value, source) for source in inputs.values())
        is_identity[name] = is_identity.get(name, True) and is_same and all(other is None for other in others)

    with disturb_inputs(model, places, observe):
        example.run()
    found: dict[str, tuple[int, ...]] = {}
    for name, (container, position) in places.items():
        if is_identity.get(name):
            found[container] = (*found.get(container, ()), position)
    return found


def configure_cut(model: nn.Module, container: str, positions: tuple[int, ...]) -> BlockCut | None:
    """Find the fields of the configuration that describe a list without some blocks.

    Args:
        model: A model that has the blocks.
        container: Name of the list.
        positions: Which of its modules to remove.

    Returns:
        What to remove; ``None``: the list is in a transformers model whose configuration cannot describe it.
    """
    cut = BlockCut(container=container, positions=positions)
    pretrained = find_pretrained(model, container)
    if pretrained is None:
        return cut
    known, before = list_differences(pretrained, {}), len(model.get_submodule(container)._modules)
    journal = Journal()
    try:
        remove_blocks(model, [cut], journal)
        fields = find_depth_fields(pretrained, before, positions, known or ())
    finally:
        journal.roll_back()
    return None if fields is None else BlockCut(container=container, positions=positions, config=fields)


def remove_blocks(model: nn.Module, cuts: Sequence[BlockCut], journal: Journal) -> None:
    """Remove blocks from their lists, number the others again, and change the configuration."""
    found = [(model.get_submodule(cut.container), find_pretrained(model, cut.container), cut) for cut in cuts]
    for container, pretrained, cut in found:
        if pretrained is None:
            record_blocks(container, cut.positions, journal.replace)
        drop_blocks(container, cut.positions, journal.replace)
        for name, value in cut.config.items():
            place, dot, key = name.rpartition(".")
            journal.set_attribute(list_configs(pretrained.config)[place + dot], key, value)


def find_pretrained(model: nn.Module, name: str) -> Any:
    """Return the outermost transformers model that contains a module; ``None``: there is none."""
    for owner, module in model.named_modules():
        if is_pretrained(module) and (not owner or f"{name}.".startswith(f"{owner}.")):
            return module
    return None


def _is_equal(value: Any, source: Any) -> bool:
    are_tensors = isinstance(value, torch.Tensor) and isinstance(source, torch.Tensor)
    return are_tensors and value.dtype == source.dtype and torch.equal(value, source)
