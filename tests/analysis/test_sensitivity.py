"""Test sensitivity scans against pruning each layer alone, and that they leave the model as it was."""

import itertools
import logging
import math
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateur
import tiny_transformers
from analysis.nets import (
    Unchanged,
    list_points,
    make_batches,
    make_convolutions,
    make_stack,
    make_tokens,
    prune_alone,
    record_outputs,
)
from oneshot.problems import ProgressRecorder
from secateur.errors import CalibrationError, ConfigError, ScoreError, SecateurError, UnsupportedModelError
from secateur.masking.pytorch import ParameterWeight
from secateur.oneshot import Calibration, Execution

PATTERNS = ["1x1", "4x1", "2:4"]


def measure_tokens(model: nn.Module) -> float:
    """Return the mean loss of a tiny language model, which must be in evaluation mode, without gradients."""
    assert not model.training
    assert not torch.is_grad_enabled()
    losses = [model(**batch, labels=batch["input_ids"]).loss for batch in make_tokens()]
    return float(torch.stack(losses).mean())


# Errors, compared with pruning one layer and measuring.


def run_batches(model: nn.Module, batches: Any) -> None:
    for batch in batches:
        model(**batch) if isinstance(batch, dict) else model(batch)


def compute_error(dense: torch.Tensor, present: torch.Tensor) -> float:
    lost, energy = ((values.detach().double()).square().sum() for values in (present - dense, dense))
    return float(lost / energy)


@pytest.mark.parametrize(
    ("make", "batches", "solver"),
    [
        (make_stack, make_batches(16, 8), "magnitude"),
        (make_stack, make_batches(16, 8), "wanda"),
        (make_stack, make_batches(16, 8), "sparsegpt"),
        (make_convolutions, make_batches(4, 3, 8, 8), "wanda"),
        (lambda: tiny_transformers.family("llama"), make_tokens(), "wanda"),
    ],
    ids=["magnitude", "wanda", "sparsegpt", "convolutions", "llama"],
)
def test_errors_of_layers_are_those_of_pruning_each_alone(
    make: Callable[[], nn.Module], batches: Any, solver: str
) -> None:
    model = make()
    with Unchanged(model):
        report = secateur.sensitivity(model, batches, patterns=PATTERNS, sparsities=[0.5, 0.25], solver=solver)
    points = list_points(report)
    assert {point.pattern for _, point in points} == {*PATTERNS}
    for name, point in points[:: 5 if make is make_stack else 1 if make is make_convolutions else 31]:
        pruned, result = prune_alone(model, name, point.pattern, point.sparsity, calibration=batches, solver=solver)
        outputs = []
        for net in (model, pruned):
            parts = record_outputs(net, name, lambda net: run_batches(net, batches))
            keeps = [batch["attention_mask"].bool() if isinstance(batch, dict) else ... for batch in batches]
            values = torch.cat([part[keep] for part, keep in zip(parts, keeps, strict=True)])
            bias = model.get_submodule(name).bias
            outputs.append(values if bias is None else values - bias.reshape(1, -1, *[1] * (values.ndim - 2)))
        assert point.loss == pytest.approx(compute_error(*outputs), rel=1e-4)
        assert point.pruned_units == result.layers[0].pruned_units * (1 if point.pattern != "2:4" else 0.5)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_errors_of_stacked_experts_are_those_of_pruning_them_alone(family: str) -> None:
    torch.manual_seed(0)
    model, batches = getattr(tiny_transformers, family)().eval(), make_tokens(padding=0)
    config, options = {"op_names": [r".*experts.*", r".*q_proj"]}, {"solver": "sparsegpt"}
    with Unchanged(model):
        report = secateur.sensitivity(model, batches, sparsities=0.5, config=config, **options)
    points = [(name, point) for name, point in list_points(report) if "experts" in name]
    assert points
    assert len(points) < len(list_points(report))
    for name, point in points:
        _, pruned = prune_alone(model, name, "1x1", 0.5, calibration=batches, **options)
        assert point.loss == pytest.approx(pruned.errors[name], rel=1e-5)


