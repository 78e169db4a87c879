"""Tests of training loops for Intel Neural Compressor, which all reach the target exactly."""

import copy
import logging
import sys
from collections import deque
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from secateur.compat.neural_compressor import (
    CompressionManager,
    WeightPruningConfig,
    prepare_compression,
    prepare_pruning,
)
from secateur.errors import CalibrationError, ConfigError, ScoreError, StateError, UnsupportedModelError
from tiny_models import bits, mlp
from training.models import OPTIMIZERS, backward, hooks, revived

pytestmark = pytest.mark.usefixtures("registries_restored")

SETTINGS: dict[str, Any] = {"target_sparsity": 0.75, "start_step": 1, "end_step": 8, "pruning_frequency": 3}
MAGNITUDE = {**SETTINGS, "pruning_type": "magnitude"}
STEPS = 12


class Loop:
    """A model in training, with the callbacks of its compression manager."""

    def __init__(self, optimizer: str = "sgd", **settings: Any) -> None:
        self.model = mlp()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.manager: CompressionManager = prepare_compression(self.model, WeightPruningConfig(**settings))
        self.calls = self.manager.callbacks

    def revived(self) -> list[str]:
        return [name for run in self.manager.callbacks.callbacks_list[0].pruning.runs for name in revived(run)]

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward(self, step: int) -> None:
        if step:
            assert self.revived() == []
        backward(self.model, step)


def run_documented_loop(loop: Loop) -> None:
    loop.calls.on_train_begin()
    for step in range(STEPS):
        loop.calls.on_step_begin(step)
        loop.forward(step)
        loop.calls.on_before_optimizer_step()
        loop.step()
        loop.calls.on_after_optimizer_step()
        assert loop.revived() == []


def call_everything(loop: Loop) -> None:
    loop.calls.on_train_begin()
    for epoch in range(3):
        loop.calls.on_epoch_begin(epoch)
        for step in range(4):
            loop.calls.on_step_begin(step)
            loop.forward(4 * epoch + step)
            assert loop.calls.on_after_compute_loss(None, None, 1.5) == 1.5
            loop.calls.on_before_optimizer_step()
            loop.step()
            loop.calls.on_after_optimizer_step()
            loop.calls.on_step_end()
        loop.calls.on_epoch_end()
        loop.calls.on_before_eval()
        loop.calls.on_after_eval()


def skip_call_after_step(loop: Loop) -> None:
    loop.calls.on_train_begin()
    for step in range(STEPS):
        loop.calls.on_step_begin(step)
        loop.forward(step)
        loop.calls.on_before_optimizer_step()
        loop.step()
        loop.calls.on_step_end()
        assert loop.revived() == []


def skip_calls_after_step_and_at_end(loop: Loop) -> None:
    for step in range(STEPS):
        loop.calls.on_step_begin(step)
        loop.forward(step)
        loop.calls.on_before_optimizer_step()
        loop.step()


def call_around_step_only(loop: Loop) -> None:
    for step in range(STEPS):
        backward(loop.model, step)
        loop.calls.on_before_optimizer_step()
        loop.step()
        loop.calls.on_after_optimizer_step()
        assert loop.revived() == []


def call_before_step_only(loop: Loop) -> None:
    for step in range(STEPS):
        backward(loop.model, step)
        loop.calls.on_before_optimizer_step()
        loop.step()


def accumulate_gradients(loop: Loop) -> None:
    loop.calls.on_train_begin()
    for step in range(2 * STEPS):
        loop.calls.on_step_begin(step)
        loop.forward(step)
        if step % 2:
            loop.calls.on_before_optimizer_step()
            loop.step()
            loop.calls.on_after_optimizer_step()
        loop.calls.on_step_end()


