"""Provide `DummyDataset`, which generates random arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from secateur.errors import ConfigError

__all__ = ["DummyDataset"]

SEED = 9527
"""Seed of the arrays, so that every data set of a shape has the same content."""


class DummyDataset:
    """Samples drawn uniformly from an interval, with the label 0.

    Args:
        shape: Shape of all samples together, number of samples first; a list of shapes for samples of several arrays.
        low: Lower bound of the values; a list with one per array.
        high: Upper bound of the values; a list with one per array.
        dtype: Name of a NumPy dtype; a list with one per array.
        label: Whether a sample is a pair of the array and its label.
        options: ``transform`` and ``filter``, which have no effect.

    Raises:
        ConfigError: The shapes have different numbers of samples, or a list has the wrong length.
    """

    def __init__(
        self,
        shape: Any,
        low: Any = -128.0,
        high: Any = 127.0,
        dtype: Any = "float32",
        label: Any = True,
        **options: Any,  # noqa: ARG002 - part of the interface
    ) -> None:
        shapes = shape if isinstance(shape, list) else [shape]
        settings = [setting if isinstance(setting, list) else [setting] * len(shapes) for setting in (low, high, dtype)]
        if any(len(setting) != len(shapes) for setting in settings) or len({size[0] for size in shapes}) > 1:
            raise ConfigError(
                f"low, high and dtype must have one value per shape, and all shapes the same number of samples, found "
                f"shape={shape!r}, low={low!r}, high={high!r} and dtype={dtype!r}."
            )
        generator = np.random.RandomState(SEED)
        arrays = [
            generator.uniform(least, most, size=size).astype(kind)
            for size, least, most, kind in zip(shapes, *settings, strict=True)
        ]
        self.label = bool(label)
        self.dataset: Any = arrays[0] if len(arrays) == 1 else list(zip(*arrays, strict=True))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return (self.dataset[index], 0) if self.label else self.dataset[index]
