"""Explain errors of insufficient memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from secateur._third_party import is_out_of_memory
from secateur.errors import ArtifactError, InsufficientMemoryError

__all__ = ["OutOfMemoryError", "explain_out_of_memory"]


class OutOfMemoryError(ArtifactError, InsufficientMemoryError):
    """A tensor or file does not fit into memory; the file itself may be valid."""


@contextmanager
def explain_out_of_memory(what: str, size: int) -> Iterator[None]:
    """Raise `OutOfMemoryError` if the code inside runs out of memory.

    Args:
        what: What failed, as the beginning of a message.
        size: Bytes of the dense tensor, or of the file.

    Raises:
        OutOfMemoryError: The code inside ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{what}: there is not enough memory for its {size:,} bytes and temporary values. Free memory, or "
            f"use a machine with more."
        ) from error
