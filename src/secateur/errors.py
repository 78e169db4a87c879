"""Define the exceptions that Secateur raises.

Each derives from `SecateurError` and from the matching built-in exception, such as `ValueError`.
"""

from __future__ import annotations

from secateur._wording import make_printable

__all__ = [
    "ArtifactError",
    "CalibrationError",
    "ConfigError",
    "InsufficientMemoryError",
    "LayerError",
    "MissingPackageError",
    "ModelLoadError",
    "RankError",
    "ScoreError",
    "SecateurError",
    "StateError",
    "StorageError",
    "UnknownNameError",
    "UnsupportedModelError",
]


class SecateurError(Exception):
    r"""Base class of all exceptions that Secateur raises.

    The message is safe to print, even if it quotes names from files: control characters are escaped, and messages of
    more than 4,000 characters are shortened in the middle. `args` contains the original text.

    Examples:
        >>> print(SecateurError("the layer '\x1b[2J' is too small"))
        the layer '\x1b[2J' is too small
    """

    def __str__(self) -> str:
        return make_printable(super().__str__())

    def add_note(self, note: str, /) -> None:
        """Add a line below the message, escaped like the message itself."""
        super().add_note(make_printable(note))


class ConfigError(SecateurError, ValueError):
    """Raised for an invalid configuration: an unknown key, a value out of bounds, or an unreachable target."""


class UnknownNameError(ConfigError, LookupError):
    """Raised for an unknown name, such as that of a pattern or a layer; the message lists the known names."""


class LayerError(SecateurError, ValueError):
    """Raised when a layer cannot be pruned as configured."""


class ScoreError(SecateurError, ValueError):
    """Raised when scores, weights or gradients cannot be ranked, for example because of ``nan``."""


class StateError(SecateurError, RuntimeError):
    """Raised when a method is called in the wrong order, or a saved state belongs to another model or run."""


class CalibrationError(SecateurError, ValueError):
    """Raised when calibration data is missing, is not accepted by the model, or does not reach a layer."""


class ArtifactError(SecateurError, ValueError):
    """Raised when a file is damaged, does not match its description, or belongs to another model."""


class UnsupportedModelError(SecateurError, TypeError):
    """Raised when the type of a model or an optimizer is not supported."""


class ModelLoadError(SecateurError, RuntimeError):
    """Raised when a model cannot be built from its code or loaded from its folder."""


class MissingPackageError(SecateurError, ImportError):
    """Raised when an optional package is required and not installed."""


class InsufficientMemoryError(SecateurError, MemoryError):
    """Raised when the host or a device runs out of memory."""


class RankError(SecateurError, RuntimeError):
    """Raised on every rank when processes that work together disagree, or when one of them has failed."""


class StorageError(SecateurError, OSError):
    """Raised when a file cannot be written, for example because the disk is full."""
