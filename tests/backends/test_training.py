"""What each kind of run does under fit, train_on_batch and a loop of one's own."""

import inspect
import sys
from functools import partial
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest

import secateur
from backends.kit import (
    BATCH,
    BATCHES,
    CONFIG,
    LOSS,
    OPTIMIZERS,
    Watch,
    bits,
    compiled,
    data,
    feed,
    fit,
    host,
    kernels,
    pruned_units,
    pruning,
    revived,
)
from secateur.keras import PruningCallback, PruningOptimizer, finalize
from tiny_keras_models import net

BACKEND = keras.backend.backend()

# Settings that do not depend on each other share a run, because each run compiles a step of its own.
EVERY: dict[str, dict[str, Any]] = {
    "magnitude, linear": {"criterion": "magnitude", "sparsity_decay_type": "linear"},
    "snip, cosine, 1x4": {"criterion": "snip", "sparsity_decay_type": "cosine", "pattern": "1x4"},
    "gradient, exponential, 2x2, sum": {
        "criterion": "gradient",
        "sparsity_decay_type": "exponential",
        "pattern": "2x2",
        "criterion_reduce_type": "sum",
    },
    "movement, cube, 1xchannel, max": {
        "criterion": "movement",
        "sparsity_decay_type": "cube",
        "pattern": "1xchannel",
        "criterion_reduce_type": "max",
    },
    "taylor, channelx1, l2": {"criterion": "taylor", "pattern": "channelx1", "criterion_reduce_type": "l2"},
    "mask_gradient, 1xchannel": {"criterion": "mask_gradient", "pattern": "1xchannel"},
    "mask_fisher, channelx1": {"criterion": "mask_fisher", "pattern": "channelx1"},
    "random, 1x1, local": {"criterion": "random", "seed": 3, "pattern": "1x1", "pruning_scope": "local"},
    "bfloat16 scores, 4xchannel": {"score_dtype": "bfloat16", "pattern": "4xchannel"},
    "2:4": {"pattern": "2:4", "target_sparsity": 0.5},
    "2:4 in part": {"pattern": "2:4", "target_sparsity": 0.25},
    "bounds": {"max_sparsity_ratio_per_op": 0.76},
    "progressive": {"kind": "progressive", "progressive_steps": 2},
    "progressive 2:4": {"kind": "progressive", "pattern": "2:4", "target_sparsity": 0.5},
    "group lasso": {"reg_type": "group_lasso", "reg_coeff": 0.1},
    "rules": {"layers": {"conv": {"pattern": "2:4", "target_sparsity": 0.5, "criterion": "magnitude"}}},
}


@pytest.mark.parametrize("name", EVERY)
def test_every_setting_ends_at_its_target(name: str) -> None:
    model, watch = compiled(CONFIG | EVERY[name]), Watch()
    fit(model, 2, watch)
    pattern_targets = {layer.pattern: layer for layer in pruning(model).report().layers}
    report = finalize(model)
    assert report.is_complete
    assert (report.step, report.last_step) == (12, 9)
    assert watch.units == sorted(watch.units)
    if name != "rules":
        units = sum(layer.units for layer in report.layers)
        target = (CONFIG | EVERY[name])["target_sparsity"]
        assert sum(layer.pruned_units for layer in report.layers) == round(target * units)
    else:
        assert set(pattern_targets) == {"2:4", "4x1"}
        assert [layer.sparsity for layer in report.layers] == [0.5, 0.75]


def units_after_each_batch(**config: Any) -> list[int]:
    model, watch = compiled(CONFIG | config), Watch()
    fit(model, 2, watch)
    return watch.units


def test_masks_change_when_the_schedule_says() -> None:
    units = (8 * 4 * 4 + 16 * 72) // 4
    cubic = [round(0.75 * (1 - (1 - (step - 2) / 7) ** 3) * units) for step in (2, 5, 8)]
    expected = [0, *[cubic[0]] * 3, *[cubic[1]] * 3, cubic[2], *[round(0.75 * units)] * 4]
    assert units_after_each_batch() == expected


def test_one_shot_prunes_in_one_step() -> None:
    counts = units_after_each_batch(start_step=3, end_step=None, sparsity_decay_type="one_shot")
    assert counts == [0, 0, *[240] * 10]


