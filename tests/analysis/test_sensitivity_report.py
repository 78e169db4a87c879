"""Test what a sensitivity report shows, and that targets are distributed by it exactly."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from analysis.nets import Unchanged, list_points, make_batches, make_stack
from secateur.analysis import assign_targets
from secateur.errors import ArtifactError, ConfigError, StorageError, UnsupportedModelError
from secateur.frameworks import WeightView
from secateur.oneshot import Execution
from secateur.patterns import BasePattern, Units, get_pattern, register_pattern
from secateur.planning.loss_curves import clip_hull, interpolate_powers
from secateur.results import LayerSensitivity, SensitivityPoint, SensitivityReport

SCAN = secateur.sensitivity(
    make_stack(), make_batches(16, 8), patterns=["1x1", "4x1", "2:4"], sparsities=[0.25, 0.5, 0.75]
)
POINT = SensitivityPoint(pattern="1x1", sparsity=0.5, units=64, pruned_units=32, loss=0.25)
LAYER = LayerSensitivity(name="fc", shape=(8, 8), sha256="0f", points=(POINT, replace(POINT, sparsity=0.75, loss=0.5)))
REPORT = SensitivityReport(
    metric="layer", solver="wanda", layers=(LAYER,), dense={"out": "output layer"}, misfits={}, out_of_reach={}
)


# The report.


def test_the_table() -> None:
    report = replace(
        REPORT, metric="perplexity", dense_value=20.0, seconds=1.25, misfits={"2:4": {"a": "it", "b": "it"}}
    )
    assert str(report).splitlines() == [
        "Sensitivity",
        "",
        "layer  shape  1x1 50%  1x1 75%",
        "──────────────────────────────",
        "fc       8×8     0.25      0.5",
        "",
        "Pruned each of 1 layer alone by wanda, and measured the increase of perplexity. The largest loss is 0.5: "
        "'fc' at 1x1 75%.",
        "The dense model has perplexity = 20; lower is better.",
        "Not measured with 2:4: 'a', 'b': it.",
        "Left out 1 other layer. Took 1.2 s.",
    ]


def test_a_report_becomes_json_and_back(tmp_path: Path) -> None:
    plain = json.loads(json.dumps(SCAN.to_dict()))
    assert plain["format_version"] == 1
    assert SensitivityReport.from_dict(plain) == SCAN
    assert hash(SensitivityReport.from_dict(plain)) == hash(SCAN)
    SCAN.write(tmp_path / "scan.json")
    assert SensitivityReport.read(tmp_path / "scan.json") == SCAN
    with pytest.raises(StorageError, match="cannot be written"):
        SCAN.write(tmp_path / "missing" / "scan.json")


def break_plain(**changes: Any) -> dict[str, Any]:
    return REPORT.to_dict() | changes


def break_point(**changes: Any) -> dict[str, Any]:
    plain = REPORT.to_dict()
    plain["layers"][0]["points"][0] |= changes
    return plain


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "must be a mapping with format_version=1, found {}"),
        ([], "must be a mapping with format_version=1, found []"),
        (break_plain(format_version=2), "must be a mapping with format_version=1"),
        (break_plain(layers=[]), "must have each layer once, and at least one"),
        (break_plain(layers=REPORT.to_dict()["layers"] * 2), "must have each layer once"),
        (break_plain(solver=3), "solver: Input should be a valid string"),
        (break_plain(seconds="1"), "seconds: Input should be a valid number"),
        (break_plain(layers=[{"name": "fc"}]), "layers.0.shape: Field required"),
        (break_plain(solver=object()), "not those of a sensitivity report"),
        (break_point(loss=float("inf")), "not those of a sensitivity report"),
        (break_point(sparsity=1.5), "must have a sparsity in (0, 1], at most all units pruned and a finite loss"),
        (break_point(pruned_units=65), "must have a sparsity in (0, 1], at most all units pruned"),
        (break_point(pruned_units=-1), "must have a sparsity in (0, 1], at most all units pruned"),
        (break_plain(layers=[LAYER.to_dict() | {"loss_factor": 0.0}]), "must have a finite loss_factor above 0"),
        (break_point(sparsity=0.75), "layer 'fc' must have each pattern and sparsity once"),
    ],
)
def test_values_that_are_not_a_report_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SensitivityReport.from_dict(values)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ArtifactError, "is not valid JSON"),
        ("[]", ArtifactError, "must be a JSON object, found list"),
        ('{"a": NaN}', ArtifactError, "NaN is not a JSON number"),
        ("{}", ConfigError, r"scan\.json: a sensitivity report must be a mapping"),
    ],
)
def test_files_that_are_not_a_report_are_refused(
    text: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "scan.json").write_text(text, "utf-8")
    with pytest.raises(error, match=message):
        SensitivityReport.read(tmp_path / "scan.json")


@pytest.mark.usefixtures("fake_pandas")
def test_losses_become_a_data_frame() -> None:
    frame = REPORT.to_pandas()
    assert frame.rows[1] == {"layer": "fc"} | POINT.to_dict() | {"sparsity": 0.75, "loss": 0.5}
    assert len(frame.rows) == 2


# Distribution of a target.


def prune(model: nn.Module, target: float, pattern: str = "1x1", **options: Any) -> dict[str, int]:
    config = {"pattern": pattern, "target_sparsity": target}
    report = secateur.prune(model, config, allocation=SCAN, **options)
    assert report.sensitivity == SCAN.losses
    assert [setting.target_sparsity for setting in report.configs] == [target]
    return {row.name: row.pruned_units for row in report.layers}


WITH_DATA = {"calibration": make_batches(16, 8), "solver": "wanda"}


@pytest.mark.parametrize("options", [{}, WITH_DATA], ids=["weights", "data"])
@pytest.mark.parametrize(
    ("pattern", "target"), [("1x1", 0.41), ("1x1", 0.75), ("4x1", 0.1), ("2:4", 0.3), ("2:4", 0.5)]
)
def test_targets_are_met_exactly(pattern: str, target: float, options: dict[str, Any]) -> None:
    model = make_stack()
    counts = prune(model, target, pattern, **options)
    zeros = {name: int((model.get_submodule(name).weight == 0).sum()) for name in counts}
    weights = sum(model.get_submodule(name).weight.numel() for name in counts)
    units, size = (weights // 4, 2) if pattern == "2:4" else (weights // (4 if pattern == "4x1" else 1), 1)
    size = 4 if pattern == "4x1" else size
    total = round(target * units / (0.5 if pattern == "2:4" else 1))
    assert sum(zeros.values()) == total * size
    assert counts == prune(make_stack(), target, pattern, **(WITH_DATA if not options else {}))


def interpolate(curve: Sequence[tuple[int, float]], count: int) -> float:
    """Return the smallest value of any chord of a curve at a count."""
    chords = itertools.combinations_with_replacement(curve, 2)
    return min(
        float(np.interp(count, *zip(left, right, strict=True)))
        for left, right in chords
        if left[0] <= count <= right[0]
    )


def test_the_sum_of_losses_is_smallest() -> None:
    counts = prune(make_stack(), 0.5, "4x1")
    curves = {}
    for layer in SCAN.layers:
        points = [(point.pruned_units, point.loss) for point in layer.points if point.pattern == "4x1"]
        curves[layer.name] = [(count, layer.loss_factor * loss) for count, loss in interpolate_powers(points)]
        assert [count for count, _ in curves[layer.name]] == list(range(points[-1][0] + 1))
    best = sum(interpolate(curves[name], count) for name, count in counts.items())
    for less, more in itertools.permutations(counts, 2):
        if counts[less] > 0 and counts[more] < curves[more][-1][0]:
            moved = counts | {less: counts[less] - 1, more: counts[more] + 1}
            assert best <= sum(interpolate(curves[name], count) for name, count in moved.items()) + 1e-9
    assert len(set(counts.values())) > 1


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], [(0, 0.0)]),
        ([(2, 3.0)], [(0, 0.0), (1, 1.5), (2, 3.0)]),
        ([(1, 1.0), (2, 8.0), (4, 32.0)], [(0, 0.0), (1, 1.0), (2, 8.0), (3, 18.0), (4, 32.0)]),
        ([(2, 4.0), (4, 4.0)], [(0, 0.0), (1, 2.0), (2, 4.0), (3, 4.0), (4, 4.0)]),  # it does not grow
        ([(2, -1.0), (4, 4.0)], [(0, 0.0), (1, -0.5), (2, -1.0), (3, 1.5), (4, 4.0)]),
        ([(2, 4.0), (4, 5.0)], [(0, 0.0), (1, 2.0), (2, 4.0), (3, 4.5), (4, 5.0)]),  # a power below 1
    ],
)
def test_losses_are_interpolated_by_powers(curve: Any, expected: Any) -> None:
    assert dict(interpolate_powers(curve)) == pytest.approx(dict(expected))


def test_long_curves_have_few_points() -> None:
    smooth = interpolate_powers([(1_000, 1.0), (100_001, 1e6)])
    assert 64 <= len(smooth) <= 70
    assert [count for count, _ in smooth] == sorted({count for count, _ in smooth})
    assert (smooth[0], smooth[-1]) == ((0, 0.0), (100_001, pytest.approx(1e6)))


def test_errors_count_in_units_of_the_mean_score() -> None:
    model, data = make_stack(), torch.cat(make_batches(16, 8))
    scan = secateur.sensitivity(model, make_batches(16, 8), config={"op_names": ["0[.]0"]})
    weight = model[0][0].weight.detach()
    energy, scores = (data @ weight.T).square().sum(), weight.abs() * data.norm(dim=0)
    assert scan.layers[0].loss_factor == pytest.approx(float(energy / scores.mean() ** 2), rel=1e-4)
    blocks = secateur.sensitivity(model, make_batches(16, 8), metric="block")
    assert {layer.loss_factor for layer in blocks.layers} == {1.0}


def test_the_factor_of_a_layer_decides_how_much_it_loses() -> None:
    heavy = replace(SCAN.layers[0], loss_factor=1e9)
    report = replace(SCAN, layers=(heavy, *SCAN.layers[1:]))
    config = {"pattern": "1x1", "target_sparsity": 0.4}
    pruned = secateur.prune(make_stack(), config, allocation=report)
    assert pruned.sparsity == pytest.approx(0.4, abs=1e-3)
    assert pruned.layers[0].sparsity < 0.02 < prune(make_stack(), 0.4)["0.0"] / 96


@settings(max_examples=50)
@given(losses=st.lists(st.floats(-1, 1), min_size=2, max_size=6), low=st.integers(0, 5), high=st.integers(0, 5))
def test_clipped_curves_are_the_hull_between_their_bounds(losses: list[float], low: int, high: int) -> None:
    curve = list(enumerate(losses))
    low, high = sorted((min(low, len(losses) - 1), min(high, len(losses) - 1)))
    clipped = clip_hull(curve, low, high)
    assert (clipped[0][0], clipped[-1][0]) == (low, high)
    for count in range(low, high + 1):
        expected = interpolate(curve, count)
        assert float(np.interp(count, *zip(*clipped, strict=True))) == pytest.approx(expected, abs=1e-9)


def test_bounds_of_layers_hold() -> None:
    config = {"pattern": "1x1", "target_sparsity": 0.5, "max_sparsity_ratio_per_op": 0.55}
    report = secateur.prune(make_stack(), config, allocation=SCAN)
    assert report.sparsity == 0.5
    assert max(row.sparsity for row in report.layers) <= 0.55
    config = config | {"max_sparsity_ratio_per_op": None, "min_sparsity_ratio_per_op": 0.4}
    report = secateur.prune(make_stack(), config, allocation=SCAN)
    assert report.sparsity == 0.5
    assert min(row.sparsity for row in report.layers) >= 0.4


def test_layers_that_are_not_pruned_need_not_be_left_out_of_the_scan() -> None:
    config = {"pattern": "1x1", "target_sparsity": 0.5, "excluded_op_names": ["0[.].*"]}
    report = secateur.prune(make_stack(), config, allocation=SCAN, **WITH_DATA)
    assert report.sparsity == 0.5
    assert len(report.layers) == 4


def make_other(layer: str) -> nn.Module:
    model = make_stack()
    with torch.no_grad():
        model.get_submodule(layer).weight[0, 0] += 1
    return model


@pytest.mark.parametrize("options", [{}, WITH_DATA], ids=["weights", "data"])
@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (make_other("1.2"), {}, "is of a model with other weights in '1.2'. Scan this model"),
        (make_other("1.2"), {"pattern": "2:4"}, "is of a model with other weights in '1.2'"),
        (nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), {}, "must cover every layer to prune, and it lacks '0'"),
        (make_stack(), {"op_names": [".*"]}, "it lacks '3' ("),
        (make_stack(), {"pattern": "1x4"}, "must have measured '1x4' in layer '0.0', found '1x1', '4x1', '2:4' only"),
        (
            make_stack(),
            {"target_sparsity": 0.8},
            "must reach target_sparsity=0.8 with '1x1', and its largest sparsity is 0.75",
        ),
        (make_stack(), {"min_sparsity_ratio_per_op": 0.76, "target_sparsity": 0.77}, "layer '0.0' must lose 73 units"),
    ],
)
def test_reports_of_other_models_are_refused(
    model: nn.Module, config: dict[str, Any], message: str, options: dict[str, Any]
) -> None:
    settings = {"pattern": "1x1", "target_sparsity": 0.5} | config
    with Unchanged(model), pytest.raises(ConfigError, match=re.escape(message)):
        secateur.prune(model, settings, allocation=SCAN, **options)


def test_reports_of_other_shapes_are_refused() -> None:
    blocks = [nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3)]
    model = nn.Sequential(*blocks, nn.Linear(8, 3))
    with pytest.raises(
        ConfigError, match=r"of another model: layer '0\.0' has a weight of shape \(12, 8\) there, and \(16, 8\)"
    ):
        secateur.prune(model, {"pattern": "1x1", "target_sparsity": 0.5}, allocation=SCAN)


def test_reports_cannot_distribute_channels() -> None:
    config = {"pattern": "channels", "target_sparsity": 0.5}
    for call in (secateur.prune, secateur.slim):
        with pytest.raises(
            ConfigError, match=r"allocation must be 'uniform' or 'global' for patterns of units in several"
        ):
            call(make_stack(), config, allocation=SCAN, **WITH_DATA | {"solver": "osscar"})


@pytest.mark.usefixtures("registries_restored")
def test_patterns_that_couple_layers_are_refused() -> None:
    @register_pattern("coupled")
    class Coupled(BasePattern):
        def tile(self, view: WeightView) -> Any:
            return get_pattern({"pattern": "1xchannel"}, {}).tile(view)

        def couple(self, tilings: dict[str, Any]) -> dict[str, Units]:
            return {"all": Units(tilings)}

    config = {"pattern": "coupled", "target_sparsity": 0.5, "op_names": [".*[.]0"]}
    with pytest.raises(UnsupportedModelError, match="for pattern 'coupled', which couples layers: results of scans"):
        secateur.prune(make_stack(), config, allocation=SCAN)
    config = {"op_names": config["op_names"]}
    with pytest.raises(UnsupportedModelError, match="patterns must prune single layers, and 'coupled' couples layers"):
        secateur.sensitivity(make_stack(), make_batches(16, 8), patterns="coupled", config=config)


def test_an_interrupted_run_resumes_only_with_the_same_report(tmp_path: Path) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    execution = Execution(folder=tmp_path, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        prune(make_stack(), 0.5, **WITH_DATA, execution=execution)
    other = replace(SCAN, layers=tuple(replace(layer, points=layer.points[1:]) for layer in SCAN.layers))
    config = {"pattern": "1x1", "target_sparsity": 0.5}
    execution = Execution(folder=tmp_path)
    with pytest.raises(secateur.SecateurError, match="differs in recipe"):
        secateur.prune(make_stack(), config, allocation=other, **WITH_DATA, execution=execution)
    assert prune(make_stack(), 0.5, **WITH_DATA, execution=execution) == prune(make_stack(), 0.5, **WITH_DATA)


def test_targets_can_be_assigned_for_training() -> None:
    model, config = (
        make_stack(),
        {"pattern": "4x1", "target_sparsity": 0.5, "layers": {"0[.].*": {"criterion": "random"}}},
    )
    assigned = assign_targets(model, config, SCAN)
    assert next(iter(assigned.layers)) == "0\\.0"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = secateur.prepare(model, assigned, optimizer=optimizer)
    model(make_batches(16, 8)[0]).sum().backward()
    optimizer.step()
    report = pruner.finalize()
    counts = {row.name: row.pruned_units for row in report.layers}
    first = ("0.0", "0.2")  # another criterion is another pattern, with its own total
    assert sum(counts[name] for name in first) == 24
    assert sum(counts.values()) == 72
    rest = prune(make_stack(), 0.5, "4x1")
    assert counts != dict.fromkeys(counts, 12)
    assert {setting.criterion for setting in report.configs} == {"magnitude", "random"}
    plain = assign_targets(make_stack(), {"pattern": "4x1", "target_sparsity": 0.5}, SCAN)
    assert [rule["target_sparsity"] for rule in plain.layers.values()] == [rest[name] / 24 for name in rest]
    with pytest.raises(ConfigError, match="other weights"):
        assign_targets(make_other("0.0"), config, SCAN)


def test_scanning_a_pruned_model_counts_from_there() -> None:
    model = make_stack()
    secateur.prune(model, {"pattern": "1x1", "target_sparsity": 0.25}, **WITH_DATA)
    report = secateur.sensitivity(model, make_batches(16, 8), sparsities=0.25)
    assert all(point.loss == 0 for _, point in list_points(report))
