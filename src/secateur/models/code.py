"""Models that code makes."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from secateur._packages import get_keras_backend, is_installed, require_keras
from secateur._third_party import describe_error, is_failure
from secateur._wording import suggest_name
from secateur.errors import MissingPackageError, ModelLoadError, SecateurError, UnknownNameError

__all__ = ["from_code"]


def from_code(module: str, name: str) -> Any:
    """The object `name` of a module, or what it returns if it is a function or class.

    Raises:
        UnknownNameError: There is no such module, or nothing of that name in it.
        MissingPackageError: The module imports a package that is not installed.
        ModelLoadError: Its code raised something else.
    """
    with _importable(Path.cwd()):
        found = _attribute(_module(module), name)
        return _made_by(found, f"{module}:{name}") if _is_factory(found) else found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{name}.".startswith(f"{missing}."):
            raise UnknownNameError(
                f"There is no module {missing!r}, neither in the current directory nor among the installed packages."
            ) from error
        if missing == get_keras_backend() and is_installed("keras"):
            require_keras()
        hint = f' Install it with: pip install "secateur[{missing}]"' if missing in ("keras", "torch") else ""
        raise MissingPackageError(
            f"{name!r} imports {missing!r}, which is not installed.{hint}", name=missing
        ) from error
    except SecateurError:
        raise
    # The code is the user's and may raise anything.
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ModelLoadError(f"Importing {name!r} raised {_described(error)}.") from error


def _attribute(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            raise UnknownNameError(f"{module.__name__!r} has no {path!r}.{suggest_name(part, known)}")
        found = getattr(found, part)
    return found


def _is_factory(found: Any) -> bool:
    """Whether it makes a model; that a model can be called as well does not make it a factory."""
    return inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, functools.partial)


def _made_by(factory: Any, name: str) -> Any:
    try:
        return factory()
    except SecateurError:
        raise
    # As above.
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ModelLoadError(f"{name} raised {_described(error)}.") from error


def _described(error: BaseException) -> str:
    """An error with the place in the user's code that it came from."""
    last = next(reversed(traceback.extract_tb(error.__traceback__)), None)
    place = "" if last is None or last.filename == __file__ else f" ({Path(last.filename).name}, line {last.lineno})"
    name, reason = type(error).__name__, describe_error(error)
    return f"{reason if reason.startswith(name) else f'{name}: {reason}'}{place}"