def test_what_is_due_at_step_0_is_pruned_before_training() -> None:
    model = compiled(
        {**CONFIG, "criterion": "magnitude", "start_step": 0, "end_step": None, "sparsity_decay_type": "one_shot"}
    )
    assert pruned_units(model) == 240
    assert revived(model) == []


def test_progressive_run_fades_weight_by_weight() -> None:
    config = {**CONFIG, "kind": "progressive", "pattern": "8x1", "start_step": 1, "end_step": 9, "pruning_frequency": 4}
    model = compiled({**config, "progressive_steps": 4, "target_sparsity": 0.5})
    shares = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            shares.append(pruning(self.model).sparsity)

    fit(model, 2, Watch(), Note())
    assert all(later > earlier for earlier, later in pairwise(shares[:9]))
    assert shares[8:] == [0.5] * 4
    assert finalize(model).unit_sparsity == 0.5


def test_pattern_lock_keeps_the_zeros_that_are_there() -> None:
    model = net()
    secateur.prune(model, {"pattern": "2:4"})
    zeros = {name: kernel == 0 for name, kernel in kernels(model).items()}
    fit(compiled({"kind": "pattern_lock"}, model=model), 1, Watch())
    assert all((zeros[name] == (kernel == 0)).all() for name, kernel in kernels(model).items())
    assert [layer.sparsity for layer in finalize(model).layers] == [0.5, 0.5, 0.0]


def test_keep_zeros_starts_where_the_model_is() -> None:
    model = net()
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    watch = Watch()
    fit(compiled({**CONFIG, "keep_zeros": True}, model=model), 2, watch)
    assert watch.units[0] == 160
    assert watch.units[-1] == 240


def test_group_lasso_shrinks_whole_units_until_the_end() -> None:
    def norms(coefficient: float) -> Any:
        config = {**CONFIG, "reg_type": "group_lasso", "reg_coeff": coefficient, "start_step": 11, "end_step": 12}
        model = compiled({**config, "pattern": "1xchannel"}, inner=keras.optimizers.SGD(0.1))
        fit(model, 1)
        return np.linalg.norm(kernels(model)["fc"], axis=0)

    assert (norms(0.05) < 0.9 * norms(0.0)).all()
    assert norms(100.0).max() == 0


