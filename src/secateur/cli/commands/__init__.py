"""Define the commands, one per file: arguments, help and output."""

from __future__ import annotations

from secateur.cli.commands.bench import bench
from secateur.cli.commands.convert import convert
from secateur.cli.commands.demo import demo
from secateur.cli.commands.inspect import inspect
from secateur.cli.commands.plan import plan
from secateur.cli.commands.prune import prune
from secateur.cli.commands.report import report
from secateur.cli.commands.search import search
from secateur.cli.commands.sensitivity import sensitivity
from secateur.cli.commands.slim import slim
from secateur.cli.commands.verify import verify

__all__ = ["bench", "convert", "demo", "inspect", "plan", "prune", "report", "search", "sensitivity", "slim", "verify"]