LOOPS = [
    run_documented_loop,
    call_everything,
    skip_call_after_step,
    skip_calls_after_step_and_at_end,
    call_around_step_only,
    call_before_step_only,
    accumulate_gradients,
]


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, MAGNITUDE, {**SETTINGS, "pruning_type": "magnitude_progressive"}],
    ids=["snip", "magnitude", "progressive"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("run", LOOPS)
def test_every_loop_reaches_the_target(run: Callable[[Loop], None], optimizer: str, settings: dict[str, Any]) -> None:
    loop = Loop(optimizer, **settings)
    assert hooks(loop.optimizer) == 0
    run(loop)
    report = loop.calls.on_train_end()
    assert (report.sparsity, report.step, report.is_complete) == (0.75, STEPS, True)
    assert loop.manager.report == report
    weights = [loop.model[0].weight, loop.model[2].weight]
    assert sum(int((weight == 0).sum()) for weight in weights) == round(
        0.75 * sum(weight.numel() for weight in weights)
    )
    for weight in weights:
        blocks = weight.detach().reshape(-1, 4, weight.shape[1]) == 0
        assert torch.equal(blocks.any(dim=1), blocks.all(dim=1))


def test_calls_and_hooks_are_bit_identical() -> None:
    loop = Loop(**SETTINGS)
    run_documented_loop(loop)
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruning = prepare_pruning(model, WeightPruningConfig(**SETTINGS), optimizer)
    known = mlp()
    other = OPTIMIZERS["sgd"](known.parameters())
    manager = prepare_compression(known, WeightPruningConfig(**SETTINGS), optimizer=other)
    assert hooks(optimizer) == hooks(other) == 2
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        manager.callbacks.on_step_begin(step)
        backward(known, step)
        manager.callbacks.on_before_optimizer_step()
        other.step()
        manager.callbacks.on_after_optimizer_step()
        other.zero_grad()
    assert pruning.on_train_end().sparsity == manager.callbacks.on_train_end().sparsity == 0.75
    assert bits(model) == bits(known) == bits(loop.model)
    assert hooks(optimizer) == hooks(other) == 0


def test_one_of_four_removed() -> None:
    loop = Loop(**{**MAGNITUDE, "pattern": "1:4", "target_sparsity": 0.25})
    run_documented_loop(loop)
    assert loop.calls.on_train_end().sparsity == 0.25
    groups = (loop.model[0].weight.detach() == 0).reshape(-1, 4)
    assert bool((groups.sum(dim=1) == 1).all())


def test_each_element_reaches_its_target() -> None:
    settings = {**SETTINGS, "pruning_configs": [{"op_names": ["^0"], "target_sparsity": 0.5}, {"op_names": ["^2"]}]}
    loop = Loop(**settings)
    run_documented_loop(loop)
    assert [layer.sparsity for layer in loop.calls.on_train_end().layers] == [0.5, 0.75]


def test_pattern_lock_keeps_zeros() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[:16] = 0
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruning = prepare_pruning(model, WeightPruningConfig(pruning_type="pattern_lock"), optimizer=optimizer)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    assert pruning.on_train_end().layers[0].sparsity == 0.5
    assert not model[0].weight[:16].any()


def test_resume_from_a_pruned_checkpoint() -> None:
    first = Loop(**{**MAGNITUDE, "target_sparsity": 0.5})
    run_documented_loop(first)
    first.calls.on_train_end()
    before = first.model[0].weight.detach() == 0
    config = WeightPruningConfig(**MAGNITUDE, resume_from_pruned_checkpoint=True)
    manager = prepare_compression(first.model, config)
    manager.callbacks.on_train_begin()
    assert manager.pruner.sparsity == 0.5
    for step in range(STEPS):
        backward(first.model, step)
        manager.callbacks.on_before_optimizer_step()
        first.step()
        manager.callbacks.on_after_optimizer_step()
    assert manager.callbacks.on_train_end().sparsity == 0.75
    assert not first.model[0].weight[before].any()


def test_a_resumed_run_is_bit_identical() -> None:
    whole, half = Loop(**SETTINGS), Loop(**SETTINGS)
    run_documented_loop(whole)
    for loop, steps in ((half, range(5)),):
        train(loop, steps)
    rest = Loop(**SETTINGS)
    rest.model.load_state_dict(half.model.state_dict())
    rest.optimizer.load_state_dict(copy.deepcopy(half.optimizer.state_dict()))
    rest.calls.on_train_begin()
    rest.manager.pruner.load_state_dict(half.manager.pruner.state_dict())
    train(rest, range(5, STEPS))
    assert bits(rest.model) == bits(whole.model)


def train(loop: Loop, steps: range) -> None:
    for step in steps:
        backward(loop.model, step)
        loop.calls.on_before_optimizer_step()
        loop.step()
        loop.calls.on_after_optimizer_step()


def test_the_run_starts_from_the_weights_at_its_beginning() -> None:
    loop = Loop(**{**MAGNITUDE, "start_step": 0, "end_step": 0})
    loop.model.load_state_dict(mlp(seed=1).state_dict())
    loop.calls.on_train_begin()
    assert loop.manager.pruner.sparsity == 0.75
    assert loop.revived() == []


def test_group_lasso_with_and_without_the_optimizer() -> None:
    config = WeightPruningConfig(**SETTINGS, reg_type="group_lasso", parameters={"reg_coeff": 0.01})
    loop = Loop(**SETTINGS, reg_type="group_lasso", parameters={"reg_coeff": 0.01})
    run_documented_loop(loop)
    assert loop.calls.on_train_end().sparsity == 0.75
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruning = prepare_pruning(model, config, optimizer=optimizer)
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
    assert pruning.on_train_end().sparsity == 0.75
    assert bits(model) == bits(loop.model)
    assert bits(model) != bits(run_without_group_lasso())


def run_without_group_lasso() -> nn.Module:
    loop = Loop(**SETTINGS)
    run_documented_loop(loop)
    return loop.model


def test_a_step_that_a_scaler_skips_does_not_count() -> None:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    manager = prepare_compression(model, WeightPruningConfig(**SETTINGS), optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu")
    backward(model, 0, scaler.scale(torch.tensor(1.0)))
    model[0].weight.grad[0, 0] = torch.inf
    manager.callbacks.on_before_optimizer_step()
    scaler.step(optimizer)
    manager.callbacks.on_after_optimizer_step()
    assert manager.pruner.step == 0


def test_without_gradients_only_the_call_after_the_step_is_needed() -> None:
    loop = Loop(**MAGNITUDE)
    for step in range(STEPS):
        backward(loop.model, step)
        loop.step()
        loop.calls.on_after_optimizer_step()
    assert loop.calls.on_train_end().sparsity == 0.75


def test_a_gradient_criterion_needs_the_call_before_the_step() -> None:
    loop = Loop(**SETTINGS)
    with pytest.raises(StateError, match="on_after_optimizer_step was called without on_before_optimizer_step"):
        loop.calls.on_after_optimizer_step()


def test_callbacks_in_any_order() -> None:
    loop = Loop(**SETTINGS)
    loop.calls.on_step_begin(0)
    loop.calls.on_train_begin()
    loop.calls.on_train_begin([])
    train(loop, range(STEPS))
    report = loop.calls.on_train_end()
    assert report.sparsity == 0.75
    for _ in range(2):
        loop.calls.on_train_begin([])
        loop.calls.on_epoch_begin(0)
        loop.calls.on_step_begin(0)
        backward(loop.model, 0)
        loop.calls.on_before_optimizer_step()
        loop.optimizer.step()
        loop.calls.on_after_optimizer_step()
        loop.calls.on_step_end()
        loop.calls.on_epoch_end()
        loop.calls.on_before_eval()
        loop.calls.on_after_eval()
        assert loop.calls.on_train_end() is report
        assert sum(int((loop.model[index].weight == 0).sum()) for index in (0, 2)) == 768


def test_a_loop_without_calls_around_the_step_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(**SETTINGS)
    loop.calls.on_train_begin()
    for step in range(STEPS):
        loop.calls.on_step_begin(step)
        backward(loop.model, step)
        loop.step()
        loop.calls.on_step_end()
    loop.calls.on_train_end()
    assert "There were 12 batches without an optimizer step, so nothing was pruned as planned" in caplog.text


def test_a_run_that_ends_early_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(**SETTINGS)
    train(loop, range(5))
    with caplog.at_level(logging.WARNING):
        report = loop.calls.on_train_end()
    assert not report.is_complete
    assert "finalize() after step 5, but the schedule ends at step 7" in caplog.text


def test_matching_layers_that_cannot_be_pruned_log_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3))
    model[2].requires_grad_(requires_grad=False)
    with caplog.at_level(logging.WARNING):
        prepare_compression(model, WeightPruningConfig())
    assert "2 layers that the configuration matches cannot be pruned: '1' (6 output channels" in caplog.text
    assert "'2' (frozen" in caplog.text


