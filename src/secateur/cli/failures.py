"""Turn exceptions into an exit code and a message, with a traceback only on request."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress

from secateur._third_party import is_out_of_memory
from secateur._wording import make_printable
from secateur.errors import SecateurError

__all__ = ["ERROR", "FAULT", "INTERRUPTED", "explain_failure", "report_failure"]

ERROR, FAULT, INTERRUPTED = 1, 70, 130
"""Exit codes: an error that the message explains; a bug in Secateur or a library; Ctrl-C."""

MAX_UNEXPECTED = 400
"""Maximum length of the message of an unexpected exception, in characters."""

MAX_TRACEBACK = 200_000
"""Maximum length of a traceback, in characters."""


def report_failure(error: BaseException, *, debug: bool) -> int:
    """Print the message for an exception to standard error.

    Args:
        error: The exception that a command raised.
        debug: Whether to also print the traceback.

    Returns:
        The exit code.
    """
    from rich.console import Console
    from rich.text import Text

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

    Examples:
        >>> explain_failure(FileNotFoundError(2, "No such file or directory", "net.pt"))
        (1, 'net.pt: No such file or directory.')
    """
    match error:
        case SecateurError():
            return ERROR, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, "Interrupted."
        case SystemExit():
            return ERROR, f"The model's code exited the program with exit code {error.code!r}."
        case RecursionError():
            return ERROR, "A file or a model is nested too deeply."
        case OSError():
            return ERROR, _describe_os_error(error)
        case UnicodeError():
            return ERROR, f"Text cannot be read or written: {error}."
    if is_out_of_memory(error):
        return ERROR, "Not enough memory on this machine or device."
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return ERROR, "A path contains a NUL character. Remove it."
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
    description = f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
    return (
        f"Unexpected {make_printable(description, MAX_UNEXPECTED)}\n"
        "This is a bug in Secateur or in a library that it uses. To see the traceback, run the command again as "
        f"secateur --debug …. Please report the bug."
    )
