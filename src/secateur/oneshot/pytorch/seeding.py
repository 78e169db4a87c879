"""The same random numbers in every process."""

from __future__ import annotations

import random

import numpy as np
import torch

__all__ = ["set_seed"]

SEED = 0


def set_seed() -> None:
    """Start all generators of random numbers anew, so that code which builds a model gives it the same weights."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
