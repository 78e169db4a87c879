"""Load models that Python code builds."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from secateur._packages import get_install_command, get_keras_backend, is_installed, require_keras
from secateur._third_party import describe_error, is_failure
from secateur._wording import format_value, suggest_name
from secateur.errors import ConfigError, MissingPackageError, ModelLoadError, SecateurError, UnknownNameError

__all__ = ["load_function", "load_object"]


def load_object(module: str, name: str) -> Any:
    """Load an object from a module; call it if it is a function or a class.

    Raises:
        UnknownNameError: The module does not exist, or has no such attribute.
        MissingPackageError: The module imports a package that is not installed.
        ModelLoadError: The code of the module, function or class raised another error.
    """
    with _import_path(Path.cwd()):
        value = _get_attribute(_import_module(module), name)
        return _call_factory(value, f"{module}:{name}") if _is_factory(value) else value


def load_function(reference: str) -> Callable[..., Any]:
    """Load a function, given as ``package.module:name``.

    Raises:
        ConfigError: The reference has another form, or is not a function.
        UnknownNameError: The module does not exist, or has no such attribute.
        MissingPackageError: The module imports a package that is not installed.
        ModelLoadError: The code of the module raised another error.
    """
    module, colon, name = reference.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"A function must be given as package.module:name, found {format_value(reference)}.")
    with _import_path(Path.cwd()):
        function = _get_attribute(_import_module(module), name)
    if not callable(function):
        raise ConfigError(f"{format_value(reference)} must be a function, found {type(function).__name__}.")
    return function  # type: ignore[no-any-return]


@contextmanager
def _import_path(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _import_module(name: str) -> Any:
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
        hint = f" Install it with: {get_install_command(missing)}" if missing in ("keras", "torch") else ""
        raise MissingPackageError(
            f"{name!r} imports {missing!r}, which is not installed.{hint}", name=missing
        ) from error
    except SecateurError:
        raise
    # User code may raise anything.
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ModelLoadError(f"Importing {name!r} raised {_describe_error(error)}.") from error


def _get_attribute(module: Any, path: str) -> Any:
    value = module
    for part in path.split("."):
        if not hasattr(value, part):
            known = [name for name in vars(value) if not name.startswith("_")] if hasattr(value, "__dict__") else []
            raise UnknownNameError(f"{module.__name__!r} has no {path!r}.{suggest_name(part, known)}")
        value = getattr(value, part)
    return value


def _is_factory(value: Any) -> bool:
    """Whether an object builds a model when called; models are callable too, but are not factories."""
    return inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, functools.partial)


def _call_factory(factory: Any, name: str) -> Any:
    try:
        return factory()
    except SecateurError:
        raise
    # User code may raise anything.
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ModelLoadError(f"{name} raised {_describe_error(error)}.") from error


def _describe_error(error: BaseException) -> str:
    """Describe an error with the line of user code that raised it."""
    last = next(reversed(traceback.extract_tb(error.__traceback__)), None)
    place = "" if last is None or last.filename == __file__ else f" ({Path(last.filename).name}, line {last.lineno})"
    name, reason = type(error).__name__, describe_error(error)
    return f"{reason if reason.startswith(name) else f'{name}: {reason}'}{place}"
