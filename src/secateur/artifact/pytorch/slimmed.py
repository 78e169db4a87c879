"""Load slimmed models: give a dense model the sizes that the manifest states, without the removed modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from secateur._resizing.pytorch import (
    Assign,
    BranchLayout,
    drop_blocks,
    find_mismatch,
    list_branches,
    list_removed_blocks,
    record_blocks,
    replace_modules,
    set_sizes,
)
from secateur._wording import make_printable_line
from secateur.artifact.reader import Artifact
from secateur.errors import ArtifactError

__all__ = ["check_sizes", "find_resized", "remove_modules", "resize_modules"]


@contextmanager
def remove_modules(model: nn.Module, artifact: Artifact) -> Iterator[None]:
    """Remove the blocks and branches from a model that an artifact lacks. If an exception is raised, put them back.

    Raises:
        ArtifactError: The model does not have them.
    """
    undo: list[Callable[[], object]] = []

    def assign(owner: MutableMapping[str, Any], key: str, value: Any) -> None:
        before = dict(owner)
        undo.append(lambda: owner.update({key: before[key]}) if key in before else owner.pop(key))
        owner[key] = value

    try:
        _remove(model, artifact, assign)
        yield
    except BaseException:
        for change in reversed(undo):
            change()
        raise


def _remove(model: nn.Module, artifact: Artifact, assign: Assign) -> None:
    blocks, branches = artifact.manifest.blocks or {}, artifact.manifest.branches or {}
    layouts = {name: BranchLayout(**entry.model_dump()) for name, entry in branches.items()}
    try:
        for name, positions in blocks.items() if list_removed_blocks(model) != blocks else ():
            container = model.get_submodule(name)
            record_blocks(container, positions, assign)
            drop_blocks(container, positions, assign)
        present = list_branches(model)
        replace_modules(model, {name: layouts[name] for name in layouts if name not in present}, assign)
    except (AttributeError, ValueError) as error:
        raise _refuse(artifact, str(error)) from error
    if any(layouts.get(name) != layout for name, layout in present.items()):
        raise _refuse(artifact, "other modules were removed from it")


def find_resized(model: nn.Module, artifact: Artifact) -> frozenset[int]:
    """Return the ids of the tensors whose shape may differ from the artifact: those of slimmed modules."""
    sizes = artifact.manifest.sizes or {}
    modules = [module for name, module in model.named_modules() if name in sizes]
    registries = [(*module._parameters.values(), *module._buffers.values()) for module in modules]
    return frozenset(id(tensor) for tensors in registries for tensor in tensors)


def check_sizes(model: nn.Module, artifact: Artifact) -> None:
    """Check that a model has the modules and attributes whose sizes the manifest states.

    Raises:
        ArtifactError: It does not.
    """
    mismatch = find_mismatch(model, artifact.manifest.sizes or {})
    if mismatch is not None:
        raise _refuse(artifact, mismatch)


def resize_modules(model: nn.Module, artifact: Artifact) -> None:
    """Set the attributes of slimmed modules, after their tensors were replaced."""
    set_sizes(model, artifact.manifest.sizes or {})


def _refuse(artifact: Artifact, mismatch: str) -> ArtifactError:
    return ArtifactError(
        f"{artifact.path}: has a slimmed model, which does not belong to this one: {make_printable_line(mismatch)}. "
        f"Build the model as it was before it was slimmed."
    )
