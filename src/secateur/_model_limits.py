"""Limit the size of models that are built from untrusted descriptions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.errors import ArtifactError

__all__ = ["LIMITS_WITHOUT_WEIGHTS", "MAX_TENSORS", "ModelLimits"]

SPARE_NUMBERS = 1 << 26
"""Numbers (256 MiB in float32) that a model may have in addition to those in its files."""

MAX_COPIES = 4
"""Maximum copies of each stored number: tied weights are first built separately for the encoder, the decoder, the
output layer and the shared embedding."""

MAX_SPLIT = 4
"""Maximum tensors and modules per stored tensor, which may contain the weights of several layers."""

SPARE_TENSORS = 20_000

MAX_TENSORS = 250_000
"""Maximum modules, parameters and buffers of a model without stored weights."""


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """Limits of a model that is built.

    Attributes:
        tensors: Maximum modules, parameters and buffers.
        numbers: Maximum numbers in parameters and buffers; ``None``: unlimited, because nothing is allocated.
    """

    tensors: int
    numbers: int | None = None

    @classmethod
    def from_stored(cls, tensors: int, numbers: int) -> ModelLimits:
        """Compute the limits of a model from the tensors and numbers that are stored for it."""
        return cls(MAX_SPLIT * tensors + SPARE_TENSORS, MAX_COPIES * numbers + SPARE_NUMBERS)

    def check(self, tensors: int, numbers: int, path: Path) -> None:
        """Raise `ArtifactError` if a model exceeds the limits.

        Args:
            tensors: Modules, parameters and buffers of the model.
            numbers: Numbers in its parameters and buffers.
            path: The file or folder that describes the model, for the message.
        """
        if tensors > self.tensors:
            raise ArtifactError(
                f"{path}: describes a model of more than {self.tensors:,} modules and tensors, far more than its "
                f"weights allow."
                if self.numbers is not None
                else f"{path}: describes a model of more than {self.tensors:,} modules and tensors, which is the limit."
            )
        if self.numbers is not None and numbers > self.numbers:
            raise ArtifactError(
                f"{path}: describes a model of {numbers:,} numbers or more, but its weights allow for "
                f"{self.numbers:,}. The description belongs to another model."
            )


LIMITS_WITHOUT_WEIGHTS = ModelLimits(MAX_TENSORS)
"""Limits of a model that is built without allocating memory."""
