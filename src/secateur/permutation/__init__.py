"""Reorder the hidden channels of a model so that N:M and blocks prune less important weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from secateur.config import ConfigLike
from secateur.frameworks import import_leaf
from secateur.results.permutation_report import PermutationReport

__all__ = ["PermutationReport", "permute_channels"]


def permute_channels(model: Any, config: ConfigLike, *, calibration: Iterable[Any]) -> PermutationReport:
    """Reorder the hidden channels of a torch model for a pattern, in place, before it is pruned.

    The order of hidden channels, such as the neurons of a feed-forward network or the channels of a convolution, does
    not matter to a dense model, if all layers that compute or read them agree. It decides which weights share a group
    of N:M or a block. The search maximizes the scores that are kept, squared weights × energy of their inputs: for N:M
    and for blocks of several inputs, over all layers that read the channels; for blocks of several outputs, over all
    that compute them. Then all members of the group are reordered. The outputs of the model stay the same, which is
    checked on the first batch, and nothing is added to it. Optimizers keep their state in the old order: make them
    afterwards.

    Values of attention heads are reordered within their head, with the columns of the output projection; query heads
    that share a key/value head share its order. Queries, keys, and channels that a norm combines, as in the residual
    stream of language models, keep their order. ``secateur.prune(..., permute=True)`` does the same within a run. The
    search takes about two seconds on one core for 1,536 channels and 576 rows that read them.

    Args:
        model: A torch module.
        config: How the model will be pruned, as for `secateur.prune`.
        calibration: Batches as for `secateur.prune`.

    Returns:
        The groups of channels, and the kept scores before and after.

    Raises:
        ConfigError: The pattern prunes the same in any order, as single weights and whole channels do.
        CalibrationError: The calibration data is unusable, or the outputs of the model changed. In both
            cases, the model is unchanged.
        LayerError: A layer has weights that are not finite.
        UnsupportedModelError: The model has tensors that cannot change.

    Source:
        Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8)
        >>> model = torch.nn.Sequential(*layers)
        >>> config = {"pattern": "2:4", "op_names": ["2"]}
        >>> batches = [torch.randn(64, 8) for _ in range(4)]
        >>> report = secateur.permutation.permute_channels(model, config, calibration=batches)
        >>> [group.after >= group.before for group in report.groups]
        [True]
        >>> secateur.prune(model, config, calibration=batches, solver="wanda").sparsity
        0.5
    """
    report: PermutationReport = import_leaf("secateur.permutation", model).permute_channels(model, config, calibration)
    return report
