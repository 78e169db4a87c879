"""Draw pictures of masks."""

from __future__ import annotations

from secateur._deprecated import serve_old_names
from secateur.report.masks import Mask, compute_density, draw_masks, read_masks

__all__ = ["Mask", "compute_density", "draw_masks", "read_masks"]

__getattr__ = serve_old_names(__name__, {"density": "secateur.report.masks:compute_density"})
