"""All errors of this package. Each is a `SecateurError` and also the built-in error that it resembles."""

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
    "ScoreError",
    "SecateurError",
    "StateError",
    "StorageError",
    "UnknownNameError",
    "UnsupportedModelError",
]


class SecateurError(Exception):
    r"""The base class of all errors that Secateur raises.

    The message is safe to print, even if it quotes names from files: control characters are escaped, and messages of
    more than 4,000 characters are shortened in the middle. `args` has the original text.

    Example:
        >>> print(SecateurError("the layer '\x1b[2J' is too small"))
        the layer '\x1b[2J' is too small
    """

    def __str__(self) -> str:
        return make_printable(super().__str__())

    def add_note(self, note: str, /) -> None:
        """Add a line below the message, escaped like the message itself."""
        super().add_note(make_printable(note))


class ConfigError(SecateurError, ValueError):
    """An invalid configuration: an unknown key, a value out of bounds, an unreachable target."""


class UnknownNameError(ConfigError, LookupError):
    """An unknown name of a pattern, criterion, schedule, layer or the like; the message lists the known ones."""


class LayerError(SecateurError, ValueError):
    """A layer that cannot be pruned as configured."""


class ScoreError(SecateurError, ValueError):
    """Scores, weights or gradients that cannot be ranked, such as ``nan``."""


class StateError(SecateurError, RuntimeError):
    """A method called in the wrong order, or a saved state that belongs to another model or run."""


class CalibrationError(SecateurError, ValueError):
    """Calibration data that is missing, that the model does not accept, or that does not reach a layer."""


class ArtifactError(SecateurError, ValueError):
    """A file that is damaged, does not match its description, or belongs to another model."""


class UnsupportedModelError(SecateurError, TypeError):
    """A model or an optimizer of an unsupported type."""


class ModelLoadError(SecateurError, RuntimeError):
    """A model that cannot be built from its code or loaded from its folder."""


class MissingPackageError(SecateurError, ImportError):
    """An optional package that is needed and not installed."""


class InsufficientMemoryError(SecateurError, MemoryError):
    """Not enough memory on the host or a device."""


class StorageError(SecateurError, OSError):
    """A file that cannot be written, for example because the disk is full."""
