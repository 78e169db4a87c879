"""Provide the utilities of `neural_compressor.utils.utility` that pruning code imports."""

from __future__ import annotations

import random
import re
import sys
from importlib import import_module
from typing import Any

import numpy as np

__all__ = ["DotDict", "LazyImport", "set_random_seed", "version1_lt_version2"]


class DotDict(dict[str, Any]):
    """A dictionary whose keys are also attributes; dictionaries in it are converted too.

    Args:
        value: The dictionary.

    Examples:
        >>> settings = DotDict({"pruning": {"target": 0.5}})
        >>> settings.pruning.target
        0.5
    """

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        for key, item in dict(value or {}).items():
            self[key] = item

    def __getitem__(self, key: str) -> Any:
        item = super().__getitem__(key)
        if type(item) is dict:
            item = DotDict(item)
            super().__setitem__(key, item)
        return item

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            raise AttributeError(f"{type(self).__name__} has no key {name!r}")
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"{type(self).__name__} has no key {name!r}")
        del self[name]


class LazyImport:
    """Placeholder for a module, which is imported when an attribute is first read.

    Attributes that Python's `inspect` and mock objects look for in every object, `__wrapped__` and `_mock_name`, do not
    import it.

    Args:
        module_name: Name of the module.

    Examples:
        >>> LazyImport("math").sqrt(4.0)
        2.0
        >>> hasattr(LazyImport("missing_module"), "__wrapped__")
        False
    """

    def __init__(self, module_name: str) -> None:
        self.module_name = module_name

    def __getattr__(self, name: str) -> Any:
        if name in {"__wrapped__", "_mock_name"}:
            raise AttributeError(f"a module has no attribute {name!r}")
        return getattr(import_module(self.module_name), name)


def set_random_seed(seed: int) -> None:
    """Seed the random numbers of Python, of NumPy, and of torch if it is imported."""
    random.seed(seed)
    np.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


def version1_lt_version2(version1: str, version2: str) -> bool:
    """Whether one version comes before another, by the numbers in both.

    Examples:
        >>> version1_lt_version2("2.9", "2.10")
        True
    """
    first, second = (
        [int(part) for part in re.findall(r"\d+", version.partition("+")[0])] for version in (version1, version2)
    )
    return first < second
