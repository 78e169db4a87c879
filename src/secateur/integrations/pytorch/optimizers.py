"""Refuse optimizers whose steps a pruner cannot follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from secateur.errors import UnsupportedModelError

__all__ = ["refuse_optimizer_name", "refuse_optimizers"]

BACKWARD = "changes the weights in the backward pass, where no step can be followed"
QUANTIZED = "keeps weights or their averages in its own memory, which Secateur does not set to zero"
SWAPPED = "swaps the weights for averages outside of its steps, so pruned weights would not stay zero"

REASONS = {
    "layerwise": BACKWARD,
    "lomo": BACKWARD,
    "schedule_free": SWAPPED,
    "bnb": QUANTIZED,
    "paged": QUANTIZED,
    "8bit": QUANTIZED,
    "4bit": QUANTIZED,
}
"""Part of a name in ``TrainingArguments(optim=...)`` → why such optimizers are refused."""

PACKAGES = {"bitsandbytes": QUANTIZED, "deepspeed": QUANTIZED, "lomo_optim": BACKWARD, "schedulefree": SWAPPED}
"""Package → why its optimizers are refused."""

HINT = "Train with an optimizer of torch, such as AdamW."


def refuse_optimizer_name(name: str) -> None:
    """Raise an error if the `Trainer` would create an optimizer that cannot be followed.

    Args:
        name: The value of ``TrainingArguments(optim=...)``.

    Raises:
        UnsupportedModelError: The optimizer is not supported.

    Examples:
        >>> refuse_optimizer_name("adamw_torch")
        >>> refuse_optimizer_name("lomo")
        Traceback (most recent call last):
        secateur.errors.UnsupportedModelError: optim='lomo' cannot be used with pruning: it changes the weights in the
        backward pass, where no step can be followed. Train with an optimizer of torch, such as AdamW.
    """
    for part, reason in REASONS.items():
        if part in name:
            raise UnsupportedModelError(f"optim={name!r} cannot be used with pruning: it {reason}. {HINT}")


def refuse_optimizers(optimizers: Iterable[Any]) -> None:
    """Raise an error if an optimizer or one that it wraps cannot be followed.

    Args:
        optimizers: Optimizers, from any package.

    Raises:
        UnsupportedModelError: One of them is not supported.
    """
    for optimizer in optimizers:
        part = optimizer
        while part is not None:
            package = type(part).__module__.partition(".")[0]
            if package in PACKAGES:
                raise UnsupportedModelError(
                    f"The optimizer {type(part).__name__} of {package} cannot be used with pruning: it "
                    f"{PACKAGES[package]}. {HINT}"
                )
            part = vars(part).get("optimizer")
