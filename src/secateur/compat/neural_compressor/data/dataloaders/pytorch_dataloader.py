"""Provide `PyTorchDataLoader`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

__all__ = ["PyTorchDataLoader"]


class PyTorchDataLoader:
    """Yields batches of a data set as tensors, with ``torch.utils.data.DataLoader``.

    Args:
        dataset: Has a length and items.
        batch_size: Samples per batch.
        last_batch: ``"discard"`` drops an incomplete last batch; ``"rollover"`` keeps it.
        options: Options of ``torch.utils.data.DataLoader``; ``distributed`` is ignored.

    Examples:
        >>> from secateur.compat.neural_compressor.data import Datasets
        >>> loader = PyTorchDataLoader(Datasets("pytorch")["dummy"](shape=(10, 3)), 4)
        >>> [tuple(inputs.shape) for inputs, _ in loader]
        [(4, 3), (4, 3), (2, 3)]
    """

    def __init__(self, dataset: Any, batch_size: int = 1, last_batch: str = "rollover", **options: Any) -> None:
        options.pop("distributed", None)
        leaf = import_module("secateur.compat.neural_compressor.data.dataloaders.pytorch")
        self.dataset = dataset
        self.batch_size = batch_size
        self.dataloader = leaf.DataLoader(dataset, batch_size, drop_last=last_batch != "rollover", **options)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataloader)

    def __len__(self) -> int:
        return len(self.dataloader)
