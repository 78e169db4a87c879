"""Score weights at random, as a baseline that other criteria should beat."""

from __future__ import annotations

import math
import zlib
from typing import ClassVar

import numpy as np

from secateur._array import Array, namespace
from secateur.criteria.base import BaseCriterion, register_criterion

__all__ = ["Random"]

CHUNK = 1 << 18
"""Numbers drawn at a time if they are left out."""


@register_criterion("random")
class Random(BaseCriterion):
    """Uniform in [0, 1). Scores depend on the seed and the name of the layer, not on step, device or framework."""

    needs_gradient: ClassVar[bool] = False

    @property
    def scores_parts(self) -> bool:
        """See `BaseCriterion.scores_parts`: draws for other output channels are left out."""
        return True

    def score(self, weight: Array, gradient: Array | None) -> Array:  # noqa: ARG002
        """See `BaseCriterion.score`."""
        key = (self.config.seed << 32) | zlib.crc32(self.layer.encode())
        generator = np.random.Generator(np.random.Philox(key=key))
        before = self.first_output * math.prod(weight.shape[1:])
        for start in range(0, before, CHUNK):
            generator.random(min(CHUNK, before - start), dtype=np.float32)
        draws = generator.random(tuple(weight.shape), dtype=np.float32)
        return namespace(weight).asarray(draws, device=weight.device)
