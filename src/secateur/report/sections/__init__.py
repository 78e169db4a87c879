"""The sections of a page: each converts a summary to the variables of its template, or to ``None`` without data.

To add a section, write a function here and a template of the same name in ``report/templates/sections``, and list both
in `secateur.report.page.SECTIONS`.
"""

from secateur.report.sections.charts_over_steps import make_history
from secateur.report.sections.error_profile import make_error_profile
from secateur.report.sections.kept_dense import make_dense_layers
from secateur.report.sections.layer_table import make_layer_table
from secateur.report.sections.mask_gallery import Thumbnail, make_mask_gallery, make_thumbnail
from secateur.report.sections.measure_table import make_measure_table
from secateur.report.sections.roofline import make_roofline
from secateur.report.sections.run_description import make_run_description
from secateur.report.sections.search_front import make_search_front
from secateur.report.sections.sensitivity_chart import make_sensitivity_chart
from secateur.report.sections.unit_groups import make_unit_groups
from secateur.report.sections.verdict import make_verdict

__all__ = [
    "Thumbnail",
    "make_dense_layers",
    "make_error_profile",
    "make_history",
    "make_layer_table",
    "make_mask_gallery",
    "make_measure_table",
    "make_roofline",
    "make_run_description",
    "make_search_front",
    "make_sensitivity_chart",
    "make_thumbnail",
    "make_unit_groups",
    "make_verdict",
]
