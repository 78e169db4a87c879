"""The option ``--report``: check the file before a job starts, and write it at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.messages import say

if TYPE_CHECKING:
    from secateur.results import Summarizable

__all__ = ["ReportFile", "check_report_option", "write_job_report"]

ReportFile = Annotated[
    Path | None,
    typer.Option("--report", dir_okay=False, help="HTML file to write a report to; needs Secateur's extra report."),
]


def check_report_option(file: Path | None) -> None:
    """Check, before any work, that the report can be written at the end.

    Raises:
        MissingPackageError: jinja2 is not installed.
        ConfigError: The file cannot be written.
    """
    if file is not None:
        from secateur.report import check_report_file

        check_report_file(file)


def write_job_report(
    file: Path | None,
    result: Summarizable,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    saved: Path | None = None,
) -> None:
    """Write the report of a job whose result has been printed, if it was requested.

    Args:
        file: The file; ``None``: no report was requested.
        result: The result of the job.
        title: What the report is about.
        facts: What else to say about the job: label → text.
        saved: The saved model, whose size and masks are shown too; ``None``: there is none.
    """
    if file is None:
        return
    from secateur.report import read_saved_masks, summarize_saved, write_page
    from secateur.results import Summary

    summaries = [Summary(title=title, facts=dict(facts or {})), result.summarize()]
    with ProgressDisplay() as steps:
        steps.begin(f"Writing {file}")
        if saved is not None:
            summaries.append(summarize_saved(saved))
        write_page(summaries[0].join(*summaries[1:]), file, () if saved is None else read_saved_masks(saved))
    say(f"Report written to {file}.")
