"""Tests that the modules and names of the package are imported on first use."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest

import secateur
from secateur import compat

WITHOUT_FRAMEWORK = [
    "artifact",
    "compat",
    "compat.neural_compressor",
    "compat.sparseml",
    "compat.torchao",
    "config",
    "criteria",
    "errors",
    "models",
    "oneshot",
    "patterns",
    "planning",
    "report",
    "results",
    "runtime",
    "schedules",
    "training",
]


def run(code: str) -> str:
    """Run code in a new interpreter, and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_modules_are_imported_on_first_use_without_a_framework() -> None:
    uses = "\n".join(f"print(secateur.{name}.__name__)" for name in WITHOUT_FRAMEWORK)
    ran = run(f"import sys, secateur\n{uses}\nprint({{'torch', 'keras', 'jax', 'tensorflow'}} & set(sys.modules))")
    assert ran.split() == [*(f"secateur.{name}" for name in WITHOUT_FRAMEWORK), "set()"]


@pytest.mark.parametrize("name", ["allocations", "keras", "refiners", "solvers"])
def test_modules_that_need_a_framework_are_imported_on_first_use(name: str) -> None:
    assert isinstance(getattr(secateur, name), ModuleType)


def test_every_public_name_exists() -> None:
    assert all(getattr(secateur, name) is not None for name in secateur.__all__)


def test_dir_lists_names_and_modules() -> None:
    assert {*secateur.__all__, "__version__", "allocations", "config", "keras", "runtime"} <= set(dir(secateur))
    assert [name for name in dir(secateur) if name.startswith("_")] == ["__version__"]
    assert {"ImportedRun", "torchao"} <= set(dir(compat))


@pytest.mark.parametrize("package", [secateur, compat])
def test_an_unknown_name_raises_an_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prunee'"):
        package.prunee  # noqa: B018


def test_a_star_import_of_patterns_loads_no_framework() -> None:
    ran = run("import sys; from secateur.patterns import *; print(get_pattern, {'torch', 'keras'} & set(sys.modules))")
    assert ran.endswith("set()\n")


def test_the_version_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secateur.__version__[0].isdigit()

    def raise_not_found(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", raise_not_found)
    assert secateur.__version__ == "0+unknown"
    assert {"__version__", "config", "plan"} <= set(dir(secateur))
