"""Measures coverage in the processes that tests start, if it is measured in the tests' own process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coverage import Coverage, process_startup

ROOT = Path(__file__).parents[1]


def list_variables() -> dict[str, str]:
    """Return the environment variables with which a process measures coverage; empty: it is not measured.

    Every process that inherits them starts to measure with the interpreter, and stores its data when it exits.
    """
    current = Coverage.current()
    if current is None:
        return {}
    new = Coverage(data_file=ROOT / current.config.data_file, config_file=current.config.config_file or False)
    new.set_option("run:parallel", True)  # one file for each process, which pytest-cov combines
    new.set_option("run:sigterm", True)  # torchrun ends processes so
    return {"COVERAGE_PROCESS_CONFIG": new.config.serialize()}


@contextmanager
def measure_coverage(variables: dict[str, str]) -> Iterator[None]:
    """Measure coverage in a forked process that may be killed as soon as it has told its result.

    Args:
        variables: What `list_variables` returned in the process that is measured.
    """
    os.environ |= variables
    coverage = process_startup()
    try:
        yield
    finally:
        if coverage is not None:
            coverage.stop()
            coverage.save()
