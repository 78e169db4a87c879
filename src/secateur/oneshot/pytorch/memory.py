"""How torch and Python say that memory does not suffice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from secateur.errors import InsufficientMemoryError

__all__ = ["is_out_of_memory", "named_error", "naming_memory"]

WORDS = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "failed to allocate")
"""What torch's allocators say in a plain `RuntimeError`."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)


def named_error(error: BaseException) -> BaseException:
    """The error itself, or an `InsufficientMemoryError` in place of one that says no more than that."""
    if not is_out_of_memory(error) or isinstance(error, InsufficientMemoryError):
        return error
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return InsufficientMemoryError(
        f"There is not enough memory to prune the model ({reason}). Give fewer or smaller calibration batches, "
        f"offload='disk', or weights, which loads one block at a time."
    )


@contextmanager
def naming_memory() -> Iterator[None]:
    """Raise an `InsufficientMemoryError` wherever memory does not suffice while this is open."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        named = named_error(error)
        if named is error:
            raise
        raise named from error
