"""Tests of training loops for Intel Neural Compressor, which all reach the target exactly."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
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

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward(self, step: int) -> None:
        if step and self.manager.pruner.step:
            assert revived(self.manager.pruner) == []
        backward(self.model, step)


def run_documented_loop(loop: Loop) -> None:
    loop.calls.on_train_begin()
    for step in range(STEPS):
        loop.calls.on_step_begin(step)
        loop.forward(step)
        loop.calls.on_before_optimizer_step()
        loop.step()
        loop.calls.on_after_optimizer_step()
        assert revived(loop.manager.pruner) == []


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
        assert revived(loop.manager.pruner) == []


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
        assert revived(loop.manager.pruner) == []


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
    assert revived(loop.manager.pruner) == []


def test_group_lasso_needs_the_optimizer() -> None:
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    config = WeightPruningConfig(**SETTINGS, reg_type="group_lasso", parameters={"reg_coeff": 0.01})
    with pytest.raises(ConfigError, match="optimizer must be given with reg_type='group_lasso'"):
        prepare_compression(model, config)
    assert hooks(optimizer) == 0
    pruning = prepare_pruning(model, config, optimizer=optimizer)
    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
    assert pruning.on_train_end().sparsity == 0.75


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


def test_calls_in_the_wrong_order() -> None:
    loop = Loop(**SETTINGS)
    with pytest.raises(StateError, match=r"The run has no pruner yet\. Call on_train_begin first"):
        loop.calls.on_train_end()
    loop.calls.on_train_begin()
    with pytest.raises(StateError, match="on_train_begin must be called once, before all other callbacks"):
        loop.calls.on_train_begin()
    with pytest.raises(StateError, match="on_after_optimizer_step was called without on_before_optimizer_step"):
        loop.calls.on_after_optimizer_step()
    train(loop, range(STEPS))
    loop.calls.on_train_end()
    after = (
        loop.calls.on_train_begin,
        loop.calls.on_step_begin,
        loop.calls.on_before_optimizer_step,
        loop.calls.on_after_optimizer_step,
        loop.calls.on_step_end,
        loop.calls.on_epoch_begin,
        loop.calls.on_epoch_end,
        loop.calls.on_train_end,
    )
    for call in after:
        with pytest.raises(StateError, match=r"This run has ended\. Prepare the model for a new run"):
            call()
    loop.calls.on_before_eval()
    loop.calls.on_after_eval()


def test_on_train_begin_too_late() -> None:
    loop = Loop(**SETTINGS)
    loop.calls.on_step_begin(0)
    with pytest.raises(StateError, match="on_train_begin must be called once, before all other callbacks"):
        loop.calls.on_train_begin()


def test_a_loop_without_calls_around_the_step_is_an_error() -> None:
    loop = Loop(**SETTINGS)
    loop.calls.on_train_begin()
    for step in range(STEPS):
        loop.calls.on_step_begin(step)
        backward(loop.model, step)
        loop.step()
        loop.calls.on_step_end()
    with pytest.raises(
        StateError, match="There were 12 batches without an optimizer step, so nothing was pruned as planned"
    ):
        loop.calls.on_train_end()


def test_a_run_that_ends_early_logs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(**SETTINGS)
    train(loop, range(5))
    with caplog.at_level(logging.WARNING):
        report = loop.calls.on_train_end()
    assert not report.is_complete
    assert "finalize() after step 5, but the schedule ends at step 8" in caplog.text


def test_matching_layers_that_cannot_be_pruned_log_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3))
    model[2].requires_grad_(requires_grad=False)
    with caplog.at_level(logging.WARNING):
        prepare_compression(model, WeightPruningConfig())
    assert "2 layers that the configuration matches cannot be pruned: '1' (6 output channels" in caplog.text
    assert "'2' (frozen" in caplog.text


def test_either_order_of_model_and_configuration() -> None:
    model, config = mlp(), WeightPruningConfig(**SETTINGS)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    assert prepare_compression(model, [config]).model is model
    assert prepare_compression(config, model).model is model
    assert prepare_pruning(config, model, optimizer).pruner.model is model


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
    with pytest.raises(StateError, match="This run has ended"):
        pruning.on_train_end()


def test_sparse_gpt_prunes_each_layer_to_the_same_sparsity() -> None:
    torch.manual_seed(0)
    config = WeightPruningConfig(pruning_type="sparse_gpt", pattern="1x1", target_sparsity=0.5)
    pruning = prepare_pruning(mlp(), config, dataloader=[torch.randn(32, 16) for _ in range(4)])
    assert pruning.report is not None
    assert [layer.sparsity for layer in pruning.report.layers] == [0.5, 0.5]


def test_invalid_arguments_of_prepare() -> None:
    import keras

    keras_model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model = mlp()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    once, training = WeightPruningConfig(pruning_type="sparse_gpt"), WeightPruningConfig()
    mixed = WeightPruningConfig([{"op_names": ["0"], "pruning_type": "sparse_gpt"}, {"op_names": ["2"]}])
    refused: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: prepare_compression(model, once), ConfigError, r"Call prepare_pruning\(model, config, dataloader"),
        (lambda: prepare_pruning(model, once), ConfigError, "dataloader must be given for pruning_type='sparse_gpt'"),
        (lambda: prepare_pruning(model, once, dataloader=[]), CalibrationError, "at least one batch"),
        (lambda: prepare_pruning(model, training), ConfigError, "optimizer must be given"),
        (lambda: prepare_pruning(model, mixed, optimizer), ConfigError, "pruning_type must not mix 'sparse_gpt'"),
        (lambda: prepare_pruning(model, training, optimizer, framework="keras"), ConfigError, "framework must be"),
        (lambda: prepare_compression(model, [training, training]), ConfigError, "one WeightPruningConfig, found 2"),
        (lambda: prepare_compression(model, [3]), ConfigError, "found 1 configuration, including int"),
        (lambda: prepare_compression(model, {"pattern": "4x1"}), ConfigError, "a WeightPruningConfig, found dict"),
        (lambda: prepare_compression(keras_model, training), UnsupportedModelError, "The model must be a torch module"),
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


def test_nan_gradients_are_detected_before_the_step() -> None:
    loop = Loop(**SETTINGS)
    backward(loop.model, 0)
    loop.model[2].weight.grad[3, 3] = torch.nan
    with pytest.raises(ScoreError, match="layer '2': scores must be numbers, found nan"):
        loop.calls.on_before_optimizer_step()
