"""Tests of optional packages, and of the backend that Keras will use."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from installed_packages import install_only
from secateur._packages import get_keras_backend, require_keras
from secateur.errors import MissingPackageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty settings folder for Keras, without a backend in the environment."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    return tmp_path


def test_the_environment_selects_the_backend(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_settings_file_selects_the_backend(home: Path, settings: str | None, backend: str) -> None:
    if settings is not None:
        (home / "keras.json").write_text(settings, "utf-8")
    assert get_keras_backend() == backend


def test_the_backend_matches_keras(home: Path) -> None:
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
def test_errors_name_missing_packages(packages: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, *packages)
    with pytest.raises(MissingPackageError, match=message):
        require_keras()


@pytest.mark.usefixtures("home")
def test_installed_packages_raise_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, "keras", "tensorflow")
    require_keras()


def test_secateur_keras_checks_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("secateur.keras")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setenv("KERAS_BACKEND", "no_such_backend")
    with pytest.raises(
        MissingPackageError, match="configured to use the backend 'no_such_backend', which is not installed"
    ):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
