"""The command line: a config file plus a few flags."""

from __future__ import annotations

import re
from inspect import cleandoc

from secateur.cli.app import app
from secateur.cli.bench import bench
from secateur.cli.convert import convert
from secateur.cli.demo import demo
from secateur.cli.inspect import inspect
from secateur.cli.plan import plan
from secateur.cli.prune import prune
from secateur.cli.verify import verify

__all__ = ["app"]


def _help(text: str | None) -> str:
    """A docstring whose paragraphs are as wide as the terminal."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(text or ""))


for _command in (plan, prune, verify, inspect, bench, convert, demo):
    app.command(help=_help(_command.__doc__))(_command)
