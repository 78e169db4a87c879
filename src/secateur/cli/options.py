"""Define the arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secateur.cli.messages import say
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.config import PruningConfig

__all__ = [
    "ALLOCATIONS",
    "BUDGETS",
    "GROUP_PATTERNS",
    "LAYER_SOLVERS",
    "PATTERNS",
    "RECIPES",
    "REFINERS",
    "SOLVERS",
    "UNIT_REFINERS",
    "UNIT_SOLVERS",
    "AsJson",
    "CalibrationFile",
    "ConfigFile",
    "Device",
    "Length",
    "Model",
    "Pattern",
    "Sequences",
    "TargetSparsity",
    "Weights",
    "complete_names",
    "read_config_options",
    "warn_about_defaults",
]

GROUP_PATTERNS = ("channels", "heads")
"""Patterns whose units can be removed from a model."""

PATTERNS = ("1x1", "2:4", "1:4", "4:8", "4x1", "1x16", "16x16", "1xchannel", "channelx1", *GROUP_PATTERNS)
"""Patterns that shell completion suggests; many more are valid."""

LAYER_SOLVERS = ("magnitude", "wanda", "ria", "sparsegpt", "alps")
SOLVERS = (*LAYER_SOLVERS, "osscar", "ziplm", "taylor", "fisher")
RECIPES = ("best",)
REFINERS = ("dsnot", "swap", "pcg", "ridge", "bias", "block", "distill")
UNIT_SOLVERS = ("osscar", "ziplm", "fisher", "taylor", "wanda", "magnitude")
UNIT_REFINERS = ("ridge", "bias", "block", "distill")
BUDGETS = ("parameters=", "flops=", "bytes=", "latency=")
ALLOCATIONS = ("uniform", "global", "owl", "sensitivity")
"""Names that shell completion suggests. They are constants because importing the registries takes seconds."""


def complete_names(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Create a completion function that suggests the names that start with the typed prefix.

    Examples:
        >>> complete_names(("alps", "ria"))("a")
        ['alps']
    """

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model or a function that builds one, as package.module:name; or a file or folder."
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Calibration data: a text file, or inputs as .npz or .safetensors."),
]
Sequences = Annotated[int | None, typer.Option(min=1, help="Number of text samples.", show_default="32")]
Length = Annotated[int | None, typer.Option(min=1, help="Number of tokens per sample.", show_default="512")]
Device = Annotated[str | None, typer.Option(help="Device to compute on, such as cuda.")]
ConfigFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="YAML or JSON file with a configuration.")
]
Pattern = Annotated[
    str | None,
    typer.Option(
        help="Pattern, such as 4x1, 2:4 or 1xchannel. Overrides the file.", autocompletion=complete_names(PATTERNS)
    ),
]
TargetSparsity = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Share of units to prune. Overrides the file.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Weights for a model built by code: .safetensors, a state dict (.pt), or .weights.h5 for Keras.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def read_config_options(
    path: Path | None, pattern: str | None, target_sparsity: float | None, granularity: int | None = None
) -> PruningConfig:
    """Read a configuration file, and apply the flags that override it.

    Raises:
        ConfigError: The file cannot be read, or the configuration is not valid.
    """
    from secateur.config import PruningConfig

    settings = PruningConfig()
    if path is not None:
        try:
            settings = PruningConfig.from_yaml(path)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    flags = {"pattern": pattern, "target_sparsity": target_sparsity, "granularity": granularity}
    return PruningConfig.from_dict(settings.to_dict() | {key: flag for key, flag in flags.items() if flag is not None})


def warn_about_defaults(settings: PruningConfig) -> None:
    """Warn how much is pruned by default, because the default is too much for many models."""
    from secateur.patterns import get_pattern

    target = get_pattern(settings, {}, "array").target_sparsity
    say(
        f"Warning: {target:.0%} of the units of pattern {settings.pattern} are pruned, the default. Set --pattern and "
        f"--target-sparsity."
    )