def test_an_element_that_fits_no_layer_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with caplog.at_level(logging.WARNING):
        manager = prepare_compression(model, WeightPruningConfig(pattern="5x1"))
    assert "The configuration prunes nothing. " in caplog.text
    manager.callbacks.on_train_begin()
    assert manager.callbacks.callbacks_list[0].pruners[0].pattern is None
    with pytest.raises(StateError, match=r"This run has 0 pruners\. Call on_train_begin first"):
        manager.pruner  # noqa: B018


def test_either_order_of_model_and_configuration() -> None:
    model, config = mlp(), WeightPruningConfig(**SETTINGS)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    assert prepare_compression(model, [config]).model.model is model
    assert prepare_compression(config, model).model.model is model
    assert prepare_pruning(config, model, optimizer).pruners[0].run.model is model


def test_the_model_of_the_manager_behaves_like_the_model() -> None:
    loop = Loop(**SETTINGS)
    model = loop.manager.model
    inputs = torch.randn(2, 16)
    assert torch.equal(model(inputs), loop.model(inputs))
    assert list(model.state_dict()) == list(loop.model.state_dict())
    assert not model.eval().model.training
    assert model[0] is loop.model[0]
    assert len(model) == 5
    assert bool(model)
    loop.model.note = "kept"
    assert model.note == "kept"
    model.load_state_dict(mlp(seed=1).state_dict())
    assert bits(loop.model) == bits(mlp(seed=1))


