"""Packages that only some calls need, and the backend that Keras would take."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from installed_packages import install_only
from secateur._packages import get_keras_backend, require_keras
from secateur.errors import MissingPackageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keras's folder of settings, and nothing said in the environment."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return tmp_path


def test_the_environment_says_which_backend(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "keras.json").write_text('{"backend": "jax"}', "utf-8")
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert get_keras_backend() == "torch"


@pytest.mark.parametrize(
    ("settings", "backend"),
    [
        ('{"backend": "jax"}', "jax"),
        ('{"floatx": "float32"}', "tensorflow"),
        ('["jax"]', "tensorflow"),
        ('{"backend": 3}', "tensorflow"),
        ("{", "tensorflow"),
        (None, "tensorflow"),
    ],
)
def test_the_settings_say_which_backend(home: Path, settings: str | None, backend: str) -> None:
    if settings is not None:
        (home / "keras.json").write_text(settings, "utf-8")
    assert get_keras_backend() == backend


def test_it_is_the_one_that_keras_takes(home: Path) -> None:
    keras = pytest.importorskip("keras")
    (home / "keras.json").write_text('{"backend": "torch"}', "utf-8")
    assert get_keras_backend() == "torch" != keras.backend.backend()


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        ((), r"needs the package 'keras', .*pip install \"secateur\[keras\]\""),
        (("keras",), r"'tensorflow', which is not installed\. Install it\."),
        (("keras", "jax", "torch"), "Install it, or set KERAS_BACKEND to one of: jax, torch"),
    ],
)
@pytest.mark.usefixtures("home")
def test_what_is_missing_is_named(packages: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, *packages)
    with pytest.raises(MissingPackageError, match=message):
        require_keras()


@pytest.mark.usefixtures("home")
def test_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, "keras", "tensorflow")
    require_keras()


def test_the_public_module_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("secateur.keras")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setenv("KERAS_BACKEND", "no_such_backend")
    with pytest.raises(
        MissingPackageError, match="configured to use the backend 'no_such_backend', which is not installed"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
