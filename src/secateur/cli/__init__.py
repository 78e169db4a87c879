"""Define the command line: a configuration file plus a few flags.

`commands` contains the commands with their arguments; `prune_job`, `slim_job` and `benchmark` do the work and import
frameworks.
"""

from __future__ import annotations

import re
from inspect import cleandoc

from secateur.cli.app import Command, app
from secateur.cli.commands import bench, convert, demo, inspect, plan, prune, report, search, sensitivity, slim, verify

__all__ = ["app"]


def _format_help(text: str | None) -> str:
    """Join the lines of each paragraph of a docstring, so that the terminal wraps them."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(text or ""))


for _command in (plan, sensitivity, search, prune, slim, report, verify, inspect, bench, convert, demo):
    app.command(cls=Command, help=_format_help(_command.__doc__))(_command)