@pytest.mark.parametrize("offload", ["memory", "disk"])
def test_errors_of_blocks_are_those_of_their_outputs_without_padding(offload: Any) -> None:
    model, batches = tiny_transformers.family("llama"), make_tokens()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 1.0  # that of padding, which is zero otherwise
    with Unchanged(model):
        report = secateur.sensitivity(
            model, batches, sparsities=0.5, metric="block", execution=Execution(offload=offload)
        )
    keep = torch.cat([batch["attention_mask"] for batch in batches]).bool()
    assert len(report.layers) == 21
    for name, point in list_points(report)[::8]:
        pruned, _ = prune_alone(model, name, "1x1", 0.5, calibration=batches, solver="wanda")
        block = re.match(r"model\.layers\.\d", name)
        assert block is not None
        dense, present = (
            torch.cat(record_outputs(net, block[0], lambda net: run_batches(net, batches)))[keep]
            for net in (model, pruned)
        )
        assert point.loss == pytest.approx(compute_error(dense, present), rel=1e-4)
        assert point.value is None


@pytest.mark.parametrize("calibration", [None, make_tokens()], ids=["weights", "data"])
def test_a_function_measures_the_model_with_one_pruned_layer(calibration: Any) -> None:
    model = tiny_transformers.family("llama")
    model.train()
    with Unchanged(model):
        report = secateur.sensitivity(
            model,
            calibration,
            patterns=["1x1", "2:4"],
            sparsities=0.5,
            metric=measure_tokens,
            config={"op_names": [r".*\.[01]\..*(q|down)_proj"]},
        )
    model.eval()
    assert report.metric == "measure_tokens"
    assert report.solver == ("magnitude" if calibration is None else "wanda")
    with torch.no_grad():
        assert report.dense_value == pytest.approx(measure_tokens(model), rel=1e-6)
        for name, point in list_points(report):
            options = {} if calibration is None else {"calibration": calibration, "solver": "wanda"}
            pruned, _ = prune_alone(model, name, point.pattern, point.sparsity, **options)
            assert point.value == pytest.approx(measure_tokens(pruned), rel=1e-6)
            assert point.loss == pytest.approx(point.value - report.dense_value, abs=1e-6)
    assert len(list_points(report)) == 4 * 2


def test_all_cases_are_computed_from_one_pass() -> None:
    def count_calls(**options: Any) -> int:
        model, calls = make_stack(), []
        model[1][0].register_forward_hook(lambda *_: calls.append(1))
        secateur.sensitivity(model, make_batches(16, 8), **options)
        return len(calls)

    assert count_calls(sparsities=0.5) == count_calls(patterns=PATTERNS, sparsities=[0.1, 0.2, 0.3, 0.4, 0.5])


def test_calibration_data_can_be_a_calibration() -> None:
    model, batches = make_stack(), make_batches(16, 8)
    first, second = (secateur.sensitivity(model, data) for data in (batches, Calibration(batches)))
    assert list_points(first) == list_points(second)
    assert first.data_sha256 == second.data_sha256 != ""


# The direction of a metric.


@pytest.mark.parametrize("is_higher", [False, True])
def test_losses_are_positive_if_the_model_gets_worse(is_higher: bool, caplog: pytest.LogCaptureFixture) -> None:
    model, batches = make_stack(), make_batches(16, 8)
    with torch.no_grad():
        targets = [model(batch) for batch in batches]

    def measure(net: nn.Module) -> torch.Tensor:
        errors = [(net(batch) - target).square().mean() for batch, target in zip(batches, targets, strict=True)]
        return torch.stack(errors).mean() * (-1 if is_higher else 1)

    with caplog.at_level(logging.WARNING, "secateur"):
        report = secateur.sensitivity(model, metric=measure, higher_is_better=is_higher)
    assert caplog.text == ""
    assert all(point.loss == abs(point.value) > 0 for _, point in list_points(report))
    assert report.quantity == f"{'decrease' if is_higher else 'increase'} of measure"
    with caplog.at_level(logging.WARNING, "secateur"):
        wrong = secateur.sensitivity(model, metric=measure, higher_is_better=not is_higher)
    assert f"pass higher_is_better={is_higher}" in caplog.text
    assert [point.loss for _, point in list_points(wrong)] == [-point.loss for _, point in list_points(report)]


