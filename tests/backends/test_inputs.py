"""Bad input gets a clear error, and the model is as it was."""

from typing import Any

import keras
import numpy as np
import pytest

import secateur
import secateur.keras
from backends.kit import CONFIG, LOSS, bits, compiled, data, feed, fit, kernels, pruning, revived
from secateur.errors import ConfigError, LayerError, ScoreError, StateError, UnknownNameError, UnsupportedModelError
from secateur.keras import PruningCallback, PruningOptimizer, finalize
from tiny_keras_models import net


def subclassed() -> keras.Model:
    class Plain(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="plain")
            self.fc = keras.layers.Dense(8)

        def call(self, inputs: Any) -> Any:
            return self.fc(inputs)

    return Plain()


def broken() -> keras.Model:
    model = net()
    model.get_layer("fc").kernel.assign(np.full((72, 16), np.nan))
    return model


def normalizing() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization(), keras.layers.ReLU()])


def sgd() -> Any:
    return keras.optimizers.SGD(0.1)


@pytest.mark.parametrize(
    ("make", "config", "inner", "kind", "message"),
    [
        (
            subclassed,
            {},
            sgd,
            UnsupportedModelError,
            r"'plain' must be built, .* Call model\.build\(input_shape\)",
        ),
        (lambda: keras.Sequential([keras.layers.Dense(4)], name="m"), {}, sgd, UnsupportedModelError, "must be built"),
        (normalizing, {}, sgd, LayerError, "No layer of the model can be pruned"),
        (broken, {}, sgd, ScoreError, "layer 'fc': weights must be numbers, found nan"),
        (net, {"op_names": ["cnv"]}, sgd, UnknownNameError, "'cnv' matches no layer. Did you mean 'conv'"),
        (net, {"op_names": ["flatten"]}, sgd, UnknownNameError, "'flatten' matches no layer"),
        (net, {"pruning_op_types": ["Conv3D"]}, sgd, UnknownNameError, "no layer has type 'Conv3D'"),
        (net, {"pattern": "4y1"}, sgd, UnknownNameError, "Unknown pattern '4y1'. Did you mean '4x1'"),
        (net, {"patern": "4x1"}, sgd, ConfigError, "Unknown key 'patern'. Did you mean 'pattern'"),
        (net, {"pattern": "5x1"}, sgd, LayerError, "No layer of the model can be pruned with pattern '5x1'"),
        (
            net,
            {"pattern": "5x1", "op_names": ["fc"]},
            sgd,
            LayerError,
            "'fc' was named but cannot be pruned: 16",
        ),
        (
            net,
            {"start_step": 0, "sparsity_decay_type": "one_shot"},
            sgd,
            ConfigError,
            "start_step must be at least 1 for the criterion 'snip_momentum'",
        ),
        (net, {"start_step": 9, "end_step": 1}, sgd, ConfigError, "start_step must not be greater than end_step"),
        (net, {"max_sparsity_ratio_per_op": 0.5}, sgd, ConfigError, "out of reach over all layers"),
        (net, {}, lambda: "sgd", UnsupportedModelError, r"must be a keras\.optimizers\.Optimizer, found str"),
        (net, {}, lambda: PruningOptimizer(net(), CONFIG, sgd()), StateError, "already wrapped in a PruningOptimizer"),
        (
            net,
            {},
            lambda: keras.optimizers.LossScaleOptimizer(PruningOptimizer(net(), CONFIG, sgd())),
            StateError,
            "already wrapped in a PruningOptimizer. Pass the inner one",
        ),
        (
            net,
            {},
            lambda: keras.optimizers.LossScaleOptimizer(sgd()),
            UnsupportedModelError,
            r"LossScaleOptimizer\(PruningOptimizer\(model, config, inner\)\)",
        ),
        (lambda: keras.layers.Dense(4), {}, sgd, UnsupportedModelError, r"model must be a keras\.Model, found Dense"),
    ],
)
def test_nothing_is_changed(make: Any, config: dict[str, Any], inner: Any, kind: type, message: str) -> None:
    model = make()
    before = bits(model, optimizer=False) if model.built else []
    with pytest.raises(kind, match=message):
        PruningOptimizer(model, CONFIG | config, inner())
    assert (bits(model, optimizer=False) if model.built else []) == before
    assert issubclass(kind, secateur.SecateurError)


def test_a_frozen_layer_has_that_reason() -> None:
    model = net()
    model.get_layer("fc").trainable = False
    plan = secateur.plan(model, CONFIG)
    assert plan.dense["fc"] == "frozen (trainable=False)"
    fit(compiled(model=model), 1)
    assert list(pruning(model).masks) == ["conv"]


def test_prepare_is_the_same() -> None:
    model = net()
    optimizer = secateur.prepare(model, CONFIG, optimizer=sgd())
    assert isinstance(optimizer, PruningOptimizer)
    model.compile(optimizer, "mse")
    assert pruning(model) is optimizer


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_prepare_takes_the_optimizer_of_a_compiled_model(policy: str) -> None:
    model = net(dtype=policy)
    inner = sgd()
    model.compile(keras.optimizers.LossScaleOptimizer(inner) if policy == "mixed_float16" else inner, LOSS)
    outer = model.optimizer
    optimizer = secateur.prepare(model, CONFIG)
    assert pruning(model) is optimizer
    assert optimizer.inner_optimizer is inner
    fit(model, 2)
    assert finalize(model).is_complete
    assert model.optimizer is outer


