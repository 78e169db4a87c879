"""Provide data sets by name."""

from __future__ import annotations

from secateur.compat.neural_compressor.data.datasets.dummy_dataset import DummyDataset
from secateur.errors import UnknownNameError

__all__ = ["DATASETS", "Datasets", "DummyDataset"]

DATASETS = {"dummy": DummyDataset}
"""Name → class of a data set."""


class Datasets:
    """The data sets of a framework, by name.

    Args:
        framework: Any name; the data sets contain NumPy arrays.

    Examples:
        >>> samples = Datasets("pytorch")["dummy"](shape=(10, 3), label=True)
        >>> len(samples), samples[0][0].shape
        (10, (3,))
    """

    def __init__(self, framework: str) -> None:
        self.framework = framework

    def __getitem__(self, name: str) -> type[DummyDataset]:
        if name not in DATASETS:
            raise UnknownNameError(
                f"Unknown data set {name!r}. Known: {', '.join(DATASETS)}. Load other data with torchvision or "
                f"datasets, and pass any iterable of batches."
            )
        return DATASETS[name]