def test_report_of_the_sparsity_of_a_model() -> None:
    loop = Loop(**SETTINGS)
    run_documented_loop(loop)
    table, share = loop.manager.model.report_sparsity()
    assert share == pytest.approx(100 * 768 / 1088)
    assert len(table) == 4


def test_the_report_is_a_data_frame_where_pandas_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = ModuleType("pandas")
    pandas.__spec__ = ModuleSpec("pandas", None)
    pandas.DataFrame = deque
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    table, _ = Loop(**SETTINGS).manager.model.report_sparsity()
    assert isinstance(table, deque)
    assert table[-1]["Name"] == "Total sparsity:"


def test_pruners_show_the_state_of_the_run() -> None:
    elements = [{"op_names": ["^0"], "pattern": "2:4", "target_sparsity": 0.5}, {"op_names": ["^2"]}]
    loop = Loop(**{**SETTINGS, "pruning_configs": elements})
    first, second = loop.manager.callbacks.callbacks_list[0].pruners
    assert (first.config["pattern"], second.config.pattern) == ("2:4", "4x1")
    assert list(first.modules) == ["0"]
    assert bool(first.masks["0"].all())
    assert (first.current_sparsity_ratio, first.global_step) == (0.0, 0)
    second.progressive_configs["use_global"] = False
    run_documented_loop(loop)
    assert (first.current_sparsity_ratio, first.global_step) == (0.5, STEPS)
    assert int((~second.masks["2"]).sum()) == 384
    assert (second.start_step, second.end_step, second.pruning_frequency) == (1, 8, 3)
    assert first.pattern.pattern == "2:4"
    assert loop.manager.conf.pruning.pruning_configs[0]["pattern"] == "2:4"
    assert set(loop.manager.callbacks.callbacks_list[0].hooks) >= {"on_step_begin", "on_after_compute_loss"}


