"""Reports of what was done, as tables and JSON."""

from secateur.results.pruning_report import LayerResult, PruningReport
from secateur.results.records import Column, Record, Report, Row

__all__ = ["Column", "LayerResult", "PruningReport", "Record", "Report", "Row"]
