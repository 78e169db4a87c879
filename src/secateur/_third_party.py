"""Translate exceptions of third-party code into errors of this package."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from secateur._wording import make_printable_line
from secateur.errors import ArtifactError, SecateurError

__all__ = ["describe_error", "is_failure", "is_out_of_memory", "translate_errors"]

MAX_REASON = 500
"""Maximum characters of a third-party message."""

MEMORY_CLASSES = frozenset({"OutOfMemoryError", "ResourceExhaustedError"})
"""Names of the out-of-memory errors of torch and TensorFlow, which may not be installed."""

MEMORY_WORDS = ("allocate memory", "not enough memory", "out of memory", "bad_alloc", "failed to allocate")
"""Parts of messages of torch's allocators, which raise a plain `RuntimeError`."""


@contextmanager
def translate_errors(kind: type[SecateurError], message: str, hint: str = "") -> Iterator[None]:
    """Raise any exception of third-party code as an error of this package.

    Errors of this package pass unchanged, except for `ArtifactError`, which is also raised as `kind`. Interrupts also
    pass unchanged.

    Args:
        kind: The class of the error to raise.
        message: What failed and where, without a period.
        hint: What to do, as a sentence.

    Examples:
        >>> from secateur.errors import ModelLoadError
        >>> with translate_errors(ModelLoadError, "'net.pt' cannot be read"):
        ...     [].pop()
        Traceback (most recent call last):
        secateur.errors.ModelLoadError: 'net.pt' cannot be read: IndexError: pop from empty list.
    """
    try:
        yield
    # Third-party code may raise anything, and panics of Rust code are not an `Exception`.
    except BaseException as error:
        if not is_failure(error) or (isinstance(error, SecateurError) and not isinstance(error, ArtifactError)):
            raise
        reason = describe_error(error)
        place, _, rest = reason.partition(": ")
        if rest and place in message:  # the message already names the file
            reason = rest
        end = "" if reason.endswith((".", "!", "?")) else "."
        raise kind(f"{message}: {reason}{end}{hint and ' '}{hint}") from error


def is_failure(error: BaseException) -> bool:
    """Whether an exception is a failure rather than an interrupt.

    Panics of Rust code and ``sys.exit`` count as failures, although they are not an `Exception`.
    """
    is_panic = (type(error).__module__, type(error).__name__) == ("pyo3_runtime", "PanicException")
    return is_panic or isinstance(error, Exception | SystemExit)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that the machine or a device ran out of memory.

    Examples:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ in MEMORY_CLASSES:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in MEMORY_WORDS)


def describe_error(error: BaseException) -> str:
    r"""Return the first line of an error's message, short and printable, with the class name where that helps.

    A line that ends with a colon is joined with the next one.

    Examples:
        >>> describe_error(ValueError("no\x1b[0m number\n\nDetails ..."))
        'no\\x1b[0m number'
        >>> describe_error(KeyError("bias"))
        "KeyError: 'bias'"
    """
    if is_out_of_memory(error):
        return "there is not enough memory"
    try:
        lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    except Exception:  # noqa: BLE001 - the class may be third-party
        lines = []
    # A line that ends with a colon, as in pydantic's messages, announces the reason on the next one.
    last = next((index for index, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    line = make_printable_line(" ".join(lines[: last + 1]), MAX_REASON)
    name = type(error).__name__
    if not line:
        return name
    return f"{name}: {line}" if isinstance(error, LookupError | AttributeError) else line
