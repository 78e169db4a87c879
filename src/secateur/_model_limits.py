"""Limits on the size of models that untrusted descriptions ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.errors import ArtifactError

__all__ = ["LIMITS_WITHOUT_WEIGHTS", "MAX_TENSORS", "ModelLimits"]

SPARE_NUMBERS = 1 << 26
"""Numbers, 256 MiB in float32, that a model may have beyond those that are stored for it."""

MAX_REPEATED = 4
"""How often a model may hold each stored number: weights that are tied later are first built for the encoder, the
decoder, the output layer and what they share."""

MAX_SPLIT = 4
"""Tensors and modules of a model for each stored tensor, which may hold those of several layers."""

SPARE_TENSORS = 20_000

MAX_TENSORS = 250_000
"""Modules, parameters and buffers of a model of which no weights are stored."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The largest model that may be built.

    Attributes:
        tensors: Maximum of modules, parameters and buffers.
        numbers: Maximum of numbers in parameters and buffers; ``None``: unlimited, because nothing is allocated.
    """

    tensors: int
    numbers: int | None = None

    @classmethod
    def from_stored(cls, tensors: int, numbers: int) -> ModelLimits:
        """The limits of a model for which that many tensors with that many numbers are stored."""
        return cls(MAX_SPLIT * tensors + SPARE_TENSORS, MAX_REPEATED * numbers + SPARE_NUMBERS)

    def check(self, tensors: int, numbers: int, path: Path) -> None:
        """Raise `ArtifactError` if a model exceeds the limits.

        Args:
            tensors: Modules, parameters and buffers of the model.
            numbers: Numbers in its parameters and buffers.
            path: The file or folder that describes the model, for the message.
        """
        if tensors > self.tensors:
            raise ArtifactError(
                f"{path}: describes a model of more than {self.tensors:,} modules and tensors, far more than there are "
                f"weights for."
                if self.numbers is not None
                else f"{path}: describes a model of more than {self.tensors:,} modules and tensors, which is the limit."
            )
        if self.numbers is not None and numbers > self.numbers:
            raise ArtifactError(
                f"{path}: describes a model of {numbers:,} numbers or more, and its weights allow for "
                f"{self.numbers:,}. The description belongs to another model."
            )


LIMITS_WITHOUT_WEIGHTS = ModelLimits(MAX_TENSORS)
"""The limits of a model that is described and never allocated."""
