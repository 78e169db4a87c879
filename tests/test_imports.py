"""Tests of what importing Secateur loads, and of the contracts on imports."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("jax", "keras", "matplotlib", "sklearn", "tensorflow", "torch", "transformers")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)


def list_loaded_frameworks(statement: str) -> list[str]:
    """List the frameworks that a new interpreter has loaded after one statement."""
    ran = run_python(f"{statement}\nimport sys\nprint(*sorted(set(sys.modules) & set({FRAMEWORKS})))")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@pytest.mark.parametrize(
    "module",
    [
        "secateur",
        "secateur.config",
        "secateur.patterns",
        "secateur.cli",
        "secateur.compat",
        "secateur.compat.neural_compressor",
        "secateur.compat.sparseml",
        "secateur.compat.torchao",
    ],
)
def test_import_loads_no_framework(module: str) -> None:
    assert list_loaded_frameworks(f"import {module}") == []


HEAVY = ("numpy", "pydantic", "rich.progress", "secateur.config", "secateur.oneshot", "torch", "yaml")


def test_the_version_loads_no_heavy_modules() -> None:
    code = "import sys\nfrom secateur.cli import app\ntry: app(['--version'])\nexcept SystemExit: pass\n"
    ran = run_python(f"{code}print('loaded:', *sorted(set(sys.modules) & set({HEAVY})))")
    assert ran.stdout.splitlines()[-1] == "loaded:", ran.stdout + ran.stderr


def test_heavy_modules_are_detected() -> None:
    ran = run_python(f"import secateur.config, sys\nprint(*sorted(set(sys.modules) & set({HEAVY})))")
    assert ran.stdout.split() == ["pydantic", "secateur.config", "yaml"]


def test_a_loaded_framework_is_detected() -> None:
    assert list_loaded_frameworks("import sys; sys.modules['torch'] = sys") == ["torch"]


def test_import_prints_nothing() -> None:
    ran = run_python("import secateur")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def lint_imports(folder: Path) -> tuple[bool, str]:
    """Return whether the package in `folder/src` keeps the contracts in `folder/pyproject.toml`, and the report."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode == 0, ran.stdout + ran.stderr


def test_contracts_hold() -> None:
    hold, report = lint_imports(ROOT)
    assert hold, report


def list_required_modules() -> list[str]:
    """List the modules that the contracts on layers require to exist, as paths below the package."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    return [
        "/".join([*container.split(".")[1:], name])
        for contract in contracts
        if contract["type"] == "layers"
        for container in contract["containers"]
        for layer in contract["layers"]
        for name in re.split(r"\s*[|:]\s*", layer)
        if not name.startswith("(")
    ]


REQUIRED_MODULES = list_required_modules()

TYPE_CHECKING_IMPORT = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from secateur.patterns import pytorch"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Create a small package with the same name and structure, under the contracts of this project."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = {
        "__init__.py": "",
        "errors.py": "",
        "config.py": "from secateur import errors",
        "patterns/__init__.py": "from secateur import config",
        "patterns/tiling.py": "import numpy",
        "patterns/pytorch.py": "import torch\nfrom secateur.patterns import tiling",
        "patterns/keras.py": "import keras\nfrom secateur.patterns import tiling",
        "runtime/__init__.py": "",
        "runtime/kernels/__init__.py": "",
        "training/__init__.py": "from secateur import patterns",
        "training/keras/__init__.py": "import keras",
        "cli.py": "from secateur import demo, training",
        "demo/__init__.py": "import torch, transformers",
    }
    for name in REQUIRED_MODULES:
        if f"{name}.py" not in files:
            files.setdefault(f"{name}/__init__.py", "")
    for name, text in files.items():
        path = tmp_path / "src" / "secateur" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path


def test_contracts_hold_for_the_sample(package: Path) -> None:
    hold, report = lint_imports(package)
    assert hold, report


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("errors.py", "from secateur import config", "secateur.errors is not allowed to import secateur.config"),
        ("patterns/base.py", "from secateur import training", "secateur.patterns.base -> secateur.training"),
        ("patterns/base.py", "def f():\n    import torch", "secateur.patterns.base -> torch"),
        ("training/loop.py", "import keras", "secateur.training.loop -> keras"),
        ("training/keras/run.py", "from secateur.patterns import pytorch", "keras.run -> secateur.patterns.pytorch"),
        ("patterns/keras.py", "import torch", "secateur.patterns.keras -> torch"),
        ("training/pytorch.py", "from secateur.patterns import keras", "pytorch -> secateur.patterns.keras"),
        ("stranger.py", "", "secateur.stranger"),
        (
            "training/loop.py",
            "from secateur import oneshot",
            "secateur.training is not allowed to import secateur.oneshot",
        ),
        ("patterns/tiling.py", TYPE_CHECKING_IMPORT, "No cycles are allowed in secateur.patterns"),
    ],
)
def test_contracts_can_fail(package: Path, name: str, text: str, message: str) -> None:
    (package / "src" / "secateur" / name).write_text(text, "utf-8")
    hold, report = lint_imports(package)
    assert not hold
    assert message in report
