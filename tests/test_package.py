"""The package itself: its modules and names are there on first use, and cost nothing before."""

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
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_modules_are_there_on_first_use_and_load_no_framework() -> None:
    uses = "\n".join(f"print(secateur.{name}.__name__)" for name in WITHOUT_FRAMEWORK)
    ran = run(f"import sys, secateur\n{uses}\nprint({{'torch', 'keras', 'jax', 'tensorflow'}} & set(sys.modules))")
    assert ran.split() == [*(f"secateur.{name}" for name in WITHOUT_FRAMEWORK), "set()"]


@pytest.mark.parametrize("name", ["allocations", "keras", "refiners", "solvers"])
def test_modules_that_need_a_framework_are_there_too(name: str) -> None:
    assert isinstance(getattr(secateur, name), ModuleType)


def test_every_public_name_is_there() -> None:
    assert all(getattr(secateur, name) is not None for name in secateur.__all__)


def test_dir_lists_names_and_modules() -> None:
    assert {*secateur.__all__, "__version__", "allocations", "config", "keras", "runtime"} <= set(dir(secateur))
    assert [name for name in dir(secateur) if name.startswith("_")] == ["__version__"]
    assert {"ImportedRun", "torchao"} <= set(dir(compat))


@pytest.mark.parametrize("package", [secateur, compat])
def test_a_name_that_is_not_there_raises(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prunee'"):
        package.prunee  # noqa: B018


def test_a_star_import_of_patterns_loads_no_framework() -> None:
    ran = run("import sys; from secateur.patterns import *; print(get_pattern, {'torch', 'keras'} & set(sys.modules))")
    assert ran.endswith("set()\n")


def test_the_version_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert secateur.__version__[0].isdigit()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert secateur.__version__ == "0+unknown"
    assert {"__version__", "config", "plan"} <= set(dir(secateur))
