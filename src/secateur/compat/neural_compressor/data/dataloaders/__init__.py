"""Provide data loaders by the name of their framework."""

from __future__ import annotations

from typing import Any

from secateur.compat.neural_compressor.data.dataloaders.pytorch_dataloader import PyTorchDataLoader
from secateur.errors import UnknownNameError

__all__ = ["DATALOADERS", "DataLoader", "PyTorchDataLoader"]

DATALOADERS = {"pytorch": PyTorchDataLoader, "pytorch_fx": PyTorchDataLoader, "pytorch_ipex": PyTorchDataLoader}
"""Framework → class of its data loader."""


def DataLoader(framework: str, dataset: Any, *args: Any, **options: Any) -> PyTorchDataLoader:  # noqa: N802
    """Create the data loader of a framework.

    Args:
        framework: A key of `DATALOADERS`.
        dataset: The data set.
        args: Further arguments of the data loader.
        options: Options of the data loader.

    Raises:
        UnknownNameError: There is no data loader for the framework. For TensorFlow, use ``tf.data``.
    """
    if framework not in DATALOADERS:
        raise UnknownNameError(
            f"framework must be one of {', '.join(DATALOADERS)}, found {framework!r}. For Keras models, pass batches "
            f"from tf.data or any other iterable."
        )
    return DATALOADERS[framework](dataset, *args, **options)
