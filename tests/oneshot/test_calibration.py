"""Test `Calibration`, `Execution` and their deprecated arguments."""

from pathlib import Path
from typing import Any

import pytest

import secateur
from oneshot.problems import ProgressRecorder, batches
from secateur.errors import ConfigError
from secateur.oneshot import Calibration, Execution
from tiny_models import bits, deep_mlp

CONFIG = {"pattern": "2:4"}


def test_deprecated_keyword_arguments_of_calibration(tmp_path: Path) -> None:
    progress = ProgressRecorder()
    with pytest.deprecated_call(match=r"Calibration\(batches, folder=..., progress=...\) is deprecated. Use prune\("):
        calibration = Calibration(batches(), folder=tmp_path, progress=progress)
    assert calibration.execution == Execution(folder=tmp_path, progress=progress)
    models = [deep_mlp(), deep_mlp()]
    secateur.prune(models[0], CONFIG, calibration=calibration, solver="wanda")
    secateur.prune(models[1], CONFIG, calibration=batches(), solver="wanda")
    assert progress.steps
    assert bits(models[0]) == bits(models[1])


def test_deprecated_positional_arguments_of_calibration(tmp_path: Path) -> None:
    with pytest.deprecated_call():
        calibration = Calibration([], "cpu", "disk", tmp_path, None, tmp_path / "weights")
    expected = Execution(device="cpu", offload="disk", folder=tmp_path, weights=tmp_path / "weights")
    assert calibration.execution == expected


def test_calibration_without_settings_does_not_warn() -> None:
    assert Calibration([1.0]).execution is None


def test_passing_two_executions_is_refused() -> None:
    with pytest.deprecated_call():
        calibration = Calibration(batches(), offload="disk")
    with pytest.raises(ConfigError, match=r"execution is given twice.*Pass execution=Execution\(...\) only"):
        secateur.prune(deep_mlp(), CONFIG, calibration=calibration, execution=Execution(), solver="wanda")


def test_execution_needs_calibration_data() -> None:
    with pytest.raises(ConfigError, match="execution has no effect without calibration data"):
        secateur.prune(deep_mlp(), CONFIG, execution=Execution())


def test_deprecated_import_of_progress() -> None:
    from secateur.oneshot import calibration

    with pytest.deprecated_call():
        old: Any = calibration.Progress
    assert old is secateur.oneshot.Progress
