"""Explain the errors of runs that run out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from secateur._third_party import is_out_of_memory
from secateur.errors import InsufficientMemoryError

__all__ = ["explain_error", "explain_out_of_memory"]


def explain_error(error: BaseException) -> BaseException:
    """Return an `InsufficientMemoryError` for an error that means lack of memory, else the error itself."""
    if not is_out_of_memory(error) or isinstance(error, InsufficientMemoryError):
        return error
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return InsufficientMemoryError(
        f"There is not enough memory to prune the model ({reason}). Use fewer or smaller calibration batches, "
        f"Execution(offload='disk'), or Execution(weights=...), which loads one block at a time."
    )


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Raise an `InsufficientMemoryError` if the code in this context runs out of memory."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        explained = explain_error(error)
        if explained is error:
            raise
        raise explained from error