def test_group_lasso_is_the_proximal_step() -> None:
    config = {"pattern": "1xchannel", "reg_type": "group_lasso", "reg_coeff": 0.5, "end_step": 9, "op_names": ["fc"]}
    model = net()
    optimizer = PruningOptimizer(model, {**config, "start_step": 8}, keras.optimizers.SGD(0.1))
    before = kernels(model)["fc"]
    optimizer.apply([keras.ops.zeros(variable.shape) for variable in model.trainable_variables])
    norm = np.linalg.norm(before, axis=0)
    expected = before * np.maximum(0, 1 - 0.1 * 0.5 * np.sqrt(len(before)) / norm)
    np.testing.assert_allclose(kernels(model)["fc"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_revives_a_weight(name: str) -> None:
    model = compiled(inner=OPTIMIZERS[name]())
    fit(model, 2, Watch())
    assert finalize(model).unit_sparsity == 0.75
    assert isinstance(model.optimizer, type(OPTIMIZERS[name]()))


def test_the_optimizer_inside_makes_the_steps_that_it_would_make_alone() -> None:
    alone, pruned = net(), net()
    alone.compile(keras.optimizers.AdamW(0.01), LOSS)
    alone.fit(**feed(), epochs=1, verbose=0)
    fit(compiled({**CONFIG, "start_step": 50, "end_step": 60}, model=pruned, inner=keras.optimizers.AdamW(0.01)), 1)
    for left, right in zip(alone.weights, pruned.weights, strict=True):
        np.testing.assert_allclose(host(left), host(right), rtol=1e-5, atol=1e-6)


def test_train_on_batch_is_fit() -> None:
    fitted, batched = compiled(), compiled()
    fit(fitted, 2)
    inputs, labels = data()
    for step in range(2 * BATCHES):
        part = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        batched.train_on_batch(inputs[part], labels[part])
        pruning(batched).update_masks()
    assert bits(fitted) == bits(batched)


def test_sparsity_is_in_the_history() -> None:
    history = fit(compiled(), 2).history["sparsity"]
    assert history[-1] == 0.75
    assert 0 < history[0] < 0.75


def test_own_loop() -> None:
    callers = set()

    class Inner(keras.optimizers.SGD):
        def apply(self, *arguments: Any) -> None:
            callers.add(sys._getframe(1).f_code)
            super().apply(*arguments)

    model = net()
    optimizer = PruningOptimizer(model, CONFIG, Inner(0.1))
    LOOPS[BACKEND](model, optimizer)
    assert callers == {inspect.unwrap(PruningOptimizer.apply).__code__}, "AutoGraph has not rewritten it"
    assert optimizer.step == 2 * BATCHES
    assert optimizer.finalize().unit_sparsity == 0.75
    assert all((kernel[~optimizer.masks[name]] == 0).all() for name, kernel in kernels(model).items())


def batches() -> Any:
    inputs, labels = data()
    for step in range(2 * BATCHES):
        part = slice(step % BATCHES * BATCH, (step % BATCHES + 1) * BATCH)
        yield inputs[part], labels[part]


def tensorflow_loop(model: Any, optimizer: PruningOptimizer) -> None:
    import tensorflow as tf

    traces = []

    @tf.function
    def step(inputs: Any, labels: Any) -> None:
        traces.append(1)
        with tf.GradientTape() as tape:
            loss = LOSS(labels, model(inputs, training=True))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)

    for inputs, labels in batches():
        step(tf.constant(inputs), tf.constant(labels))
        optimizer.update_masks()
    assert len(traces) == 1


def jax_loop(model: Any, optimizer: PruningOptimizer) -> None:
    import jax

    traces = []

    def loss_of(trainable: Any, fixed: Any, inputs: Any, labels: Any) -> Any:
        outputs, fixed = model.stateless_call(trainable, fixed, inputs)
        return LOSS(labels, outputs), fixed

    @jax.jit
    def step(trainable: Any, fixed: Any, state: Any, inputs: Any, labels: Any) -> Any:
        traces.append(1)
        grads, fixed = jax.grad(loss_of, has_aux=True)(trainable, fixed, inputs, labels)
        trainable, state = optimizer.stateless_apply(state, grads, trainable)
        return trainable, fixed, state

    trainable = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]
    state = [variable.value for variable in optimizer.variables]
    for inputs, labels in batches():
        trainable, fixed, state = step(trainable, fixed, state, inputs, labels)
        trainable, state = optimizer.stateless_update_masks(state, trainable)
    for variables, values in ((model.trainable_variables, trainable), (optimizer.variables, state)):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
    assert len(traces) == 1


def torch_loop(model: Any, optimizer: PruningOptimizer) -> None:
    import torch

    for inputs, labels in batches():
        model.zero_grad()
        LOSS(torch.as_tensor(labels), model(torch.as_tensor(inputs))).backward()
        variables = model.trainable_variables
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)
        optimizer.update_masks()


LOOPS = {"tensorflow": tensorflow_loop, "jax": jax_loop, "torch": torch_loop}


@pytest.mark.skipif(BACKEND == "torch", reason="torch runs eagerly")
def test_nothing_is_compiled_again_when_masks_change() -> None:
    traces = []

    class Counting(keras.Model):
        def train_step(self, *arguments: Any) -> Any:
            traces.append(1)
            return super().train_step(*arguments)

    keras.utils.set_random_seed(0)
    entrance = keras.Input((4, 4, 4))
    model = Counting(entrance, net()(entrance))
    fit(compiled({**CONFIG, "pruning_frequency": 1}, model=model), 3)
    fit(model, 1)
    assert len(traces) == 1


@pytest.mark.skipif(BACKEND != "torch", reason="torch.compile")
@pytest.mark.filterwarnings("ignore")  # torch's own
def test_torch_compiles_the_first_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    # Generating code takes longer than tracing, and does not change how often a step is traced.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    # Few variables and a simple optimizer, because tracing a step takes a second for each.
    layers = [keras.layers.Dense(16, use_bias=False, name=name) for name in "ab"]
    small = keras.Sequential([keras.Input((4, 4, 4)), keras.layers.Flatten(), *layers])
    inner = keras.optimizers.SGD(0.1)
    config = {**CONFIG, "pruning_frequency": 1, "end_step": 15}
    model = compiled(config, model=small, inner=inner, jit_compile=True)
    fit(model, 1)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    fit(model, 2, Watch())
    # One more: what is done once scores are not gathered any more.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 1
    assert finalize(model).unit_sparsity == 0.75


