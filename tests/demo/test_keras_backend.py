"""On which backend the demo runs Keras, and what it says where it runs on none."""

import io

import pytest

pytest.importorskip("sklearn")

from rich.console import Console

from installed_packages import install_only
from secateur import demo
from secateur._packages import get_install_command
from secateur.demo.digits import Hyperparameters


def said() -> str:
    """What the Keras part prints where it does not run."""
    console = Console(record=True, width=200, file=io.StringIO())
    assert demo._run_keras_digits(Hyperparameters(dense_epochs=1, tuning_epochs=1), 1, console) is None
    return console.export_text()


@pytest.mark.parametrize(
    ("configured", "installed", "chosen"),
    [
        ("jax", ("tensorflow", "jax", "torch"), "jax"),
        ("torch", ("tensorflow", "torch"), "torch"),
        ("tensorflow", ("torch",), "torch"),
        ("tensorflow", ("torch", "jax"), "jax"),
        ("no_such_backend", ("torch", "jax", "tensorflow"), "tensorflow"),
        ("numpy", ("numpy", "torch"), "numpy"),
    ],
)
def test_backend_asked_for_comes_first_then_the_first_installed(
    monkeypatch: pytest.MonkeyPatch, configured: str, installed: tuple[str, ...], chosen: str
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", configured)
    install_only(monkeypatch, *installed)
    assert demo._choose_keras_backend() == chosen


def test_missing_keras_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, "torch", "jax")
    assert said() == (
        f"Digits in Keras: skipped, the package 'keras' is missing. {get_install_command('demo')} installs it.\n\n"
    )


def test_missing_backends_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    install_only(monkeypatch, "keras")
    assert said().startswith("Digits in Keras: skipped, the package 'torch' is missing.")


def test_backend_that_cannot_train_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    install_only(monkeypatch, "keras", "numpy", "torch")
    assert said() == (
        "Digits in Keras: skipped, Keras cannot train on the backend 'numpy'. "
        "Set KERAS_BACKEND to tensorflow or jax or torch.\n\n"
    )
