"""A model with its weights, and what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["TrainedModel"]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model with its weights, and what belongs to it.

    Attributes:
        model: The model.
        path: Its transformers folder or GGUF file; ``None``: it comes from elsewhere.
    """

    model: Any
    path: Path | None = None

    @property
    def companions(self) -> Any:
        """What to save with it: an object with ``save_pretrained``, as a tokenizer is, or ``None``."""
        if self.path is None:
            return None
        from secateur.models.pytorch import Companions

        return Companions(self.path)
