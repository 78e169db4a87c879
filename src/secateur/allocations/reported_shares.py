"""Distribute the target like a trial of a search."""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.allocations.reported import ReportedAllocation, digest_records
from secateur.results import LayerShares

__all__ = ["ReportedShares"]


@dataclass(frozen=True, kw_only=True)
class ReportedShares(ReportedAllocation):
    """Prune layers in the proportions in which a trial of `secateur.search` has pruned them.

    ``allocation=trial`` is short for it. At the total of the trial, each layer loses as many units as there. At a
    smaller total, what layers lose is multiplied by a common factor; at a larger one, what they keep is.

    Attributes:
        shares: How much of each layer of this model was pruned.

    Examples:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
        >>> inputs = torch.randn(64, 8)
        >>> expected = model(inputs)
        >>> def error(pruned):
        ...     return (pruned(inputs) - expected).square().mean().item()
        >>> space = {"pattern": "1x1", "sparsity": [0.25, 0.5, 0.75], "groups": "layer"}
        >>> found = secateur.search(model, error, space, direction="minimize", trials=8)
        >>> trial = found.best(max_cost=0.6 * found.dense.cost)
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> shares = secateur.allocations.ReportedShares(shares=trial.get_layer_shares())
        >>> secateur.prune(model, config, allocation=shares).sparsity
        0.5
    """

    shares: LayerShares = field(repr=False)
    origin: str = field(init=False)
    """What pruned the layers."""
    digest: str = field(init=False)
    """Start of the SHA-256 of the layers, which tells runs with different ones apart."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", self.shares.origin)
        object.__setattr__(self, "digest", digest_records(self.shares.layers))

    @property
    def source(self) -> LayerShares:
        """See `ReportedAllocation.source`."""
        return self.shares