def test_the_element_of_a_pruner_can_change_before_the_run() -> None:
    loop = Loop(**SETTINGS)
    loop.manager.callbacks.callbacks_list[0].pruners[0].config.target_sparsity = 0.5
    run_documented_loop(loop)
    assert loop.calls.on_train_end().sparsity == 0.5


def test_two_elements_prune_the_same_layers() -> None:
    elements = [{"pattern": "1xchannel", "op_names": ["^0"]}, {"pattern": "channelx1"}]
    loop = Loop(**{**MAGNITUDE, "target_sparsity": 0.5, "pruning_configs": elements})
    run_documented_loop(loop)
    report = loop.calls.on_train_end()
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert report.layers[0].pattern == "1xchannel and channelx1"
    weight = loop.model[0].weight.detach()
    assert int((weight == 0).all(1).sum()) == 16
    assert report.layers[0].pruned_weights == int((weight == 0).sum())


def test_a_progressive_run_prunes_in_four_parts_from_each_update_on() -> None:
    settings = {"target_sparsity": 0.7, "start_step": 1, "end_step": 13, "pruning_frequency": 4}
    loop = Loop(**settings, pruning_type="magnitude_progressive")
    found = []
    for step in range(15):
        loop.calls.on_step_begin(step)
        found.append(sum(int((loop.model[index].weight == 0).sum()) for index in (0, 2)))
        train(loop, range(step, step + 1))
    # The update after 5 steps is to prune 85 of 256 units of 4 weights, a third of the way to the target.
    assert found[:5] == [0] * 5
    assert [round(count / 85) for count in found[5:9]] == [1, 2, 3, 4]
    assert (found[8], found[14]) == (4 * 85, 4 * round(0.7 * 256))


def test_a_model_and_an_optimizer_in_a_run_can_be_saved(tmp_path: Path) -> None:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruning = prepare_pruning(model, WeightPruningConfig(**SETTINGS), optimizer)
    backward(model, 0)
    optimizer.step()
    torch.save(model, tmp_path / "model.pt")
    torch.save(optimizer, tmp_path / "optimizer.pt")
    assert bits(torch.load(tmp_path / "model.pt", weights_only=False)) == bits(model)
    assert pruning.pruners[0].global_step == 1


def test_export_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"Call torch\.onnx\.export\(manager\.model\.model"):
        Loop(**SETTINGS).manager.export("model.onnx", None)


def test_save(tmp_path: Path) -> None:
    loop = Loop(**SETTINGS)
    run_documented_loop(loop)
    loop.calls.on_train_end()
    loop.manager.save(tmp_path / "new" / "folder")
    state = torch.load(tmp_path / "new" / "folder" / "best_model.pt", weights_only=True)
    other = mlp(seed=1)
    other.load_state_dict(state)
    assert bits(other) == bits(loop.model)


