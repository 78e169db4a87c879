"""The command line: a config file plus a few flags."""

from __future__ import annotations

from secateur.cli.app import app
from secateur.cli.demo import demo
from secateur.cli.plan import plan

__all__ = ["app"]

for _command in (plan, demo):
    app.command()(_command)
