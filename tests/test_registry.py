import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import secateur
from secateur._registry import Registry
from secateur._wording import suggest_name
from secateur.errors import ConfigError, SecateurError, UnknownNameError


@pytest.fixture
def registry() -> Registry[Callable[[], int]]:
    found: Registry[Callable[[], int]] = Registry("thing")
    found.register("one")(int)
    return found


def test_registering_returns_what_it_decorates(registry: Registry[Callable[[], int]]) -> None:
    def two() -> int:
        return 2

    assert registry.register("two")(two) is two
    assert registry.find("two") is two
    assert list(registry) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", r"The thing name 'one' is taken by <class 'int'>\. Choose another name\."),
        ("", r"A thing needs a name, found ''\."),
    ],
)
def test_a_name_that_cannot_be_taken(registry: Registry[Callable[[], int]], name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.register(name)(int)
    assert list(registry) == ["one"]


def test_what_is_refused_is_not_registered() -> None:
    def refuse(name: str, number: int) -> None:
        raise ConfigError(f"{name} {number} is refused")

    numbers = Registry[int]("number", check=refuse)
    with pytest.raises(ConfigError, match="seven 7 is refused"):
        numbers.register("seven")(7)
    assert list(numbers) == []


def test_an_unknown_name_suggests_and_lists(registry: Registry[Callable[[], int]]) -> None:
    registry.register("another")(int)
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'onee'\. Did you mean 'one'\? Known: another, one\."):
        registry.find("onee")


def test_the_error_is_also_a_built_in_one(registry: Registry[Callable[[], int]]) -> None:
    for kind in (SecateurError, LookupError, ValueError):
        with pytest.raises(kind, match="Unknown thing 'two'"):
            registry.find("two")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("cubik", " Did you mean 'cubic'?"), ("zzz", ""), ("", ""), ("cubic", " Did you mean 'cubic'?")],
)
def test_nearest(name: str, suggestion: str) -> None:
    assert suggest_name(name, ["cubic", "linear"]) == suggestion


@pytest.mark.parametrize(
    ("kind", "group"), [("criterion", "criteria"), ("pattern", "patterns"), ("schedule", "schedules")]
)
def test_installed_packages_register_through_entry_points(
    kind: str, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package on the path, as pip leaves it."""
    metadata = tmp_path / f"plugin_{kind}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{kind}\nVersion: 1.0\n", "utf-8")
    (metadata / "entry_points.txt").write_text(f"[secateur.{group}]\nmine = plugin_{kind}\n", "utf-8")
    (tmp_path / f"plugin_{kind}.py").write_text("import host\nhost.registry.register('mine')(host)\n", "utf-8")
    host = type(sys)("host")
    host.registry = registry = Registry(kind)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "host", host)
    assert registry.find("mine") is host
    assert registry.find("mine") is host, "loading twice would register twice"


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["config", "criteria", "errors", "patterns", "planning", "schedules", "training"])
def test_modules_are_attributes_of_the_package(name: str) -> None:
    ran = run(f"import sys, secateur; print(secateur.{name}.__name__, 'torch' in sys.modules)")
    assert ran.split() == [f"secateur.{name}", "False"]


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
