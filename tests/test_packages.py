"""Tests of optional packages, and of the backend that Keras will use."""

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from installed_packages import install_only
from secateur._packages import get_install_command, get_keras_backend, require_keras
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
        ((), r"needs the package 'keras', .*pip install .*\[keras\]"),
        (("keras",), r"'tensorflow', which is not installed\. Install it\."),
        (("keras", "jax", "torch"), "Install it, or set KERAS_BACKEND to one of: jax, torch"),
    ],
)
@pytest.mark.usefixtures("home")
def test_errors_name_missing_packages(packages: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, *packages)
    with pytest.raises(MissingPackageError, match=message):
        require_keras()


class InstalledPackage(NamedTuple):
    version: str
    origin: dict[str, Any] | None  # what pip writes if it did not get the package from an index

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


CHECKOUT = (Path(__file__).parent / "patterns").as_uri()
FOLDER = str(Path(__file__).parent / "patterns")
REPOSITORY = "https://example.org/secateur.git"


@pytest.mark.parametrize(
    ("version", "origin", "command"),
    [
        ("0.1.0", None, 'pip install "secateur[torch]"'),
        ("0.1.0.dev0", None, 'pip install ".[torch]" in a checkout of Secateur'),
        ("0.1.0", {"url": CHECKOUT, "dir_info": {}}, f'pip install "{FOLDER}[torch]"'),
        ("0.1.0", {"url": CHECKOUT, "dir_info": {"editable": True}}, f'pip install --editable "{FOLDER}[torch]"'),
        ("0.1.0", {"url": f"{CHECKOUT}/gone", "dir_info": {}}, 'pip install "secateur[torch]"'),
        (
            "0.1.0.dev0",
            {"url": REPOSITORY, "vcs_info": {"vcs": "git", "commit_id": "1a2b3c"}},
            f'pip install "secateur[torch] @ git+{REPOSITORY}@1a2b3c"',
        ),
        (
            "0.1.0.dev0",
            {"url": "https://example.org/secateur.whl", "archive_info": {}},
            'pip install ".[torch]" in a checkout of Secateur',
        ),
    ],
)
def test_hints_install_from_where_secateur_came_from(
    version: str, origin: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: InstalledPackage(version, origin))
    assert get_install_command("torch") == command


def test_hints_without_an_installation_name_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_not_found(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", raise_not_found)
    assert get_install_command("torch") == 'pip install ".[torch]" in a checkout of Secateur'


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
