"""Prune the blocks of a language model with Wanda."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import islice
from typing import Any

from secateur.compat.neural_compressor.compression.pruner.wanda.utils import find_layers, get_module_list
from secateur.oneshot import Execution, prune
from secateur.results import PruningReport

__all__ = ["prune_wanda"]


def prune_wanda(
    model: Any,
    dataloader: Iterable[Any],
    sparsity_ratio: float,
    prune_n: int = 0,
    prune_m: int = 0,
    nsamples: int = 128,
    use_variant: bool = False,
    device: Any = None,
    low_mem_usage: bool | None = None,  # noqa: ARG001
    dsnot: bool = False,
) -> PruningReport:
    """Prune the linear layers in a model's blocks by ``|W[i,j]| · ‖X[j]‖``.

    Args:
        model: A torch module with a list of blocks.
        dataloader: Calibration batches. The first element of a tuple or list is the model's input; mappings are passed
            as keyword arguments.
        sparsity_ratio: Share of weights to prune in each layer, in [0, 1); not used with `prune_n`.
        prune_n: Weights to prune of every `prune_m`; 0: anywhere in the row.
        prune_m: Length of a group.
        nsamples: Maximum number of batches.
        use_variant: Whether rows of a layer may lose different numbers of weights; see `secateur.solvers.Wanda`. Has
            no effect with `dsnot`.
        device: Device on which each block runs; ``None``: where the model is.
        low_mem_usage: Not used: only one block at a time is on `device`.
        dsnot: Whether to exchange weights afterwards; see `secateur.refiners.DSnoT`.

    Raises:
        SecateurError: The model or the data does not fit.

    Source:
        Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695.
    """
    blocks = get_module_list(model)
    name = next(name for name, module in model.named_modules() if module is blocks)
    settings: dict[str, Any] = {
        "pattern": f"{prune_m - prune_n}:{prune_m}" if prune_n else "1x1",
        "op_names": [re.escape(layer) for layer in find_layers(blocks, name=name)],
    }
    if not prune_n:
        settings["target_sparsity"] = sparsity_ratio
    solvers = import_module("secateur.solvers")  # it imports torch
    return prune(
        model,
        settings,
        calibration=_iterate_inputs(dataloader, nsamples),
        solver=solvers.Wanda(by_share=use_variant and not dsnot),
        refine="dsnot" if dsnot else (),
        allocation="uniform",
        execution=Execution(device=device),
    )


def _iterate_inputs(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Yield the inputs of the first batches, without their labels."""
    for batch in islice(batches, count):
        yield batch[0] if isinstance(batch, list | tuple) and batch else batch
