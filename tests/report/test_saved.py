"""Tests of summaries of what is on disk, and of reports of models in memory."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import ArtifactError, MissingPackageError, StateError
from secateur.oneshot import Execution, Progress
from secateur.oneshot.run_folder import seal_values, unseal_values
from secateur.report import read_saved_masks, summarize_saved
from secateur.results import Measure, PruningReport, Summary

BATCHES = [torch.linspace(-1, 1, 128).reshape(8, 16)]


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, PruningReport, Path]:
    net, folder = make_net(), tmp_path_factory.mktemp("saved") / "pruned"
    report = secateur.prune(net, "2:4", calibration=BATCHES, solver="wanda")
    secateur.save(net, folder, report=report)
    return net, report, folder


def test_a_summary_of_an_artifact_has_settings_digests_and_layers(
    saved: tuple[nn.Module, PruningReport, Path],
) -> None:
    net, report, folder = saved
    summary = summarize_saved(folder)
    assert summary.configs[0]["pattern"] == "2:4"
    assert summary.digests == {"secateur.json": hashlib.sha256((folder / "secateur.json").read_bytes()).hexdigest()}
    assert summary.facts["Model"] == "Sequential, built by code with pytorch"
    layers = {layer.name: layer for layer in summary.layers}
    weight = net[0].weight.detach().numpy()
    assert layers["0"].sha256 == hashlib.sha256(weight.tobytes()).hexdigest()
    assert (layers["0"].pattern, layers["0"].sparsity, layers["0"].packing) == ("2:4", 0.5, "2:4")
    assert (layers["0"].units, layers["0"].pruned_units) == (256, 128)
    assert {name: layer.error for name, layer in layers.items()} == {**report.errors, "4": None}
    assert set(report.errors) == {"0", "2"}
    assert [(measure.quantity, measure.dense, measure.present) for measure in summary.measures] == [
        ("size", summary.measures[0].dense, summary.measures[0].present)
    ]
    assert summary.measures[0].present < summary.measures[0].dense == 4 * sum(w.numel() for w in net.parameters())
    assert summary.interruption is None


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_is_not_stored(error: float, tmp_path: Path) -> None:
    net = make_net()
    report = secateur.prune(net, "2:4", calibration=BATCHES, solver="wanda")
    secateur.save(net, tmp_path / "net", report=replace(report, errors=report.errors | {"0": error}))
    layers = {layer.name: layer.error for layer in summarize_saved(tmp_path / "net").layers}
    assert layers == {"0": None, "2": report.errors["2"], "4": None}


def test_the_masks_of_an_artifact_are_those_of_the_model(saved: tuple[nn.Module, PruningReport, Path]) -> None:
    net, _, folder = saved
    masks = {mask.name: mask.keep for mask in read_saved_masks(folder)}
    assert masks.keys() == {"0", "2"}
    assert all(np.array_equal(keep, net[int(name)].weight.detach().numpy() != 0) for name, keep in masks.items())


def test_the_report_of_a_run_joins_what_it_and_other_steps_know(
    saved: tuple[nn.Module, PruningReport, Path], tmp_path: Path
) -> None:
    net, report, folder = saved
    file = tmp_path / "report.html"
    more = [secateur.artifact.inspect(folder)]
    report.to_html(file, model=net, more=more, quality={"accuracy": (0.93, 0.92)})
    page = file.read_text("utf-8")
    for text in ("accuracy", "0.93 → 0.92", "smaller", "lost output energy", "Wanda", "output layer"):
        assert text in page
    assert page.count('<summary><img src="data:image/png') == 2
    report.to_html(str(file))
    assert "Size: not measured. Speed: not measured. Quality: not measured." in file.read_text("utf-8")


def test_a_summary_is_data_with_a_version(saved: tuple[nn.Module, PruningReport, Path]) -> None:
    _, report, _ = saved
    data = json.loads(json.dumps(report.summarize().to_dict()))
    assert (data["format_version"], report.to_dict()["format_version"]) == (1, 1)
    assert data["layers"][0]["error"] == report.errors["0"]  # type: ignore[attr-defined]
    assert re.fullmatch("[0-9a-f]{64}", data["digests"]["calibration data"])
    assert secateur.plan(make_net(), "2:4").to_dict()["format_version"] == 1


def test_a_plan_says_that_nothing_was_done(tmp_path: Path) -> None:
    plan = secateur.plan(make_net(), "2:4")
    plan.to_html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text("utf-8")
    assert "This is a plan: nothing has been pruned." in page
    assert ">target<" in page
    assert ">sparsity<" not in page


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was interrupted after its first part."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"

    def stop(_: Progress) -> None:
        raise KeyboardInterrupt

    execution = Execution(folder=folder, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        secateur.prune(make_net(), "2:4", calibration=BATCHES, solver="wanda", execution=execution)
    return folder


@pytest.fixture
def unfinished(interrupted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(interrupted, tmp_path / "run"))


def test_an_unfinished_run_is_marked_and_shows_what_is_finished(unfinished: Path) -> None:
    summary = summarize_saved(unfinished)
    assert summary.interruption is not None
    assert "1 part is finished and stored in" in summary.interruption
    done = [layer for layer in summary.layers if layer.dense_reason is None]
    assert done
    assert all(layer.sparsity == 0.5 and layer.error is not None for layer in done)
    assert summary.headlines == (f"{len(done)} of 2 layers are pruned.",)
    assert sorted(layer.name for layer in summary.layers) == ["0", "2"]
    assert summary.configs[0]["pattern"] == "2:4"
    assert list(read_saved_masks(unfinished)) == []


def damage(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    return values | {"described": values["described"] | {key: value}}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-3],
        lambda text: text.replace("2:4", "4:8"),
        lambda text: seal_values(damage(unseal_values(text), "layers", {"0": ["x"]})),
        lambda text: seal_values(damage(unseal_values(text), "layers", 3)),
        lambda text: seal_values(damage(unseal_values(text), "config", 3)),
        lambda _: seal_values({"described": []}),
        lambda _: "[]",
    ],
)
def test_a_damaged_run_is_reported(unfinished: Path, change: Callable[[str], str]) -> None:
    state = unfinished / "run.state"
    state.write_text(change(state.read_text("utf-8")), "utf-8")
    with pytest.raises(StateError, match=r"run\.state cannot be read"):
        summarize_saved(unfinished)


def test_a_damaged_part_is_reported(unfinished: Path) -> None:
    part = next(unfinished.glob("*.done.*"))
    part.write_bytes(part.read_bytes().replace(b"weights", b"weighty"))
    with pytest.raises((StateError, ArtifactError), match="done"):
        summarize_saved(unfinished)


@pytest.mark.usefixtures("fake_pandas")
def test_layers_become_a_data_frame_without_unknown_columns(saved: tuple[nn.Module, PruningReport, Path]) -> None:
    _, report, _ = saved
    frame = report.to_pandas()
    assert frame.columns == [
        "name",
        "shape",
        "pattern",
        "weights",
        "sparsity",
        "units",
        "pruned_units",
        "error",
        "dense_reason",
    ]
    assert [row["sparsity"] for row in frame.rows] == [0.5, 0.5, None]


def test_a_missing_package_for_data_frames_is_named(
    saved: tuple[nn.Module, PruningReport, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur._packages.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="'pandas', which is not installed"):
        saved[1].to_pandas()


def test_summaries_join_without_loss() -> None:
    first = Summary(title="a", facts={"x": "1"}, notes=("n",), history=((0, 0.0),), last_step=3)
    second = Summary(title="b", facts={"x": "2", "y": "3"}, notes=("n", "m"), interruption="it stopped")
    joined = first.join(second)
    assert (joined.title, list(joined.facts.items()), joined.notes) == ("a", [("x", "1"), ("y", "3")], ("n", "m"))
    assert (joined.history, joined.last_step, joined.interruption) == (((0, 0.0),), 3, "it stopped")


def test_measures_of_one_name_are_joined_and_warnings_stay() -> None:
    size = Measure(quantity="size", name="tensors on disk", unit="bytes", dense=2, present=1)
    first = Summary(title="a", measures=(size,), warnings=("busy",))
    second = Summary(title="b", measures=(replace(size, present=2), replace(size, name="weights in memory")))
    joined = first.join(second)
    assert [(one.name, one.present) for one in joined.measures] == [("tensors on disk", 1), ("weights in memory", 1)]
    assert joined.warnings == ("busy",)
