"""What holds for every test: offline, one thread, reproducible."""

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("ci")

KINDS = ("allocations", "criteria", "patterns", "refiners", "schedules", "solvers")  # each with a registry
REGISTRIES = {
    **{f"secateur.{kind}": (kind.upper(),) for kind in KINDS},
    "secateur.compat.neural_compressor._user_criteria": ["CRITERIA", "TF_CRITERIA", "SCHEDULERS", "REGS", "PRUNERS"],
    "secateur.compat.neural_compressor._user_patterns": ("PATTERNS",),
    "secateur.graph": ("RULES",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that no process waits for the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` where there is no GPU."""
    if item.get_closest_marker("gpu") is not None:
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device, and torch finds none")


@pytest.fixture(autouse=True)
def written_modules_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget modules that a test wrote and imported: a later test would find them in place of a package."""
    last = next(reversed(sys.modules))
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in list(takewhile(lambda name: name != last, reversed(sys.modules))):
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture
def fake_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a pandas whose data frames keep their arguments."""
    code = """class DataFrame:
    def __init__(self, rows, columns=None):
        self.rows, self.columns = rows, columns
"""
    (tmp_path / "pandas.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def limit_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Process so many weights at a time, as if memory were small."""

    def limit(weights: int) -> None:
        for module in ("artifact.packing", "masking.scores", "patterns.nm", "patterns.tiling"):
            monkeypatch.setattr(f"secateur.{module}.CHUNK", weights)

    return limit


@pytest.fixture
def registries_restored() -> Iterator[None]:
    """Forget afterwards what a test registered, so that the next may use the same name.

    The rules of a framework stay, because their modules register them only once, when a test first needs them.
    """
    registries = [getattr(import_module(module), name) for module, names in REGISTRIES.items() for name in names]
    before = [dict(registry) for registry in registries]
    yield
    for registry, items in zip(registries, before, strict=True):
        loaded = {name: item for name, item in registry.items() if item.__module__.startswith("secateur.graph.")}
        registry.clear()
        registry.update(loaded | items)
