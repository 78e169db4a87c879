"""The demo's Keras part on the backend of this process, at a small scale."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import secateur

pytest.importorskip("sklearn")

import keras
import numpy as np
from rich.console import Console

from secateur.demo import QUIET_TENSORFLOW, _run_keras_digits
from secateur.demo.digits import Hyperparameters, PruningSetting, prune_all
from secateur.demo.files import write_files
from secateur.demo.keras_digits import KerasDigits
from secateur.demo.tables import DigitsResults

BACKEND = keras.backend.backend()
# Every backend trains one case, in `test_dense_reference_trains_as_long_and_pruning_nothing_gives_it`. What the demo
# prints and writes depends on no backend; torch shows it, because it has no step to compile.
whole_demo = pytest.mark.skipif(BACKEND != "torch", reason="shown on torch")

TINY = Hyperparameters(dense_epochs=1, tuning_epochs=2, batch=128)
SHORTER = replace(TINY, tuning_epochs=1)  # an epoch of a step that is hardly optimized takes a second


@dataclass(frozen=True)
class Ran:
    """The Keras part of a demo: what it printed, found and wrote."""

    printed: str
    results: DigitsResults
    folder: Path
    numbers: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One seed; its files stand beside those of a torch part that found nothing."""
    folder = tmp_path_factory.mktemp("demo")
    console = Console(record=True, width=120, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        for variable, quiet in QUIET_TENSORFLOW.items():
            patch.setenv(variable, quiet)
        results = _run_keras_digits(TINY, 1, console)
    assert results is not None
    write_files(folder, DigitsResults(results.digits, ()), results, ())
    return Ran(console.export_text(), results, folder, json.loads((folder / "report.json").read_text("utf-8")))


def digits() -> KerasDigits:
    return KerasDigits(TINY, lambda: None)


@whole_demo
def test_title_names_the_backend(ran: Ran) -> None:
    assert f"Digits in Keras on {BACKEND}: accuracy on 540 test images" in ran.printed


@whole_demo
def test_report_names_backend_and_versions(ran: Ran) -> None:
    found = ran.numbers["keras"]
    assert found["backend"] == BACKEND
    assert found["versions"].keys() == {"keras", found["backend"]}
    assert found["versions"]["keras"] == keras.__version__
    assert found["training"]["tuning_epochs"] == TINY.tuning_epochs


@whole_demo
def test_every_case_is_a_row_that_reached_its_target(ran: Ran) -> None:
    rows = ran.numbers["keras"]["digits"]
    assert [(row["net"], row["pattern"], row["target"]) for row in rows] == [
        ("conv", "4x1", 0.9),
        ("conv", "2:4", 0.5),
        ("conv", "1xchannel", 0.5),
    ]
    for row in rows:
        assert row["unit_sparsity"] == pytest.approx(row["target"], abs=2e-3)
        assert f"{100 * row['accuracy'][0]:.2f}" in ran.printed


@whole_demo
def test_file_holds_the_network_of_the_report(ran: Ran) -> None:
    assert {path.name for path in ran.folder.iterdir()} == {"keras-conv-4x1-90", "report.json"}
    model = secateur.load(ran.folder / "keras-conv-4x1-90")
    described = ran.numbers["files"]["keras-conv-4x1-90"]
    assert digits().compute_accuracy(model) == described["accuracy"]
    for layer in described["report"]["layers"]:
        kernel = keras.ops.convert_to_numpy(model.get_layer(layer["name"]).kernel)
        assert list(kernel.shape) == layer["shape"]
        assert int((kernel == 0).sum()) == layer["pruned_weights"]


def test_dense_reference_trains_as_long_and_pruning_nothing_gives_it() -> None:
    epochs: list[None] = []
    part = KerasDigits(SHORTER, lambda: epochs.append(None))
    part.train_images, part.train_labels = part.train_images[:256], part.train_labels[:256]
    run = next(prune_all(part, "conv", 0, (PruningSetting("1x1", 0.0),)))
    assert len(epochs) == SHORTER.dense_epochs + 2 * SHORTER.tuning_epochs
    assert run.report.sparsity == 0
    # The two steps are compiled by themselves, so sums may be rounded differently: an image or two.
    assert run.accuracy == pytest.approx(run.dense_accuracy, abs=2 / 540)


@whole_demo
def test_copy_is_equal_and_independent() -> None:
    part = digits()
    model = part.build("conv", 0)
    before = model.get_weights()
    copy = part.copy(model)
    assert all(np.array_equal(left, right) for left, right in zip(copy.get_weights(), before, strict=True))
    part.train(copy, 1, 0)
    assert all(np.array_equal(left, right) for left, right in zip(model.get_weights(), before, strict=True))
    assert not np.array_equal(copy.get_weights()[0], before[0])


def test_same_seed_same_start() -> None:
    one, two, other = (digits().build("conv", seed).get_weights() for seed in (0, 0, 1))
    assert all(np.array_equal(left, right) for left, right in zip(one, two, strict=True))
    assert not np.array_equal(one[0], other[0])