# The model stays as it is.


class StopScanError(Exception):
    """Raised by a metric."""


@pytest.mark.parametrize("error", [StopScanError, KeyboardInterrupt])
@pytest.mark.parametrize("calibration", [None, make_batches(16, 8)], ids=["weights", "data"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_restored_after_an_error_in_the_metric(
    error: type[BaseException], calibration: Any, dtype: torch.dtype
) -> None:
    model = make_stack().to(dtype).train()
    with torch.no_grad():
        model[1][0].weight[0, :4] = -0.0  # a bit that a product with a mask would lose
    calls = []

    def measure(net: nn.Module) -> float:
        calls.append(float((net[1][0].weight == 0).float().mean()))
        if calls[-1] > 0.7:
            raise error
        return 1.0

    batches = None if calibration is None else [batch.to(dtype) for batch in calibration]
    with Unchanged(model), pytest.raises(error):
        secateur.sensitivity(model, batches, metric=measure)
    assert len(calls) > 2


@pytest.mark.parametrize("calibration", [None, make_batches(16, 8)], ids=["weights", "data"])
def test_an_interrupt_stops_a_metric_but_not_the_restoring_of_weights(
    calibration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read, calls, pending = make_stack(), ParameterWeight.stored.fget, [], []
    assert read is not None

    def interrupt_once(weight: ParameterWeight) -> torch.Tensor:
        if pending:
            pending.clear()
            signal.raise_signal(signal.SIGINT)
        values: torch.Tensor = read(weight)
        return values

    def measure(_: nn.Module) -> float:
        calls.append("start")
        if len(calls) == 3:
            pending.append(True)  # the weight is read next to restore it
        return 1.0

    monkeypatch.setattr(ParameterWeight, "stored", property(interrupt_once))
    with Unchanged(model), pytest.raises(KeyboardInterrupt):
        secateur.sensitivity(model, calibration, metric=measure)
    assert calls == ["start"] * 3

    def interrupt(_: nn.Module) -> float:
        calls.append("interrupted")
        signal.raise_signal(signal.SIGINT)
        calls.append("never reached")
        return 1.0

    with Unchanged(model), pytest.raises(KeyboardInterrupt):
        secateur.sensitivity(model, calibration, metric=interrupt)
    assert calls[3:] == ["interrupted"]


@pytest.mark.parametrize("metric", ["layer", "block"])
def test_the_model_is_unchanged_after_an_error_in_a_callback(metric: Any) -> None:
    model = make_stack().train()
    recorder = ProgressRecorder(KeyboardInterrupt, at=3)
    with Unchanged(model), pytest.raises(KeyboardInterrupt):
        secateur.sensitivity(model, make_batches(16, 8), metric=metric, execution=Execution(progress=recorder))
    assert [step.stage for step in recorder.steps] == ["0.0", "0.2", "1.0"]


@pytest.mark.parametrize("calibration", [None, make_batches(16, 8)], ids=["weights", "data"])
def test_progress_counts_layers(calibration: Any) -> None:
    recorder = ProgressRecorder()
    secateur.sensitivity(
        make_stack(), calibration, metric=lambda _: 1.0, execution=Execution(progress=recorder), progress=True
    )
    assert [(step.stage, step.done, step.total) for step in recorder.steps] == [
        (name, number, 6) for number, name in enumerate(["0.0", "0.2", "1.0", "1.2", "2.0", "2.2"], start=1)
    ]
    assert recorder.steps[-1].seconds_left == 0


# What cannot be measured.


def test_sparsities_out_of_reach_and_layers_that_do_not_fit_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    report = secateur.sensitivity(model, make_batches(16, 6), patterns=["1x1", "2:4"], sparsities=[0.5, 0.75])
    assert report.out_of_reach == {"2:4": (0.75,)}
    assert list(report.misfits) == ["2:4"]
    assert list(report.misfits["2:4"]) == ["0"]
    assert "6 input channels are not a multiple of M=4" in report.misfits["2:4"]["0"]
    assert [str(case) for case in report.cases] == ["1x1 50%", "1x1 75%", "2:4 50%"]
    assert report.layers[0].find_loss(report.cases[2]) is None
    assert report.layers[1].find_loss(report.cases[2]) is not None
    text = str(report)
    assert "Out of reach for 2:4: 75%." in text
    assert "Not measured with 2:4: '0': 6 input channels" in text
    assert list(report.dense) == ["2"]


def test_layers_whose_outputs_are_zero_are_named() -> None:
    model = make_stack()
    with torch.no_grad():
        model[1][0].weight.zero_()
    report = secateur.sensitivity(model, make_batches(16, 8), config={"op_names": ["[01][.]0"]})
    assert [layer.name for layer in report.layers] == ["0.0"]
    assert report.dense["1.0"] == "its outputs are all zero on the calibration data"
    with pytest.raises(
        CalibrationError, match=r"no layer could be measured; for example, layer '1\.0': its outputs are"
    ):
        secateur.sensitivity(model, make_batches(16, 8), config={"op_names": ["1[.]0"]})


class Branches(nn.Module):
    """Three layers that read the same input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(8, 4), nn.Linear(8, 12), nn.Linear(8, 8)
        self.head = nn.Linear(24, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(torch.cat([self.first(x), self.second(x), self.third(x)], dim=1))
        return result


def test_layers_that_share_inputs_with_a_zero_layer_are_measured() -> None:
    model, batches = Branches(), make_batches(16, 8)
    with torch.no_grad():
        model.second.weight.zero_()
    report = secateur.sensitivity(model, batches, solver="sparsegpt")
    assert [layer.name for layer in report.layers] == ["first", "third"]
    for name, point in list_points(report):
        _, result = prune_alone(model, name, "1x1", point.sparsity, calibration=batches, solver="sparsegpt")
        assert point.loss == pytest.approx(result.errors[name], rel=1e-5)


def test_layers_outside_of_blocks_have_no_error_of_a_block() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.before(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    torch.manual_seed(0)
    model = Net()
    report = secateur.sensitivity(model, make_batches(16, 8), metric="block")
    assert [layer.name for layer in report.layers] == ["blocks.0", "blocks.1"]
    assert report.dense["before"] == "it is outside of the blocks, whose outputs are compared"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patterns": []}, ConfigError, "patterns must be one or more different patterns.*found []"),
        ({"patterns": ["1x1", "1x1"]}, ConfigError, "patterns must be one or more different patterns"),
        ({"patterns": [3]}, ConfigError, "patterns must be one or more different patterns"),
        ({"patterns": 3}, ConfigError, "patterns must be one or more different patterns"),
        ({"patterns": "4y1"}, ConfigError, "Unknown pattern '4y1'"),
        ({"patterns": "channels"}, UnsupportedModelError, "single layers, and 'channels' couples layers"),
        ({"patterns": "2:5"}, SecateurError, "No layer of the model can be pruned with pattern '2:5'"),
        ({"sparsities": []}, ConfigError, "sparsities must be one or more different numbers in (0, 1].*found ()"),
        ({"sparsities": 0}, ConfigError, "sparsities must be"),
        ({"sparsities": [0.5, 1.5]}, ConfigError, "sparsities must be"),
        ({"sparsities": [0.5, 0.5]}, ConfigError, "sparsities must be"),
        ({"sparsities": [math.nan]}, ConfigError, "sparsities must be"),
        ({"sparsities": "0.5"}, ConfigError, "sparsities must be"),
        ({"sparsities": ["a"]}, ConfigError, "sparsities must be"),
        ({"sparsities": [True]}, ConfigError, "sparsities must be"),
        (
            {"patterns": "2:4", "sparsities": 0.75},
            ConfigError,
            "one that pattern '2:4' reaches, at most 0.5, found 0.75",
        ),
        ({"metric": "perplexity"}, ConfigError, "metric must be 'layer', 'block' or a function.*found 'perplexity'"),
        ({"metric": 3}, ConfigError, "metric must be 'layer', 'block' or a function"),
        ({"higher_is_better": True}, ConfigError, "higher_is_better is for a metric that is a function"),
        ({"calibration": None}, CalibrationError, "metric='layer' needs calibration data, found none"),
        ({"calibration": []}, CalibrationError, "calibration must contain at least one batch"),
        ({"config": "2:4"}, ConfigError, "config must only select layers, and it sets pattern, which a scan varies"),
        ({"config": {"layers": {".*": {"target_sparsity": 0.5}}}}, ConfigError, "it sets target_sparsity"),
        (
            {"config": {"max_sparsity_ratio_per_op": 0.5}},
            ConfigError,
            "it sets max_sparsity_ratio_per_op, which a scan",
        ),
        ({"config": {"op_names": ["missing"]}}, ConfigError, "matches no layer"),
        ({"config": {"kind": "pattern_lock"}}, SecateurError, "."),
        ({"config": {"criterion": "snip"}}, ConfigError, "criterion must not need gradients"),
        ({"solver": "osscar"}, ConfigError, "solver must support single layers"),
        ({"solver": "wander"}, ConfigError, "Unknown solver 'wander'"),
        ({"solver": "wanda", "calibration": None, "metric": float}, CalibrationError, "Wanda needs calibration data"),
        ({"execution": Execution(folder="x")}, ConfigError, "execution of a scan must not set folder"),
        ({"execution": Execution(device="cpu"), "metric": float}, ConfigError, "must not set a device if metric"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model = make_stack()
    arguments = {"calibration": make_batches(16, 8), "patterns": "1x1"} | options
    escaped = re.escape(message).replace(r"\.\*", ".*") if message != "." else message
    with Unchanged(model), pytest.raises(error, match=escaped):
        secateur.sensitivity(model, **arguments)


def test_models_without_blocks_have_no_errors_of_blocks() -> None:
    with pytest.raises(UnsupportedModelError, match=r"metric='block' needs a model with a stack of blocks.*'layer'"):
        secateur.sensitivity(nn.Linear(8, 8), make_batches(16, 8), metric="block", config={"op_names": [".*"]})
    with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn.Module or a keras\.Model"):
        secateur.sensitivity("model")


def make_metric(values: list[Any]) -> Callable[[Any], Any]:
    """Return a metric with these values, of which the last repeats."""
    remaining = iter(values)
    last = [values[-1]]
    return lambda _: next(remaining, last[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([math.nan], "must return a finite number, found nan for the dense model"),
        ([1.0, 1.0, math.nan], "must return a finite number, found nan for layer '0.0' at 1x1 25%"),
        ([1.0, 1.0, 1.0, math.inf], "must return a finite number, found inf for layer '0.0' at 1x1 50%"),
        ([1.0, 2.0], "must return the same value for the same weights, found 1.0 and 2.0 for the dense model"),
        (["high"], "must return a number, found 'high' for the dense model"),
        ([None], "must return a number, found None for the dense model"),
        ([torch.zeros(2)], "must return a number, found tensor"),
    ],
)
@pytest.mark.parametrize("calibration", [None, make_batches(16, 8)], ids=["weights", "data"])
def test_unsuitable_values_of_a_metric_are_refused(values: list[Any], message: str, calibration: Any) -> None:
    model = make_stack()
    with Unchanged(model), pytest.raises(ScoreError, match=re.escape(message)):
        secateur.sensitivity(model, calibration, metric=make_metric(values))


def test_weights_that_are_nan_are_refused() -> None:
    model = make_stack()
    with torch.no_grad():
        model[1][0].weight[0, 0] = math.nan
    for options in ({"calibration": make_batches(16, 8)}, {"metric": lambda _: 1.0}):
        with pytest.raises(ScoreError, match=r"layer '1\.0': weights must be numbers, found nan"):
            secateur.sensitivity(model, **options)


def test_tied_weights_are_measured_once() -> None:
    model = make_stack()
    model[1][0].weight = model[0][0].weight
    report = secateur.sensitivity(model, metric=lambda _: 1.0)
    assert [layer.name for layer in report.layers] == ["0.0", "0.2", "1.2", "2.0", "2.2"]


def test_same_scan_same_losses() -> None:
    first, second = (secateur.sensitivity(make_stack(), make_batches(16, 8), patterns=PATTERNS) for _ in range(2))
    assert list_points(first) == list_points(second)
    assert all(
        left.loss <= right.loss + 1e-6
        for layer in first.layers
        for left, right in itertools.pairwise(layer.points)
        if left.pattern == right.pattern
    )
