"""The demo on digits, at a small scale: what it prints and writes is what the networks are."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")

import numpy as np
import torch
from rich.console import Console

import secateur
from installed_packages import hide_packages
from secateur import demo
from secateur._packages import get_install_command
from secateur.artifact import Artifact
from secateur.artifact.pytorch import to_torch
from secateur.demo.digits import DigitsResult, Hyperparameters, PruningSetting, prune_all
from secateur.demo.files import SAVED_SETTING
from secateur.demo.scale import FULL, QUICK
from secateur.demo.tables import DigitsResults, DigitsRow, group_results, make_digits_table
from secateur.demo.torch_digits import NETS, TorchDigits

TINY = Hyperparameters(dense_epochs=2, tuning_epochs=2, batch=64)


@dataclass(frozen=True)
class Ran:
    """A run of the demo: what it printed and where it wrote."""

    printed: str
    folder: Path
    numbers: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One seed, two epochs, and torch's digits only."""
    folder = tmp_path_factory.mktemp("demo") / "not" / "yet"
    console = Console(record=True, width=100, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        hide_packages(patch, "keras", "transformers")
        demo.run_demo(folder, 1, console, TINY, FULL)
    return Ran(console.export_text(), folder, json.loads((folder / "report.json").read_text("utf-8")))


def digits(on_epoch: Any = lambda: None) -> TorchDigits:
    return TorchDigits(TINY, on_epoch)


def saved(ran: Ran) -> dict[str, dict[str, torch.Tensor]]:
    """The weights in each folder."""
    artifacts = {name: Artifact(ran.folder / name) for name in ran.numbers["files"]}
    return {name: {key: to_torch(tensor) for key, tensor in one.items()} for name, one in artifacts.items()}


def test_files_are_the_ones_it_names(ran: Ran) -> None:
    written = {path.name for path in ran.folder.iterdir()}
    assert written == {"pytorch-conv-4x1-90", "pytorch-mlp-4x1-90", "report.json"}
    assert all(name in ran.printed for name in written)


def test_zeros_in_the_files_are_those_reported(ran: Ran) -> None:
    for name, weights in saved(ran).items():
        for layer in ran.numbers["files"][name]["report"]["layers"]:
            weight = weights[f"{layer['name']}.weight"]
            assert list(weight.shape) == layer["shape"]
            assert int((weight == 0).sum()) == layer["pruned_weights"]


def test_exactly_nine_of_ten_blocks_of_four_outputs_are_gone(ran: Ran) -> None:
    for name, weights in saved(ran).items():
        layers = [layer["name"] for layer in ran.numbers["files"][name]["report"]["layers"]]
        blocks = [weights[f"{layer}.weight"].unflatten(0, (-1, 4)) != 0 for layer in layers]
        assert all(bool((block.any(dim=1) == block.all(dim=1)).all()) for block in blocks)
        units = sum(block.any(dim=1).numel() for block in blocks)
        gone = sum(int((~block.any(dim=1)).sum()) for block in blocks)
        assert gone == round(0.9 * units)


def test_printed_lines_load_the_files(ran: Ran) -> None:
    code = ran.printed[ran.printed.index("To load them in Python:") :].splitlines()[1:]
    names: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in code[: code.index("")]), names)  # noqa: S102 - what the demo prints
    for name, described in ran.numbers["files"].items():
        framework, net = name.split("-")[:2]
        assert digits().compute_accuracy(names[f"{framework}_{net}"]) == described["accuracy"]


def test_the_quick_tour_is_a_part_of_the_whole() -> None:
    assert QUICK.torch_settings is not None
    assert QUICK.keras_settings is not None
    assert {*QUICK.torch_settings, *QUICK.keras_settings} <= set(TorchDigits.settings)
    assert SAVED_SETTING in QUICK.torch_settings
    assert SAVED_SETTING in QUICK.keras_settings
    assert set(QUICK.solvers) < set(FULL.solvers)


def test_accuracy_is_that_of_the_files(ran: Ran) -> None:
    for name in ran.numbers["files"]:
        model = NETS[name.split("-")[1]]()
        assert (
            digits().compute_accuracy(secateur.load(ran.folder / name, model)) == ran.numbers["files"][name]["accuracy"]
        )


def test_files_carry_their_configuration(ran: Ran) -> None:
    for name, described in ran.numbers["files"].items():
        configs = Artifact(ran.folder / name).manifest.configs
        resolved = described["config"] | {"pruning_scope": "global"}  # the default, which the plan fills in
        assert [secateur.PruningConfig.from_dict(config).to_dict() for config in configs] == [resolved]
        assert {layer["name"] for layer in described["plan"]["layers"] if layer["reason"] is None} == {
            layer["name"] for layer in described["report"]["layers"]
        }