def test_prepare_without_an_optimizer_needs_a_compiled_model() -> None:
    model = net()
    with pytest.raises(
        StateError, match=r"The model 'net' is not compiled, .* or pass the optimizer: secateur\.prepare"
    ):
        secateur.prepare(model, CONFIG)
    model.compile(sgd(), LOSS)
    secateur.prepare(model, CONFIG)
    with pytest.raises(StateError, match="already wrapped in a PruningOptimizer"):
        secateur.prepare(model, CONFIG)


def test_old_names_and_orders_are_deprecated() -> None:
    with pytest.deprecated_call(match=r"UpdateMasks is deprecated\. Use secateur\.keras\.PruningCallback"):
        assert secateur.keras.UpdateMasks is PruningCallback
    with pytest.deprecated_call(match=r"Use PruningOptimizer\(model, config, optimizer\)"):
        assert PruningOptimizer(sgd(), CONFIG, net()).sparsity == 0.0
    with pytest.deprecated_call(match=r"Use PruningOptimizer\(optimizer=\.\.\.\)"):
        assert PruningOptimizer(inner_optimizer=sgd(), config=CONFIG, model=net()).sparsity == 0.0


def test_what_raises_in_a_compiled_step_is_what_is_seen() -> None:
    model = compiled()
    model.get_layer("fc").trainable = False
    with pytest.raises((ScoreError, ValueError)) as raised:
        fit(model, 1)
    assert "NoneType" not in str(raised.value)


def test_haste_and_zeros_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = net()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    PruningOptimizer(model, {"pattern": "4x1", "target_sparsity": 0.75}, sgd())
    assert "end_step is not set, so all of 4x1 is pruned at once at step 1" in caplog.text
    assert "50.0 % of the weights to be pruned are already zero" in caplog.text


def test_verbs_out_of_order() -> None:
    model = compiled()
    fit(model, 2)
    finalize(model)
    with pytest.raises(StateError, match="model 'net' is not compiled with a PruningOptimizer"):
        finalize(model)
    optimizer = PruningOptimizer(net(), {**CONFIG, "criterion": "magnitude"}, sgd())
    optimizer.finalize()
    assert not optimizer.is_active
    assert not optimizer.update_masks()
    with pytest.raises(StateError, match=r"already been finalized or closed\. Create another one"):
        optimizer.finalize()


def test_the_wrapper_of_a_finalized_optimizer_comes_off() -> None:
    model = compiled()
    fit(model, 2)
    report = pruning(model).finalize()
    assert finalize(model) == report
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    assert not isinstance(model.optimizer, PruningOptimizer)


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = net(), keras.models.clone_model(net())
    other.compile(PruningOptimizer(model, CONFIG, sgd()), LOSS)
    for verb in (lambda: fit(other, 1), lambda: finalize(other)):
        with pytest.raises(StateError, match=r"made for another model: the kernels of 'conv', 'fc' are not in"):
            verb()


def test_weights_that_were_put_back_can_be_pruned_again() -> None:
    model = compiled()
    early = keras.callbacks.EarlyStopping(monitor="sparsity", mode="min", patience=1, restore_best_weights=True)
    fit(model, 10, early)
    with pytest.raises(StateError, match=r"pruned weights are not zero\. .* apply_masks sets them to zero"):
        finalize(model)
    pruning(model).apply_masks()
    assert revived(model) == []
    finalize(model)


def test_a_call_without_pruned_kernels_is_no_step() -> None:
    model = net()
    optimizer = PruningOptimizer(model, {**CONFIG, "reg_type": "group_lasso", "reg_coeff": 0.05}, sgd())
    before = kernels(model)
    optimizer.apply([keras.ops.ones((4,))], [model.get_layer("out").bias])
    assert optimizer.step == 0
    assert all((before[name] == kernel).all() for name, kernel in kernels(model).items())


def test_a_forgotten_callback_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    compiled().fit(**feed(), epochs=2, verbose=0)
    assert "Masks were to change after step 2, and 12 steps have been made without it" in caplog.text


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="only JAX takes values away")
def test_an_optimizer_out_of_reach_says_how_to_reach_it() -> None:
    model = compiled()
    optimizer = pruning(model)

    class Direct(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            optimizer.update_masks()

    with pytest.raises(StateError, match=r"Access the optimizer as self\.model\.optimizer"):
        model.fit(*data(), batch_size=8, verbose=0, callbacks=[Direct()])


def test_finalize_too_early_says_how_far_it_came(caplog: pytest.LogCaptureFixture) -> None:
    model = compiled()
    fit(model, 1)
    report = finalize(model)
    assert not report.is_complete
    assert "finalize() after step 6, but the schedule ends at step 9" in caplog.text


def test_finalize_finds_a_weight_that_came_back() -> None:
    model = compiled()
    fit(model, 2)
    kernel = model.get_layer("fc").kernel
    kernel.assign(kernel + 1)
    before = bits(model)
    with pytest.raises(StateError, match=r"masks or weights of 1 layers .*\n  fc: \d+ pruned weights are not zero"):
        finalize(model)
    assert bits(model) == before
    assert pruning(model).is_active


def test_prune_without_training() -> None:
    model = net()
    report = secateur.prune(model, {"pattern": "2:4", "end_step": 100})
    assert [(layer.name, layer.sparsity) for layer in report.layers] == [("conv", 0.5), ("fc", 0.5)]
    assert report.is_complete
    model.compile("sgd", "mse")
    assert model.predict(data()[0], verbose=0).shape == (48, 4)
