"""Processes that train or prune one torch model together: the only place that calls ``torch.distributed``."""

from __future__ import annotations

from secateur.distributed.pytorch.ranks import Ranks, compute_digest

__all__ = ["Ranks", "compute_digest"]
