"""Every error of this package: a `SecateurError` that is also the built-in error it resembles."""

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
    r"""The base of every error that Secateur raises on purpose.

    Its text is safe to print, whatever names from files it quotes: control characters are escaped, and the middle of a
    text of more than 4,000 characters is left out. `args` holds the text as it is.

    Example:
        >>> print(SecateurError("the layer '\x1b[2J' is too small"))
        the layer '\x1b[2J' is too small
    """

    def __str__(self) -> str:
        return make_printable(super().__str__())

    def add_note(self, note: str, /) -> None:
        """Add a line below the message, made safe to print like the message."""
        super().add_note(make_printable(note))


class ConfigError(SecateurError, ValueError):
    """A configuration that cannot be meant: an unknown key, an impossible bound, a target out of reach."""


class UnknownNameError(ConfigError, LookupError):
    """A pattern, criterion, schedule or layer that does not exist; lists what does."""


class LayerError(SecateurError, ValueError):
    """A layer that does not fit what was asked of it."""


class ScoreError(SecateurError, ValueError):
    """Scores, weights or gradients that cannot be ranked, such as ``nan``."""


class StateError(SecateurError, RuntimeError):
    """A verb in the wrong order, or a saved state that belongs to something else."""


class CalibrationError(SecateurError, ValueError):
    """Calibration data that is missing, that the model refuses, or that says too little about a layer."""


class ArtifactError(SecateurError, ValueError):
    """A file that is damaged, that is not what it says it is, or that does not belong to the model."""


class UnsupportedModelError(SecateurError, TypeError):
    """An object that is not the kind of model or optimizer asked for."""


class ModelLoadError(SecateurError, RuntimeError):
    """A model that its own code, or the folder it is stored in, fails to build."""


class MissingPackageError(SecateurError, ImportError):
    """An optional package that this call needs and that is not installed."""


class InsufficientMemoryError(SecateurError, MemoryError):
    """Memory, of the host or of a device, that did not suffice."""


class StorageError(SecateurError, OSError):
    """A file that cannot be written, as on a full disk."""
