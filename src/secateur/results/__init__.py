"""Reports of what was done, as tables and JSON."""

from secateur.results.pruning_report import GroupResult, LayerResult, PruningReport
from secateur.results.records import Column, Record, Report, Row

__all__ = ["Column", "GroupResult", "LayerResult", "PruningReport", "Record", "Report", "Row"]