@pytest.mark.skipif(BACKEND == "torch", reason="not on torch")
def test_steps_per_execution_updates_at_the_end_of_an_execution() -> None:
    model, watch = compiled(steps_per_execution=3), Watch()
    fit(model, 2, watch)
    assert watch.units[0] == 0 or len(watch.units) == 4
    assert finalize(model).unit_sparsity == 0.75


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"run_eagerly": True}])
def test_other_ways_to_compile(options: dict[str, Any]) -> None:
    if BACKEND == "torch" and "jit_compile" in options:
        pytest.skip("see test_torch_compiles_the_first_steps_only")
    model = compiled(**options)
    fit(model, 2, Watch())
    assert finalize(model).unit_sparsity == 0.75


def test_forgotten_callback_is_found() -> None:
    model = compiled()
    model.fit(**feed(), epochs=2, verbose=0)
    before = bits(model)
    with pytest.raises(
        secateur.SecateurError, match=r"Masks were to change after step 2, and 12 steps .*PruningCallback"
    ):
        finalize(model)
    assert bits(model) == before
    assert pruning(model).update_masks()
    assert finalize(model).unit_sparsity == 0.75


def test_fit_goes_on_after_finalize_without_pruning() -> None:
    model = compiled()
    fit(model, 2)
    finalize(model)
    model.fit(**feed(), verbose=0)
    assert all((kernel != 0).mean() > 0.9 for kernel in kernels(model).values())


def test_a_second_run_follows_the_first() -> None:
    model = compiled({**CONFIG, "target_sparsity": 0.5})
    fit(model, 2)
    assert finalize(model).unit_sparsity == 0.5
    compiled({**CONFIG, "keep_zeros": True}, model=model, inner=model.optimizer)
    fit(model, 2, Watch())
    assert finalize(model).unit_sparsity == 0.75


def test_an_adversarial_pair() -> None:
    """Two models, each with its own optimizer, trained in turn by one custom step."""
    maker, judge = net(), net(1)
    pair = [
        PruningOptimizer(model, CONFIG | {"criterion": "magnitude"}, keras.optimizers.SGD(0.1))
        for model in (maker, judge)
    ]
    for optimizer, model in zip(pair, (maker, judge), strict=True):
        for _ in range(10):
            variables = model.trainable_variables
            optimizer.apply([keras.ops.ones(variable.shape) * 0.01 for variable in variables], variables)
            optimizer.update_masks()
    assert [optimizer.finalize().unit_sparsity for optimizer in pair] == [0.75, 0.75]


def test_a_callback_may_name_its_optimizer() -> None:
    model = net()
    optimizer = PruningOptimizer(model, CONFIG, keras.optimizers.AdamW(0.01))
    model.compile(optimizer, LOSS)
    model.fit(**feed(), epochs=2, verbose=0, callbacks=[PruningCallback(optimizer)])
    assert finalize(model).unit_sparsity == 0.75


def test_sub_models_and_attention() -> None:
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5, 8))
    attended = keras.layers.MultiHeadAttention(2, 4, name="attention")(tokens, tokens)
    inner_entrance = keras.Input((5, 8))
    block = keras.Model(inner_entrance, keras.layers.Dense(8, name="wide")(inner_entrance), name="block")
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(tokens + block(attended)))
    model = keras.Model(tokens, keras.layers.Dense(4, name="out")(pooled))
    model.compile(PruningOptimizer(model, CONFIG, keras.optimizers.Adam(0.01)), LOSS)
    inputs = np.random.default_rng(0).standard_normal((48, 5, 8), dtype=np.float32)
    model.fit(inputs, data()[1], batch_size=BATCH, epochs=2, verbose=0, callbacks=[PruningCallback()])
    report = finalize(model)
    assert [layer.name for layer in report.layers] == [
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/attention_output",
        "block/wide",
    ]
    assert report.unit_sparsity == 0.75
