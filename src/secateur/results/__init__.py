"""Reports of what was done, as tables, pages and JSON."""

from secateur.results.layer_record import LayerRecord, join_layers
from secateur.results.layer_shares import LayerShares, LayerSharesSource
from secateur.results.pruning_report import GroupResult, LayerResult, PruningReport
from secateur.results.records import Column, Record, Row
from secateur.results.report_base import Report
from secateur.results.search_summary import SearchSummary, TrialPoint
from secateur.results.sensitivity_map import LayerSensitivity, PruningCase, SensitivityMap, SensitivityPoint
from secateur.results.sensitivity_report import SensitivityReport
from secateur.results.summary import FORMAT_VERSION, Measure, Summarizable, Summary, UnitGroupRecord, describe_config

__all__ = [
    "FORMAT_VERSION",
    "Column",
    "GroupResult",
    "LayerRecord",
    "LayerResult",
    "LayerSensitivity",
    "LayerShares",
    "LayerSharesSource",
    "Measure",
    "PruningCase",
    "PruningReport",
    "Record",
    "Report",
    "Row",
    "SearchSummary",
    "SensitivityMap",
    "SensitivityPoint",
    "SensitivityReport",
    "Summarizable",
    "Summary",
    "TrialPoint",
    "UnitGroupRecord",
    "describe_config",
    "join_layers",
]