@pytest.mark.parametrize("batches", ["tensors", "tuples", "mappings"])
def test_sparse_gpt_prunes_at_once(batches: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.body(inputs)
            return out

    torch.manual_seed(0)
    tensors = [torch.randn(32, 16) for _ in range(4)]
    kinds = {
        "tensors": tensors,
        "tuples": [(one, torch.zeros(32)) for one in tensors],
        "mappings": [{"inputs": one} for one in tensors],
    }
    model = Named()
    config = WeightPruningConfig(pruning_type="sparse_gpt", pattern="2:4")
    pruning = prepare_pruning(model, config, dataloader=kinds[batches], device="cpu")
    assert pruning.report is not None
    assert pruning.report.sparsity == 0.5
    assert int((model.body[0].weight == 0).sum()) == 16 * 32 // 2
    assert pruning.on_train_end() is pruning.report
    assert pruning.pruners[0].current_sparsity_ratio == 0.5
    assert torch.equal(pruning.pruners[0].masks["body.0"], model.body[0].weight != 0)
    pruning.on_after_optimizer_step()  # callbacks of a training loop have no effect


def test_sparse_gpt_prunes_each_layer_to_the_same_sparsity() -> None:
    torch.manual_seed(0)
    config = WeightPruningConfig(pruning_type="sparse_gpt", pattern="1x1", target_sparsity=0.5)
    pruning = prepare_pruning(mlp(), config, dataloader=[torch.randn(32, 16) for _ in range(4)])
    assert pruning.report is not None
    assert [layer.sparsity for layer in pruning.report.layers] == [0.5, 0.5]


def test_training_and_one_shot_elements_together() -> None:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    elements = [{"op_names": ["^0"], "pruning_type": "sparse_gpt", "pattern": "2:4"}, {"op_names": ["^2"]}]
    config = WeightPruningConfig(elements, **{**SETTINGS, "target_sparsity": 0.5})
    pruning = prepare_pruning(model, config, optimizer, dataloader=[torch.randn(32, 16)])
    assert len(pruning) == 2
    assert int((model[0].weight == 0).sum()) == 256


def test_invalid_arguments_of_prepare() -> None:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    once, training = WeightPruningConfig(pruning_type="sparse_gpt"), WeightPruningConfig()
    refused: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: prepare_compression(model, once), ConfigError, r"Call prepare_pruning\(model, config, dataloader"),
        (lambda: prepare_pruning(model, once), ConfigError, "dataloader must be given for pruning_type='sparse_gpt'"),
        (lambda: prepare_pruning(model, once, dataloader=[]), CalibrationError, "at least one batch"),
        (lambda: prepare_pruning(model, training), ConfigError, "optimizer must be given"),
        (lambda: prepare_pruning(model, optimizer), ConfigError, "config must be a WeightPruningConfig, found SGD"),
        (lambda: prepare_compression(model, [3]), ConfigError, "a list of configurations, found int"),
        (lambda: prepare_compression(model, []), ConfigError, "at least one configuration"),
        (
            lambda: prepare_compression(model, {"pattern": "4x1"}),
            ConfigError,
            "or a list of configurations, found dict",
        ),
        (lambda: prepare_compression(3, training), UnsupportedModelError, "or a keras.Model, found int"),
        (lambda: prepare_pruning(model, training, 3), UnsupportedModelError, "optimizer must be a torch.optim"),
        (lambda: prepare_compression(model, WeightPruningConfig(pattern="4x2x1")), ConfigError, "Unknown pattern"),
    ]
    before = bits(model)
    for call, kind, message in refused:
        with pytest.raises(kind, match=message):
            call()
    assert bits(model) == before
    assert hooks(optimizer) == 0


def test_hooks_can_be_removed() -> None:
    calls = Loop(**SETTINGS).calls.callbacks_list[0]
    found: list[int] = []
    for _ in range(2):
        calls.register_hook("on_epoch_begin", found.append)
    calls.on_epoch_begin(1)
    for _ in range(2):
        calls.remove_hook("on_epoch_begin", found.append)
    calls.on_epoch_begin(2)
    assert found == [1]


def test_nan_gradients_are_detected_before_the_step() -> None:
    loop = Loop(**SETTINGS)
    backward(loop.model, 0)
    loop.model[2].weight.grad[3, 3] = torch.nan
    with pytest.raises(ScoreError, match="layer '2': scores must be numbers, found nan"):
        loop.calls.on_before_optimizer_step()
