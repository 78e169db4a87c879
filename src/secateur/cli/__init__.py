"""The command line: a configuration file plus a few flags.

`commands` has what a user types; the work is in `prune_job` and `benchmark`, which load frameworks.
"""

from __future__ import annotations

import re
from inspect import cleandoc

from secateur.cli.app import Command, app
from secateur.cli.commands import bench, convert, demo, inspect, plan, prune, verify

__all__ = ["app"]


def _format_help(text: str | None) -> str:
    """A docstring whose paragraphs are as wide as the terminal."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(text or ""))


for _command in (plan, prune, verify, inspect, bench, convert, demo):
    app.command(cls=Command, help=_format_help(_command.__doc__))(_command)
