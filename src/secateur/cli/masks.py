"""The masks of whatever can be inspected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._manifest_file import MANIFEST
from secateur.artifact import Artifact, TensorRow
from secateur.artifact.checkpoints import open_checkpoint
from secateur.artifact.dtypes import DTYPES
from secateur.frameworks import import_leaf
from secateur.frameworks.view import WeightView
from secateur.report import Mask

__all__ = ["masks_of"]

NOTABLE = 0.01
"""Share of zeros from which on a weight without a pattern is drawn too; with fewer, they are there by chance."""

Tensor = tuple[WeightView | None, Callable[[], npt.NDArray[Any]]]
"""Where a tensor's channels lie, and what reads the bit patterns of its numbers."""


def masks_of(found: Any, rows: Iterable[TensorRow]) -> Iterator[Mask]:
    """The masks of weights that were pruned, read one after another.

    Args:
        found: A path, or a model.
        rows: What inspecting it told.
    """
    tensor_of = _reader(found)
    for row in rows:
        if row.pattern is None and row.sparsity < NOTABLE:
            continue
        view, read = tensor_of(row.name)
        if view is not None:
            keep = np.asarray(view.canonical(DTYPES[row.dtype].nonzero(read())))
            yield Mask(name=row.layer or row.name, pattern=row.pattern, keep=keep.reshape(len(keep), -1))


def _reader(found: Any) -> Callable[[str], Tensor]:
    if isinstance(found, Path) and (found / MANIFEST).is_file():
        artifact = Artifact(found)
        return lambda name: (artifact.entry(name).view, lambda: artifact[name].bits)
    source = (
        open_checkpoint(found)
        if isinstance(found, Path)
        else import_leaf("secateur.artifact", found).make_source(found)
    )
    return lambda name: (source.tensors[name].view, source.tensors[name].read)
