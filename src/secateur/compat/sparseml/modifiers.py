"""What the modifiers of a stage come to here."""

from __future__ import annotations

from secateur._wording import suggest_name
from secateur.compat.imported import ImportedRun
from secateur.compat.parts import merged
from secateur.compat.sparseml.gradual import CONSTANT, GRADUAL, training_parts
from secateur.compat.sparseml.once import ONE_SHOT, pruned_once
from secateur.compat.sparseml.recipe import Modifier, Stage
from secateur.errors import ConfigError

__all__ = ["imported"]


def imported(stage: Stage, steps_per_epoch: int | None) -> ImportedRun:
    """The run that a stage describes.

    Args:
        stage: A stage with modifiers.
        steps_per_epoch: Optimizer steps in one epoch.

    Raises:
        ConfigError: A modifier or a key is unknown or has no counterpart, a value is out of bounds, or modifiers do not
            go together.
    """
    for modifier in stage.modifiers:
        _refuse_others(modifier)
    once = [modifier for modifier in stage.modifiers if modifier.name in ONE_SHOT]
    if not once:
        parts = [part for modifier in stage.modifiers for part in training_parts(modifier, steps_per_epoch)]
        return ImportedRun(name=stage.name, config=merged(parts))
    if len(stage.modifiers) > 1:
        names = ", ".join(modifier.name for modifier in stage.modifiers)
        raise ConfigError(f"{once[0].name} must be alone in its stage, found {names}. Give each a stage of its own.")
    return pruned_once(once[0], stage.name)


def _refuse_others(modifier: Modifier) -> None:
    known = (*GRADUAL, CONSTANT, *ONE_SHOT)
    if modifier.name not in known:
        raise ConfigError(
            f"{modifier.name} has no counterpart.{suggest_name(modifier.name, known)} Known: "
            f"{', '.join(sorted(known))}. If your training loop does what it says, read the recipe with "
            f"leave_out=[{modifier.name!r}]."
        )
