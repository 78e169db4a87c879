import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur._registry import Registry
from secateur._wording import suggest_name
from secateur.errors import ConfigError, SecateurError, UnknownNameError


@pytest.fixture
def registry() -> Registry[Callable[[], int]]:
    found: Registry[Callable[[], int]] = Registry("thing")
    found.register("one")(int)
    return found


def test_register_returns_the_decorated_object(registry: Registry[Callable[[], int]]) -> None:
    def two() -> int:
        return 2

    assert registry.register("two")(two) is two
    assert registry.find("two") is two
    assert list(registry) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", r"The thing name 'one' is taken by <class 'int'>\. Choose another name\."),
        ("", r"The name of a thing must not be empty\."),
    ],
)
def test_taken_and_empty_names_are_rejected(registry: Registry[Callable[[], int]], name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.register(name)(int)
    assert list(registry) == ["one"]


def test_rejected_objects_are_not_registered() -> None:
    def refuse(name: str, number: int) -> None:
        raise ConfigError(f"{name} {number} is refused")

    numbers = Registry[int]("number", check=refuse)
    with pytest.raises(ConfigError, match="seven 7 is refused"):
        numbers.register("seven")(7)
    assert list(numbers) == []


def test_the_error_for_an_unknown_name_has_suggestions(registry: Registry[Callable[[], int]]) -> None:
    registry.register("another")(int)
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'onee'\. Did you mean 'one'\? Known: another, one\."):
        registry.find("onee")


def test_the_error_is_also_a_built_in_error(registry: Registry[Callable[[], int]]) -> None:
    for kind in (SecateurError, LookupError, ValueError):
        with pytest.raises(kind, match="Unknown thing 'two'"):
            registry.find("two")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("cubik", " Did you mean 'cubic'?"), ("zzz", ""), ("", ""), ("cubic", " Did you mean 'cubic'?")],
)
def test_suggested_name(name: str, suggestion: str) -> None:
    assert suggest_name(name, ["cubic", "linear"]) == suggestion


@pytest.mark.parametrize(
    ("kind", "group"), [("criterion", "criteria"), ("pattern", "patterns"), ("schedule", "schedules")]
)
def test_installed_packages_register_through_entry_points(
    kind: str, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create a package on the path, as pip installs it."""
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
