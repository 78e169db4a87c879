"""Return results as a data frame, where pandas is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from secateur._packages import is_installed
from secateur.errors import MissingPackageError

__all__ = ["make_data_frame"]


def make_data_frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> Any:
    """Return a `pandas.DataFrame` of rows.

    Args:
        rows: Column → value, for each row.
        columns: The columns in order; ``None``: those of the rows.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    if not is_installed("pandas"):
        raise MissingPackageError(
            "to_pandas() needs the package 'pandas', which is not installed. Install it with: pip install pandas",
            name="pandas",
        )
    return import_module("pandas").DataFrame(rows, columns=columns)
