"""Recipes of SparseML and llm-compressor, in the words of this package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from secateur.compat.imported import ImportedRun
from secateur.compat.sparseml.modifiers import imported
from secateur.compat.sparseml.recipe import stages

__all__ = ["read_recipe"]


def read_recipe(
    source: str | Path, *, steps_per_epoch: int | None = None, leave_out: Iterable[str] = ()
) -> tuple[ImportedRun, ...]:
    """What a recipe says about pruning: one run for each stage that prunes.

    Recipes come as YAML, also at the head of a Markdown file, with modifiers as tags (``!GMPruningModifier``) or as
    keys. Variables and ``eval(...)`` with plain arithmetic are worked out.

    Args:
        source: A file as `Path`, or the text itself as `str`.
        steps_per_epoch: Optimizer steps in one epoch, for recipes that count in epochs.
        leave_out: Names of modifiers that are to be passed over, such as ``"EpochRangeModifier"``, because the training
            loop does what they say. All others must have a counterpart here.

    Returns:
        Stages in the order of the recipe.

    Raises:
        ConfigError: A modifier or a key of it is unknown or has no counterpart here, a value is out of bounds, or the
            text is no recipe.

    Example:
        >>> recipe = '''
        ... modifiers:
        ...   - !GMPruningModifier
        ...     init_sparsity: 0.0
        ...     final_sparsity: 0.8
        ...     start_epoch: 1.0
        ...     end_epoch: 5.0
        ...     update_frequency: 0.5
        ...     params: __ALL_PRUNABLE__
        ...     mask_type: block4
        ... '''
        >>> run, = read_recipe(recipe, steps_per_epoch=100)
        >>> run.config.pattern, run.config.start_step, run.config.end_step, run.config.pruning_frequency
        ('1x4', 100, 500, 50)
    """
    passed_over = frozenset((leave_out,) if isinstance(leave_out, str) else leave_out)
    return tuple(imported(stage, steps_per_epoch) for stage in stages(source, passed_over))
