"""What is said when memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from secateur._third_party import is_out_of_memory
from secateur.errors import ArtifactError, InsufficientMemoryError

__all__ = ["OutOfMemoryError", "memory_for"]


class OutOfMemoryError(ArtifactError, InsufficientMemoryError):
    """A tensor that memory does not suffice for; the file may be sound."""


@contextmanager
def memory_for(what: str, size: int) -> Iterator[None]:
    """Explain that memory did not suffice for something.

    Args:
        what: What was being done with what, as the beginning of a message.
        size: Bytes of the dense tensor.

    Raises:
        OutOfMemoryError: What runs inside had not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"{what}: there is not enough memory for its {size:,} bytes and what is computed from them. Free memory, "
            f"or use a machine with more."
        ) from error
