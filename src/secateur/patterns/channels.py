"""Hidden channels, with everything that is coupled to them."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from secateur.graph import Role
from secateur.patterns.base import register_pattern
from secateur.patterns.coupled import GroupPattern

__all__ = ["ChannelsPattern"]


@register_pattern("channels")
class ChannelsPattern(GroupPattern):
    """Hidden channels: their slices of every weight that computes or reads them.

    The weights that share channels are found with example inputs; see `secateur.graph`. All weights that read a channel
    must belong to layers that the configuration prunes. Weights that compute it are pruned if they belong to such
    layers; others, such as embeddings, biases and norms, stay as they are. The inputs and outputs of the model are
    never pruned, so the layers that read its inputs and compute its outputs need no exceptions.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> config = {"pattern": "channels", "target_sparsity": 0.5}
        >>> report = secateur.prune(model, config, example_inputs=torch.randn(2, 4))
        >>> (model[0].weight == 0).all(dim=1).sum(), (model[2].weight == 0).all(dim=0).sum()
        (tensor(4), tensor(4))
    """

    coupling: ClassVar[str | None] = "channels"
    keeps_outputs: ClassVar[bool] = True
    needed_roles: ClassVar[Collection[Role]] = (Role.CONSUMER, Role.PINNED)
