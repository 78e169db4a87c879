"""Show reports as HTML pages, masks as pictures, and runs in TensorBoard."""

from __future__ import annotations

from secateur._deprecated import serve_old_names
from secateur.report.masks import Mask, compute_density, draw_masks, read_masks
from secateur.report.page import check_report_file, render_page, write_page
from secateur.report.saved import read_saved_masks, summarize_saved
from secateur.report.tensorboard import TensorBoardCallback

__all__ = [
    "Mask",
    "TensorBoardCallback",
    "check_report_file",
    "compute_density",
    "draw_masks",
    "read_masks",
    "read_saved_masks",
    "render_page",
    "summarize_saved",
    "write_page",
]

__getattr__ = serve_old_names(__name__, {"density": "secateur.report.masks:compute_density"})
