"""Import recipes of SparseML and llm-compressor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from secateur._wording import suggest_name
from secateur.compat._imported_run import ImportedRun
from secateur.compat._layer_settings import merge_settings
from secateur.compat.sparseml.modifier import Modifier
from secateur.compat.sparseml.one_shot import ONE_SHOT, import_one_shot
from secateur.compat.sparseml.recipe import RecipeStage, read_stages
from secateur.compat.sparseml.training import CONSTANT, GRADUAL, read_layer_settings
from secateur.errors import ConfigError

__all__ = ["read_recipe"]


def read_recipe(
    source: str | Path, *, steps_per_epoch: int | None = None, leave_out: Iterable[str] = ()
) -> tuple[ImportedRun, ...]:
    """Import the pruning settings of a recipe: one run for each stage that prunes.

    Recipes are YAML, or Markdown files with YAML front matter, with modifiers as tags (``!GMPruningModifier``) or as
    keys. Variables and plain arithmetic in ``eval(...)`` are evaluated.

    Args:
        source: A file, given as `Path`, or the text as a string.
        steps_per_epoch: Number of optimizer steps per epoch, for recipes that count in epochs.
        leave_out: Names of modifiers to skip because the training loop does their work, such as
            ``"EpochRangeModifier"``. All other modifiers must be supported.

    Returns:
        The runs in the order of the recipe.

    Raises:
        ConfigError: A modifier or one of its keys is unknown or not supported, a value is out of bounds, or the text
            is not a recipe.

    Examples:
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
        >>> run.config.pattern, run.config.start_step, run.config.end_step
        ('1x4', 100, 500)
    """
    skipped = frozenset((leave_out,) if isinstance(leave_out, str) else leave_out)
    return tuple(_import_stage(stage, steps_per_epoch) for stage in read_stages(source, skipped))


def _import_stage(stage: RecipeStage, steps_per_epoch: int | None) -> ImportedRun:
    """Import one stage of a recipe.

    Args:
        stage: A stage with modifiers.
        steps_per_epoch: Number of optimizer steps per epoch.

    Raises:
        ConfigError: A modifier or a key is unknown or not supported, a value is out of bounds, or modifiers cannot be
            combined.
    """
    for modifier in stage.modifiers:
        _check_modifier(modifier)
    one_shot = [modifier for modifier in stage.modifiers if modifier.name in ONE_SHOT]
    if not one_shot:
        parts = [part for modifier in stage.modifiers for part in read_layer_settings(modifier, steps_per_epoch)]
        return ImportedRun(name=stage.name, config=merge_settings(parts))
    if len(stage.modifiers) > 1:
        names = ", ".join(modifier.name for modifier in stage.modifiers)
        raise ConfigError(
            f"{one_shot[0].name} must be the only modifier in its stage, found {names}. Put each in its own stage."
        )
    return import_one_shot(one_shot[0], stage.name)


def _check_modifier(modifier: Modifier) -> None:
    known = (*GRADUAL, CONSTANT, *ONE_SHOT)
    if modifier.name not in known:
        raise ConfigError(
            f"{modifier.name} is not supported.{suggest_name(modifier.name, known)} Known: "
            f"{', '.join(sorted(known))}. If your training loop already does its work, read the recipe with "
            f"leave_out=[{modifier.name!r}]."
        )
