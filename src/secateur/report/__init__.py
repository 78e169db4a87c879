"""Draw pictures of masks."""

from __future__ import annotations

from secateur._deprecated import deprecated_getattr
from secateur.report.masks import Mask, compute_density, draw_masks, read_masks

__all__ = ["Mask", "compute_density", "draw_masks", "read_masks"]

__getattr__ = deprecated_getattr(__name__, {"density": "secateur.report.masks:compute_density"})
