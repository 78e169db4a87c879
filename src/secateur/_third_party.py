"""Failures of third-party code, raised as errors of this package."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from secateur._wording import make_printable_line
from secateur.errors import ArtifactError, SecateurError

__all__ = ["describe_error", "is_failure", "is_out_of_memory", "translate_errors"]

MAX_REASON = 500
"""Characters of another package's message."""

MEMORY_CLASSES = frozenset({"OutOfMemoryError", "ResourceExhaustedError"})
"""What torch and TensorFlow raise for a device; they need not be installed."""

MEMORY_WORDS = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "failed to allocate")
"""What torch's allocators say in a plain `RuntimeError`."""


@contextmanager
def translate_errors(kind: type[SecateurError], message: str, hint: str = "") -> Iterator[None]:
    """Raise whatever third-party code raises as one of this package's errors, from its cause.

    Errors of this package pass as they are, but for an `ArtifactError` about a file, which becomes `kind` too. Only
    interrupts pass otherwise.

    Args:
        kind: Class of the error to raise.
        message: What failed, and where, without a period.
        hint: What to do, as a sentence.

    Example:
        >>> from secateur.errors import ModelLoadError
        >>> with translate_errors(ModelLoadError, "'net.pt' cannot be read"):
        ...     [].pop()
        Traceback (most recent call last):
        secateur.errors.ModelLoadError: 'net.pt' cannot be read: IndexError: pop from empty list.
    """
    try:
        yield
    # Third-party code raises anything at all, and Rust code what is no `Exception`.
    except BaseException as error:
        if not is_failure(error) or (isinstance(error, SecateurError) and not isinstance(error, ArtifactError)):
            raise
        reason = describe_error(error)
        place, _, rest = reason.partition(": ")
        if rest and place in message:  # it is about the file that the message names already
            reason = rest
        end = "" if reason.endswith((".", "!", "?")) else "."
        raise kind(f"{message}: {reason}{end}{hint and ' '}{hint}") from error


def is_failure(error: BaseException) -> bool:
    """Whether an exception means that the code failed, rather than that someone interrupted it.

    A panic of Rust code is a `BaseException` of a class that cannot be imported, and ``sys.exit`` raises another.
    """
    is_panic = (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
    return is_panic or isinstance(error, Exception | SystemExit)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a device, does not suffice.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ in MEMORY_CLASSES:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in MEMORY_WORDS)


def describe_error(error: BaseException) -> str:
    r"""The first line of an error's message, short and printable; its class where the message alone says too little.

    A line that ends with a colon is joined with the next one.

    Example:
        >>> describe_error(ValueError("no\x1b[0m number\n\nDetails ...")), describe_error(KeyError("bias"))
        ('no\\x1b[0m number', "KeyError: 'bias'")
    """
    if is_out_of_memory(error):
        return "there is not enough memory"
    try:
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    except Exception:  # noqa: BLE001 - a class of another package
        lines = []
    # A line that ends with a colon, as in pydantic's messages, announces the reason on the next one.
    last = next((index for index, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    line = make_printable_line(" ".join(lines[: last + 1]), MAX_REASON)
    name = type(error).__name__
    if not line:
        return name
    return f"{name}: {line}" if isinstance(error, LookupError | AttributeError) else line
