"""What was done, for a person to look at."""

from __future__ import annotations

from secateur.report.masks import Mask, density, draw_masks

__all__ = ["Mask", "density", "draw_masks"]