def test_every_case_is_a_row_that_reached_its_target(ran: Ran) -> None:
    found = [(row["net"], row["pattern"], row["target"]) for row in ran.numbers["digits"]]
    assert found == [
        (net, setting.pattern, setting.target_sparsity) for net in NETS for setting in TorchDigits.settings
    ]
    for row in ran.numbers["digits"]:
        assert row["unit_sparsity"] == pytest.approx(row["target"], abs=2e-3)
        assert row["points"] == pytest.approx(100 * (row["accuracy"][0] - row["dense_accuracy"][0]))


def test_printed_rows_are_the_numbers(ran: Ran) -> None:
    lines = [" ".join(line.split()) for line in ran.printed.splitlines()]
    for row in ran.numbers["digits"]:
        cells = [row["net"], row["pattern"], f"{row['target']:.0%}", f"{row['sparsity']:.2%}"]
        cells += [f"{100 * row[key][0]:.2f}" for key in ("dense_accuracy", "accuracy")]
        start = " ".join([*cells, f"{row['points']:+.2f}"])
        assert any(line.startswith(start) for line in lines), start


def test_it_says_what_it_left_out(ran: Ran) -> None:
    assert "Digits in Keras: skipped, the package 'keras' is missing." in ran.printed
    assert ran.numbers["keras"] is None
    assert (
        f"Sentence encoder: skipped, the package 'transformers' is missing. {get_install_command('demo')} installs it."
        in ran.printed
    )
    assert ran.numbers["sentences"] == []
    assert "Language model: skipped, the package 'transformers' is missing." in ran.printed
    assert ran.numbers["language"] is None


def test_files_are_packed_and_say_so(ran: Ran) -> None:
    for name, weights in saved(ran).items():
        report = secateur.verify(ran.folder / name)
        assert report.dense_bytes == sum(4 * weight.numel() for weight in weights.values())
        assert report.packed_bytes < 0.3 * report.dense_bytes
        assert f"{report.packed_bytes:,} bytes of weights instead of {report.dense_bytes:,}" in ran.printed


def test_dense_reference_trains_as_long_as_the_pruned_one() -> None:
    epochs: list[None] = []
    settings = (PruningSetting("2:4", 0.5), PruningSetting("1x1", 0.5))
    list(prune_all(digits(lambda: epochs.append(None)), "mlp", 0, settings))
    assert len(epochs) == TINY.dense_epochs + (1 + len(settings)) * TINY.tuning_epochs


def test_pruning_nothing_gives_the_dense_reference() -> None:
    run = next(prune_all(digits(), "mlp", 0, (PruningSetting("1x1", 0.0),)))
    assert run.report.sparsity == 0
    assert run.accuracy == run.dense_accuracy


def test_same_seed_same_network_and_the_process_is_left_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first, second = (next(prune_all(digits(), "mlp", 1, (PruningSetting("4x1", 0.8),))) for _ in range(2))
    for left, right in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_split_is_fixed_and_has_every_image_once() -> None:
    one, two = digits(), digits()
    assert np.array_equal(one.test_images, two.test_images)
    assert (len(one.train_images), len(one.test_images)) == (1257, 540)
    assert one.tuning_steps == TINY.tuning_epochs * 20


@pytest.fixture(scope="module")
def one_result() -> DigitsResult:
    return next(prune_all(digits(), "mlp", 0, (PruningSetting("2:4", 0.5),)))


def test_rows_gather_seeds(one_result: DigitsResult) -> None:
    runs = [
        replace(one_result, seed=0, dense_accuracy=0.95, accuracy=0.90),
        replace(one_result, seed=1, dense_accuracy=0.97, accuracy=0.96),
        replace(one_result, net="conv"),
    ]
    found = group_results(runs)
    assert [(row.net, len(row.results)) for row in found] == [("mlp", 2), ("conv", 1)]
    assert found[0].format_cells()[4:7] == ("96.00 ± 1.41", "93.00 ± 4.24", "-3.00")


def test_footer_says_what_was_compared(one_result: DigitsResult) -> None:
    two = DigitsRow("mlp", one_result.setting, (one_result, one_result))
    text = " ".join(make_digits_table(DigitsResults(digits(), [two])).text().split())
    assert "standard deviation over 2 seeds" in text
    assert "trained for 2 epochs, and train for 2 more: dense without pruning, pruned with it." in text
    assert "one seed" in make_digits_table(DigitsResults(digits(), [replace(two, results=(one_result,))])).text()
