"""Load slimmed models: give the modules of a dense model the sizes that the manifest states."""

from __future__ import annotations

from torch import nn

from secateur._resizing.pytorch import find_mismatch, set_sizes
from secateur._wording import make_printable_line
from secateur.artifact.reader import Artifact
from secateur.errors import ArtifactError

__all__ = ["check_sizes", "find_resized", "resize_modules"]


def find_resized(model: nn.Module, artifact: Artifact) -> frozenset[int]:
    """Return the ids of the tensors that may have another shape than in the artifact: those of slimmed modules."""
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
        raise ArtifactError(
            f"{artifact.path}: has a slimmed model, which does not belong to this one: "
            f"{make_printable_line(mismatch)}. Build the model as it was before it was slimmed."
        )


def resize_modules(model: nn.Module, artifact: Artifact) -> None:
    """Set the attributes of slimmed modules, after their tensors were replaced."""
    set_sizes(model, artifact.manifest.sizes or {})
