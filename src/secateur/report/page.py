"""Write a report as one HTML file, with its style and pictures inside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur._packages import require_packages
from secateur._wording import format_value, make_printable, make_printable_line
from secateur.artifact import inspect
from secateur.errors import ConfigError
from secateur.report.environment import describe_environment
from secateur.report.masks import Mask, read_masks
from secateur.report.sections import (
    Thumbnail,
    make_dense_layers,
    make_error_profile,
    make_history,
    make_layer_table,
    make_mask_gallery,
    make_measure_table,
    make_roofline,
    make_run_description,
    make_search_front,
    make_sensitivity_chart,
    make_thumbnail,
    make_unit_groups,
    make_verdict,
)
from secateur.results import Measure, Summarizable, Summary

__all__ = ["SECTIONS", "Section", "check_report_file", "render_page", "write_page", "write_report"]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page.

    Attributes:
        name: Name of its template, and its anchor on the page.
        title: Its heading.
        make: Returns the variables of its template, given the summary; ``None``: the section is omitted.
        reads_masks: Whether `make` gets the pictures of the masks instead of the summary.
    """

    name: str
    title: str
    make: Callable[[Any], dict[str, Any] | None]
    reads_masks: bool = False


ESCAPE_LENGTH = 10
"""Maximum length of an escaped character, as in ``\\U0001f600``."""

SECTIONS = (
    Section("verdict", "Verdict", make_verdict),
    Section("search_front", "Quality against cost", make_search_front),
    Section("run_description", "What was done", make_run_description),
    Section("measure_table", "Before and after", make_measure_table),
    Section("history", "Sparsity over steps", make_history),
    Section("error_profile", "Error of each layer", make_error_profile),
    Section("sensitivity_chart", "Sensitivity of each layer", make_sensitivity_chart),
    Section("layer_table", "Layers", make_layer_table),
    Section("unit_groups", "Channels and heads", make_unit_groups),
    Section("roofline", "Roofline", make_roofline),
    Section("mask_gallery", "Masks", make_mask_gallery, reads_masks=True),
    Section("dense_layers", "Layers that stay dense", make_dense_layers),
)
"""The sections, in the order of the page."""


def write_report(
    report: Summarizable,
    path: str | Path,
    *,
    model: Any = None,
    more: Iterable[Summarizable] = (),
    quality: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Write a report as one HTML file; see `secateur.results.Summarizable.to_html`."""
    require_packages("jinja2", extra="report")
    summary = report.summarize().join(*_summarize_more(more))
    measured = tuple(_make_quality(name, values) for name, values in (quality or {}).items())
    masks: Iterable[Mask] = ()
    if model is not None:
        source = Path(model) if isinstance(model, str) else model
        masks = read_masks(source, inspect(source).tensors)
    write_page(replace(summary, measures=(*summary.measures, *measured)), path, masks)


def _summarize_more(more: Any) -> list[Summary]:
    others = list(more) if isinstance(more, Iterable) else None
    if others is None or not all(isinstance(other, Summarizable) for other in others):
        raise ConfigError(f"more must be a list of reports, found {format_value(more)}.")
    return [other.summarize() for other in others]


def _make_quality(name: str, values: Any) -> Measure:
    try:
        before, after = map(float, values)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"quality must be metric → (before, after), such as {{'accuracy': (0.93, 0.92)}}, found "
            f"{format_value(values)} for {name!r}."
        ) from error
    return Measure(quantity="quality", name=name, unit="", dense=before, present=after)


def write_page(summary: Summary, path: str | Path, masks: Iterable[Mask] = ()) -> None:
    """Write a summary as one HTML file.

    Args:
        summary: The summary.
        path: The file; an existing one is replaced.
        masks: The masks to show. They are read one at a time, and only their pixels stay in memory.

    Raises:
        MissingPackageError: jinja2 is not installed.
        ConfigError: The file cannot be written.
    """
    check_report_file(path)
    text = render_page(summary, [make_thumbnail(mask) for mask in masks if mask.keep.size])
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise _make_write_error(path, error.strerror) from error


def check_report_file(path: str | Path) -> None:
    """Check, before any work, that a report can be written at the end.

    Raises:
        MissingPackageError: jinja2 is not installed.
        ConfigError: The file cannot be written.
    """
    require_packages("jinja2", extra="report")
    file = Path(path)
    if file.is_dir():
        raise _make_write_error(path, "it is a folder")
    if not file.parent.is_dir():
        raise _make_write_error(path, f"there is no folder {str(file.parent)!r}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise _make_write_error(path, "permission denied")


def render_page(summary: Summary, thumbnails: Sequence[Thumbnail] = ()) -> str:
    """Return the page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("secateur.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_escape_control_characters,
    )
    contents = [(section, section.make(thumbnails if section.reads_masks else summary)) for section in SECTIONS]
    return templates.get_template("page.html.jinja").render(
        title=make_printable_line(summary.title),
        interruption=summary.interruption,
        sections=[(section, content) for section, content in contents if content is not None],
        environment=describe_environment(),
    )


def _escape_control_characters(value: Any) -> Any:
    """Escape control characters in text that may come from files; rendered HTML is already escaped."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return make_printable(value, limit=ESCAPE_LENGTH * (len(value) + 1))


def _make_write_error(path: str | Path, reason: str | None) -> ConfigError:
    return ConfigError(f"The report {str(path)!r} cannot be written: {reason}. Choose another file.")
