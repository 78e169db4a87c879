"""Calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from secateur._deprecated import serve_old_names, warn_deprecated
from secateur.oneshot.execution import Execution

__all__ = ["Calibration"]

OLD_ARGUMENTS = ("device", "offload", "folder", "progress", "weights")
"""Arguments that `Calibration` used to accept after the batches, in order; now settings of `Execution`."""

__getattr__ = serve_old_names(__name__, {"Progress": "secateur.oneshot.execution:Progress"})


@dataclass(frozen=True, slots=True, init=False)
class Calibration:
    """Calibration data: batches of ordinary inputs.

    Settings that have moved to `Execution` are still accepted as arguments, with a ``DeprecationWarning``.

    Attributes:
        batches: Batches in the form that the model accepts: mappings of keyword arguments, as tokenizers return; tuples
            of positional arguments; or single tensors. A ``DataLoader`` of ``(inputs, labels)`` works too: values that
            ``forward`` does not accept are left out. Tokens masked out by ``attention_mask`` do not count. All batches
            are kept in memory.
        execution: The settings of `Execution` that were passed here; ``None`` if there were none.

    Examples:
        >>> Calibration([[1.0, 2.0]]).batches
        [[1.0, 2.0]]
    """

    batches: Iterable[Any]
    execution: Execution | None

    def __init__(self, batches: Iterable[Any], *args: Any, **kwargs: Any) -> None:
        execution = None
        if args or kwargs:
            settings = dict(zip(OLD_ARGUMENTS[: len(args)], args, strict=True)) | kwargs
            execution = Execution(**settings)
            names = ", ".join(f"{name}=..." for name in settings)
            warn_deprecated(
                f"Calibration(batches, {names})", f"prune(..., calibration=batches, execution=Execution({names}))"
            )
        object.__setattr__(self, "batches", batches)
        object.__setattr__(self, "execution", execution)
