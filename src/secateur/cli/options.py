"""Arguments that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "ALLOCATIONS",
    "METHODS",
    "PATTERNS",
    "REFINERS",
    "AsJson",
    "ConfigFile",
    "Model",
    "Pattern",
    "Sparsity",
    "Weights",
    "completing",
]

PATTERNS = ("1x1", "2:4", "1:4", "4:8", "4x1", "1x16", "16x16", "1xchannel", "channelx1")
"""What a shell suggests; patterns are many more."""

METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "alps")
REFINERS = ("pcg", "block", "distill")
ALLOCATIONS = ("uniform", "global", "owl", "sensitivity")
"""What a shell suggests; written down, for the registries load a framework, which takes longer than one waits."""


def completing(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What suggests those of the names that begin as typed.

    Example:
        >>> completing(("alps", "ria"))("a")
        ['alps']
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="package.module:name of a model or of its maker, or a file or folder."),
]
ConfigFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="YAML or JSON file with a configuration.")
]
Pattern = Annotated[
    str | None,
    typer.Option(help="Pattern: 4x1, 2:4, 1xchannel … Wins over the file.", autocompletion=completing(PATTERNS)),
]
Sparsity = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Share of weights to prune. Wins over the file.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Weights of a model that code builds: .safetensors, a state dict (.pt), or .weights.h5 for Keras.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
