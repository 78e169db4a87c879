"""Turn exceptions into an exit code and one message, with a traceback only on request."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from secateur._third_party import is_out_of_memory
from secateur._wording import make_printable
from secateur.errors import SecateurError

__all__ = ["ERROR", "FAULT", "INTERRUPTED", "explain_failure", "report_failure"]

ERROR, FAULT, INTERRUPTED = 1, 70, 130
"""Exit codes: an error that the message explains; a bug in Secateur or a library; Ctrl-C."""

MAX_UNEXPECTED = 400
"""Characters of the message of an unexpected exception."""

MAX_TRACEBACK = 200_000
"""Characters of a traceback."""


def report_failure(error: BaseException, *, debug: bool) -> int:
    """Print on standard error what went wrong.

    Args:
        error: The exception that a command raised.
        debug: Whether to print the traceback too.

    Returns:
        The exit code.
    """
    code, message = explain_failure(error)
    console = Console(stderr=True)
    with suppress(OSError, ValueError):  # standard error is closed, or the disk is full
        if debug:
            trace = "".join(traceback.format_exception(error))
            console.print(Text(make_printable(trace, MAX_TRACEBACK)), soft_wrap=True)
        console.print(Text(make_printable(message), style="red"), soft_wrap=True)
    return code


def explain_failure(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message for an exception.

    Example:
        >>> explain_failure(FileNotFoundError(2, "No such file or directory", "net.pt"))
        (1, 'net.pt: No such file or directory.')
    """
    match error:
        case SecateurError():
            return ERROR, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, "Interrupted."
        case SystemExit():
            return ERROR, f"The code of the model ended the program with exit code {error.code!r}."
        case RecursionError():
            return ERROR, "A file or a model is nested too deeply to be read."
        case OSError():
            return ERROR, _describe_os_error(error)
        case UnicodeError():
            return ERROR, f"A text cannot be read or written: {error}."
    if is_out_of_memory(error):
        return ERROR, "The memory of this machine or device is too small for this."
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return ERROR, "A path must not contain a NUL character, and one of these does."
    return FAULT, _describe_fault(error)


def _describe_os_error(error: OSError) -> str:
    if error.strerror is None:
        return str(error) or type(error).__name__
    if error.filename is None:
        return f"{error.strerror}."
    files = [name for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(map(_format_path, files))}: {error.strerror}."


def _format_path(name: object) -> str:
    return name.decode(sys.getfilesystemencoding(), "backslashreplace") if isinstance(name, bytes) else str(name)


def _describe_fault(error: BaseException) -> str:
    first_line = next(iter(str(error).splitlines()), "")
    said = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return (
        f"Unexpected {make_printable(said, MAX_UNEXPECTED)}\n"
        "This is a bug in Secateur or in a library that it uses. Run the same command as secateur --debug … to see "
        f"the traceback, and please report it."
    )
