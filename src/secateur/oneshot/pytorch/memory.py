"""What is said when memory does not suffice for a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from secateur._third_party import is_out_of_memory
from secateur.errors import InsufficientMemoryError

__all__ = ["explain_error", "explain_out_of_memory"]


def explain_error(error: BaseException) -> BaseException:
    """The error itself, or an `InsufficientMemoryError` in place of one that says no more than that."""
    if not is_out_of_memory(error) or isinstance(error, InsufficientMemoryError):
        return error
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return InsufficientMemoryError(
        f"There is not enough memory to prune the model ({reason}). Give fewer or smaller calibration batches, "
        f"offload='disk', or weights, which loads one block at a time."
    )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Raise an `InsufficientMemoryError` wherever memory does not suffice while this is open."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        named = explain_error(error)
        if named is error:
            raise
        raise named from error
