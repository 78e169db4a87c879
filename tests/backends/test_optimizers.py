"""What stands around and inside the pruning optimizer: accumulation, averages, loss scales, several optimizers."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from backends.kit import CONFIG, LOSS, Watch, bits, compiled, data, feed, fit, host, kernels, pruning
from secateur.errors import ScoreError, StateError, UnsupportedModelError
from secateur.keras import PruningCallback, PruningOptimizer, finalize
from tiny_keras_models import net


def accumulating(steps: int = 2, **options: Any) -> Any:
    return keras.optimizers.AdamW(0.01, gradient_accumulation_steps=steps, **options)


def test_accumulated_batches_make_one_step() -> None:
    model, watch = compiled(inner=accumulating()), Watch()
    fit(model, 4, watch)
    assert pruning(model).step == 12
    assert watch.units[8] == 0 < watch.units[9] == watch.units[14] < watch.units[15]
    assert finalize(model).unit_sparsity == 0.75


def test_scores_see_the_mean_of_accumulated_gradients() -> None:
    config = {**CONFIG, "criterion": "gradient", "start_step": 1, "end_step": 2, "pruning_frequency": 1}
    whole, parts = net(), net()
    one = PruningOptimizer(whole, config, keras.optimizers.SGD(0.1))
    two = PruningOptimizer(parts, config, keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    generator = np.random.default_rng(0)
    for _ in range(2):
        grads = [
            [generator.integers(-64, 64, variable.shape) / 64 for variable in whole.trainable_variables]
            for _ in range(2)
        ]
        for given in grads:
            two.apply([keras.ops.convert_to_tensor(grad, "float32") for grad in given])
            two.update_masks()
        mean = [(left + right) / 2 for left, right in zip(*grads, strict=True)]
        one.apply([keras.ops.convert_to_tensor(grad, "float32") for grad in mean])
        one.update_masks()
    assert (one.step, two.step) == (2, 2)
    assert all((one.masks[name] == two.masks[name]).all() for name in one.masks)


@pytest.mark.parametrize("frequency", [None, 3])
def test_averaged_weights_are_sparse_too(frequency: int | None) -> None:
    inner = keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=frequency)
    model = compiled(inner=inner)
    fit(model, 2, Watch())
    masks = pruning(model).masks
    averages = dict(zip((variable.path for variable in model.trainable_variables), inner_averages(inner), strict=True))
    for name, mask in masks.items():
        average = host(averages[model.get_layer(name).kernel.path])
        assert not average[~mask].any()
        np.testing.assert_array_equal(kernels(model)[name], average)
    assert finalize(model).unit_sparsity == 0.75


def inner_averages(optimizer: Any) -> Any:
    return optimizer._model_variables_moving_average


def test_evaluating_with_averaged_weights() -> None:
    model = compiled(inner=keras.optimizers.AdamW(0.01, use_ema=True))
    fit(model, 2, keras.callbacks.SwapEMAWeights(), Watch(), validation_data=data(1))
    assert finalize(model).unit_sparsity == 0.75


def test_mixed_precision_scales_the_loss_around_it() -> None:
    model = compiled(model=net(dtype="mixed_float16"), inner=keras.optimizers.AdamW(0.01))
    if not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        # The model's own policy decides, and that of a model whose layers alone are mixed is float32.
        pruned = model.optimizer
        model.compile(keras.optimizers.LossScaleOptimizer(pruned, initial_scale=2.0**24), LOSS)
    fit(model, 4, Watch())
    optimizer = pruning(model)
    assert model.optimizer.inner_optimizer is optimizer
    assert 9 <= optimizer.step < 24, "the first steps overflow and do not count"
    assert finalize(model).unit_sparsity == 0.75
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, keras.optimizers.AdamW)


def test_global_mixed_precision_policy() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled()
        fit(model, 3, Watch())
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert finalize(model).unit_sparsity == 0.75


def test_resumed_under_mixed_precision(tmp_path: Path) -> None:
    model = net(dtype="mixed_bfloat16")
    compiled(model=model)
    model.compile(keras.optimizers.LossScaleOptimizer(pruning(model)), LOSS)
    fit(model, 1)
    model.save(tmp_path / "m.keras")
    other = keras.saving.load_model(tmp_path / "m.keras")
    assert bits(other) == bits(model)
    for resumed in (model, other):
        fit(resumed, 1)
    assert bits(other) == bits(model)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_kernels_of_other_types(dtype: str) -> None:
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless told so before it starts")
    model = compiled(model=net(dtype=dtype), inner=keras.optimizers.SGD(0.01))
    fit(model, 2, Watch())
    assert finalize(model).unit_sparsity == 0.75
    assert model.get_layer("fc").kernel.dtype == dtype


def test_a_static_loss_scale_does_not_change_the_scores() -> None:
    def masks(**options: Any) -> Any:
        model = compiled({**CONFIG, "end_step": 3}, inner=keras.optimizers.SGD(0.125, **options))
        fit(model, 1)
        return pruning(model).masks

    plain, scaled = masks(), masks(loss_scale_factor=64.0)
    assert all((plain[name] == scaled[name]).all() for name in plain)


def several(**options: Any) -> Any:
    first = keras.optimizers.SGD(0.1, momentum=0.9)
    second = keras.optimizers.AdamW(0.01, **options)
    return keras.optimizers.MultiOptimizer(lambda variable: first if "conv" in variable.path else second)


def test_several_optimizers_inside() -> None:
    config = {**CONFIG, "reg_type": "group_lasso", "reg_coeff": 0.01}
    model = compiled(config, inner=several())
    fit(model, 2, Watch())
    assert finalize(model).unit_sparsity == 0.75
    assert isinstance(model.optimizer, keras.optimizers.MultiOptimizer)


def test_several_optimizers_that_accumulate_differently_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"same number of batches, found \[1, 2\]"):
        compiled(inner=several(gradient_accumulation_steps=2))


def test_learning_rate_is_that_of_the_optimizer_inside() -> None:
    model = compiled(inner=keras.optimizers.SGD(0.1))
    fit(model, 2, keras.callbacks.LearningRateScheduler(lambda epoch, _: 0.5 / (epoch + 1)))
    assert float(pruning(model).learning_rate) == float(pruning(model).inner_optimizer.learning_rate) == 0.25


def test_excluding_from_weight_decay_reaches_the_optimizer_inside() -> None:
    inner = keras.optimizers.AdamW(0.01)
    optimizer = PruningOptimizer(net(), CONFIG, inner)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert inner._exclude_from_weight_decay_pattern.pattern == "bias"


def test_an_optimizer_that_trained_before_goes_on() -> None:
    model, inner = net(), keras.optimizers.AdamW(0.01)
    model.compile(inner, LOSS)
    model.fit(**feed(), verbose=0)
    made = int(inner.iterations)
    fit(compiled(model=model, inner=inner), 2, Watch())
    assert pruning(model).step == 12
    assert int(inner.iterations) == made + 12
    assert finalize(model).unit_sparsity == 0.75


def test_frozen_masks_stay() -> None:
    model = compiled({**CONFIG, "target_sparsity": 0.5})
    fit(model, 1, steps_per_epoch=4)
    optimizer = pruning(model)
    optimizer.patterns[0].keep_mask_layers["conv"] = "good as it is"
    before = optimizer.masks["conv"]
    fit(model, 2, Watch())
    assert (optimizer.masks["conv"] == before).all()
    assert finalize(model).unit_sparsity == 0.5


def test_frozen_masks_are_saved(tmp_path: Path) -> None:
    model = compiled({**CONFIG, "target_sparsity": 0.5})
    fit(model, 1)
    pruning(model).patterns[0].keep_mask_layers["conv"] = "good as it is"
    before = pruning(model).masks["conv"]
    model.save(tmp_path / "m.keras")
    del pruning(model).patterns[0].keep_mask_layers["conv"]
    model.save_weights(tmp_path / "free.weights.h5")
    other = keras.saving.load_model(tmp_path / "m.keras")
    assert list(pruning(other).patterns[0].keep_mask_layers) == ["conv"]
    fit(other, 2)
    assert (pruning(other).masks["conv"] == before).all()
    other.load_weights(tmp_path / "free.weights.h5")
    assert pruning(other).patterns[0].keep_mask_layers == {}


def test_a_layer_without_a_gradient_is_an_error_before_anything_changes() -> None:
    model = net()
    optimizer = PruningOptimizer(model, CONFIG, keras.optimizers.SGD(0.1))
    before = bits(model, optimizer=False)
    variables = [variable for variable in model.trainable_variables if "fc" not in variable.path]
    grads = [keras.ops.ones(variable.shape) for variable in variables]
    with pytest.raises(
        ScoreError, match=r"layer 'fc': 'snip_momentum' ranks by gradients, and none reaches this layer"
    ):
        optimizer.apply(grads, variables)
    assert bits(model, optimizer=False) == before


def test_nan_is_found_at_the_update_and_masks_stay() -> None:
    model = compiled({**CONFIG, "criterion": "magnitude"})
    optimizer = pruning(model)
    model.get_layer("fc").kernel.assign(np.full((72, 16), np.nan))
    with pytest.raises(ScoreError, match=r"layer '\w+': scores must be numbers, found nan"):
        fit(model, 1)
    assert all(mask.all() for mask in optimizer.masks.values())


def test_without_a_pruning_optimizer_the_callback_says_so() -> None:
    model = net()
    model.compile("adam", LOSS)
    with pytest.raises(StateError, match=r"model 'net' is not compiled with a PruningOptimizer\. Compile it with"):
        model.fit(*data(), verbose=0, callbacks=[PruningCallback()])
