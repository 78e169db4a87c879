"""What is saved, what is loaded, and that a resumed run ends with the same bits."""

import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import keras
import numpy as np
import pytest

import secateur
from backends.kit import (
    BATCH,
    CONFIG,
    LOSS,
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
from secateur.errors import ConfigError, LayerError, StateError
from secateur.keras import PruningCallback, PruningOptimizer, finalize
from tiny_keras_models import net

# Settings that do not depend on each other share a run, because each run compiles several steps.
RUNS: dict[str, dict[str, Any]] = {
    "iterative": {},
    "from step 0": {"criterion": "magnitude", "start_step": 0},
    "per weight, bfloat16": {"criterion_reduce_type": "max", "score_dtype": "bfloat16"},
    "movement, bounds": {"criterion": "movement", "max_sparsity_ratio_per_op": 0.76},
    "gradient": {"criterion": "gradient", "pattern": "1x1"},
    "progressive": {"kind": "progressive", "progressive_steps": 3},
    "2:4 in part": {"pattern": "2:4", "target_sparsity": 0.25},
    "lock": {"kind": "pattern_lock"},
    "magnitude, keep zeros": {"criterion": "magnitude", "keep_zeros": True},
    "lasso": {"reg_type": "group_lasso", "reg_coeff": 0.05},
    "sr_ste": {"kind": "sr_ste", "criterion": "magnitude", "pattern": "2:4", "target_sparsity": None},
    "rigl and set": {
        "kind": "rigl",
        "criterion": "magnitude",
        "layers": {"conv": {"pattern": "2:4", "target_sparsity": 0.5, "kind": "set"}},
    },
    "rules": {"layers": {"conv": {"pattern": "2:4", "target_sparsity": 0.5, "kind": "progressive"}}},
}


def start(config: dict[str, Any], seed: int = 0) -> Any:
    model = net(seed)
    secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.25})
    return compiled(CONFIG | config, model=model)


def epoch(model: Any, first: int, last: int) -> Any:
    """Batches `first` to `last` of the data."""
    model.fit(**feed(first, last), verbose=0, callbacks=[PruningCallback(), Watch()])
    return model


@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    model = epoch(start(RUNS[name]), 0, 4)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    whole = keras.saving.load_model(tmp_path / "m.keras")
    by_weights = start(RUNS[name], seed=1)
    by_weights.load_weights(tmp_path / "m.weights.h5")
    assert bits(whole) == bits(by_weights) == bits(model)
    # Either way calls the same method of the optimizer, so a few runs go on from weights too.
    resumed = [whole, by_weights] if name in {"iterative", "progressive", "rules"} else [whole]
    for either in (model, *resumed):
        epoch(epoch(either, 4, 6), 0, 5)
    assert all(bits(other) == bits(model) for other in resumed)
    report = finalize(model)
    assert all(finalize(other) == report for other in resumed)


def test_sameness_can_fail(tmp_path: Path) -> None:
    model = epoch(start({}), 0, 4)
    model.save(tmp_path / "m.keras")
    other = keras.saving.load_model(tmp_path / "m.keras", compile=False)
    compiled(model=other)
    assert bits(other) != bits(model)
    assert bits(other, optimizer=False) == bits(model, optimizer=False)
    epoch(epoch(other, 4, 6), 0, 5)
    epoch(epoch(model, 4, 6), 0, 5)
    assert bits(other, optimizer=False) != bits(model, optimizer=False)


@pytest.mark.parametrize("first", [True, False])
def test_backup_and_restore(tmp_path: Path, *, first: bool) -> None:
    class KilledError(Exception):
        """Somebody pulled the plug."""

    class Plug(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            if epoch == 1:
                raise KilledError

    def run(model: Any, *more: Any) -> Any:
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        callbacks = [backup, PruningCallback()] if first else [PruningCallback(), backup]
        model.fit(**feed(), epochs=2, verbose=0, callbacks=[*callbacks, *more])
        return model

    whole = start({})
    fit(whole, 2)
    with pytest.raises(KilledError):
        run(start({}), Plug())
    resumed = run(start({}, seed=1))
    assert bits(resumed) == bits(whole)
    assert pruning(resumed).step == 12


def test_checkpoint_of_the_best_model_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "{epoch}.keras"
    fit(compiled(), 2, keras.callbacks.ModelCheckpoint(path))
    early = keras.saving.load_model(tmp_path / "1.keras")
    assert 0 < pruned_units(early) < 240
    assert revived(early) == []
    fit(early, 1, Watch())
    assert finalize(early).unit_sparsity == 0.75


@pytest.mark.parametrize("name", ["iterative", "progressive", "rules"])
def test_state_tree_carries_the_run(name: str) -> None:
    def named(seed: int) -> Any:
        inner = keras.optimizers.AdamW(0.01, name="adamw")
        return compiled(CONFIG | RUNS[name], model=net(seed), inner=inner)

    model, other = epoch(named(0), 0, 4), named(1)
    other.set_state_tree(model.get_state_tree(value_format="numpy_array"))
    assert pruning(other).step == pruning(model).step == 4
    for resumed in (model, other):
        epoch(resumed, 4, 6)
    assert bits(other, optimizer=False) == bits(model, optimizer=False)


def test_finalized_model_is_plain_and_loads_without_secateur(tmp_path: Path) -> None:
    model = compiled(inner=keras.optimizers.AdamW(0.01))
    fit(model, 2)
    finalize(model)
    model.save(tmp_path / "plain.keras")
    with ZipFile(tmp_path / "plain.keras") as archive:
        assert "secateur" not in archive.read("config.json").decode()
    if keras.backend.backend() != "jax":
        return  # the file is the same, and another process needs seconds to import Keras
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "secateur.py").write_text("raise ImportError('secateur is not here')\n", "utf-8")
    code = (
        "import keras, numpy as np, sys\n"
        f"model = keras.saving.load_model({str(tmp_path / 'plain.keras')!r})\n"
        "kernel = model.get_layer('fc').get_weights()[0]\n"
        "assert 'secateur' not in sys.modules\n"
        "print(type(model.optimizer).__name__, int((kernel == 0).sum()))\n"
        "model.fit(np.ones((8, 4, 4, 4)), np.zeros(8), verbose=0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "block"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["AdamW", str(int((kernels(model)["fc"] == 0).sum()))]


def test_inference_of_the_finalized_model_is_that_of_the_pruned_one(tmp_path: Path) -> None:
    model = compiled()
    fit(model, 2)
    before = model.predict(data()[0], verbose=0)
    finalize(model)
    model.save(tmp_path / "plain.keras")
    after = keras.saving.load_model(tmp_path / "plain.keras").predict(data()[0], verbose=0)
    np.testing.assert_array_equal(before, after)


def test_loading_weights_of_a_dense_run_starts_pruning_anew(tmp_path: Path) -> None:
    dense = net()
    dense.compile("adamw", "mse")
    dense.optimizer.build(dense.trainable_variables)
    dense.save_weights(tmp_path / "dense.weights.h5")
    model = compiled(model=net(1))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")  # Keras's, of the optimizer inside
        with pytest.warns(UserWarning, match="holds no state of a pruning run"):
            model.load_weights(tmp_path / "dense.weights.h5")
    assert bits(model, optimizer=False) == bits(dense, optimizer=False)
    fit(model, 2, Watch())
    assert finalize(model).unit_sparsity == 0.75


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: compiled(CONFIG | {"target_sparsity": 0.5}),
            "configuration: target_sparsity was 0.5, is 0.75",
        ),
        (lambda: compiled(CONFIG | {"excluded_op_names": ["fc"]}), "another model. Layers that differ .*: 'fc'"),
        (lambda: compiled(CONFIG | {"layers": {"fc": {"pattern": "2:4", "target_sparsity": 0.5}}}), "2 patterns"),
    ],
)
def test_state_of_another_run_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    make().save_weights(tmp_path / "other.weights.h5")
    model = epoch(compiled(), 0, 4)
    before = [keras.ops.convert_to_numpy(variable.value).tobytes() for variable in pruning(model)._variables]
    with pytest.raises(ValueError, match=message):  # Keras's, with ours in it
        model.load_weights(tmp_path / "other.weights.h5")
    after = [keras.ops.convert_to_numpy(variable.value).tobytes() for variable in pruning(model)._variables]
    assert after == before


def test_state_of_another_format_is_refused() -> None:
    optimizer, state = pruning(compiled()), dict[str, Any]()
    optimizer.save_own_variables(state)
    header = json.loads(bytes(state["secateur"])) | {"format_version": 99}
    state["secateur"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with pytest.raises(StateError, match="of format 99, this version reads format 1"):
        optimizer.load_own_variables(state)


def test_description_of_another_model_is_refused() -> None:
    config = pruning(compiled()).get_config()
    other = PruningOptimizer.from_config(config)
    small = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    with pytest.raises(StateError, match=r"another model: its layer 'conv' has a kernel"):
        other.build(small.trainable_variables)
    assert not other.built
    other.build(net().trainable_variables)
    assert other.built


def alike(*, named: bool = True) -> keras.Model:
    """Three kernels of one shape, in a subclassed model."""

    @keras.saving.register_keras_serializable("tests", name=f"Alike{named}")
    class Alike(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.parts = [keras.layers.Dense(16, name=name if named else None) for name in "abc"]

        def call(self, inputs: Any) -> Any:
            for part in self.parts:
                inputs = part(inputs)
            return inputs

        def build(self, shape: Any) -> None:
            for part in self.parts:
                part.build(shape)

        def get_config(self) -> dict[str, Any]:
            return {}

    keras.utils.set_random_seed(0)
    model = Alike()
    model.build((None, 16))
    return model


INPUTS = np.random.default_rng(0).standard_normal((48, 16), dtype=np.float32)


def test_a_layer_frozen_in_the_middle_does_not_swap_kernels(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Dense(16, name=name) for name in "abc"]
    model = keras.Sequential([keras.Input((16,)), *parts, keras.layers.Dense(4, name="out")])
    compiled({**CONFIG, "criterion": "magnitude", "op_names": ["b"]}, model=model)
    model.fit(INPUTS, data()[1], batch_size=BATCH, verbose=0, callbacks=[PruningCallback()])
    model.get_layer("a").trainable = False
    model.save(tmp_path / "m.keras")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")  # Keras's, of the one inside
        other = keras.saving.load_model(tmp_path / "m.keras")
    assert list(pruning(other).masks) == ["b"]
    other.fit(INPUTS, data()[1], batch_size=BATCH, verbose=0, callbacks=[PruningCallback()])
    zeros = [float((kernel == 0).mean()) for kernel in kernels(other, "abc").values()]
    assert zeros == [0.0, 0.75, 0.0]
    assert finalize(other).unit_sparsity == 0.75


@pytest.mark.parametrize("named", [True, False])
def test_layers_that_are_not_frozen_any_more(tmp_path: Path, *, named: bool) -> None:
    model = alike(named=named)
    model.parts[0].trainable = False
    names = [part.name for part in model.parts]
    model.compile(PruningOptimizer(model, CONFIG | {"op_names": [names[1]]}, keras.optimizers.SGD(0.1)), "mse")
    model.fit(INPUTS, INPUTS, batch_size=BATCH, verbose=0, callbacks=[PruningCallback()])
    model.save(tmp_path / "m.keras")
    if not named:
        with pytest.raises(StateError, match=r"saved with another model: its layer 'dense.*' has a kernel"):
            keras.saving.load_model(tmp_path / "m.keras")
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        other = keras.saving.load_model(tmp_path / "m.keras")
    assert [float((host(part.kernel) == 0).mean()) > 0.3 for part in other.parts] == [False, True, False]
    assert (pruning(other).masks["b"] == (host(other.parts[1].kernel) != 0)).all()


def test_a_model_that_names_its_layers_anew_is_told_by_order(tmp_path: Path) -> None:
    model = alike(named=False)
    model.compile(PruningOptimizer(model, CONFIG | {"criterion": "magnitude"}, keras.optimizers.SGD(0.1)), "mse")
    model.fit(INPUTS, INPUTS, batch_size=BATCH, epochs=2, verbose=0, callbacks=[PruningCallback()])
    model.save(tmp_path / "m.keras")
    other = keras.saving.load_model(tmp_path / "m.keras")
    assert [part.name for part in other.parts] != [part.name for part in model.parts]
    assert [host(part.kernel).tobytes() for part in other.parts] == [
        host(part.kernel).tobytes() for part in model.parts
    ]
    other.fit(INPUTS, INPUTS, batch_size=BATCH, verbose=0, callbacks=[PruningCallback()])
    assert finalize(other).unit_sparsity == 0.75


def test_a_run_whose_state_did_not_come_along_is_refused(tmp_path: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled()
    finally:
        keras.config.set_dtype_policy("float32")
    fit(model, 1)
    model.save(tmp_path / "m.keras")
    # Keras does not put the loss-scale optimizer back under another policy, and then finds none of its state.
    warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
    with pytest.raises(ValueError, match="dtype policy that it was saved with"):
        keras.saving.load_model(tmp_path / "m.keras")


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "pattern_lock"},
        {"criterion": "magnitude", "start_step": 0, "end_step": None, "sparsity_decay_type": "one_shot"},
        {"keep_zeros": True},
    ],
)
def test_weights_that_are_loaded_before_training_are_those_that_count(config: dict[str, Any], tmp_path: Path) -> None:
    trained = net(3)
    secateur.prune(trained, {"pattern": "4x1", "target_sparsity": 0.5})
    trained.save_weights(tmp_path / "trained.weights.h5")
    model = compiled(CONFIG | config)
    warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
    with pytest.warns(UserWarning, match="starts with the weights in the file"):
        model.load_weights(tmp_path / "trained.weights.h5")
    expected = PruningOptimizer(trained, CONFIG | config, keras.optimizers.SGD(0.1))
    assert all((pruning(model).masks[name] == mask).all() for name, mask in expected.masks.items())
    fit(model, 1, Watch())


def test_weights_without_a_state_are_refused_when_the_run_is_under_way(tmp_path: Path) -> None:
    net(3).save_weights(tmp_path / "dense.weights.h5")
    model = epoch(compiled(), 0, 4)
    with pytest.raises(ValueError, match="holds no state of a pruning run, and this run is under way"):
        model.load_weights(tmp_path / "dense.weights.h5")


def test_a_loaded_run_does_not_look_at_weights_that_are_thrown_away(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    parts = [keras.layers.Dense(16, kernel_initializer="identity", name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((16,)), *parts, keras.layers.Dense(4, name="out")])
    for part in parts:
        part.kernel.assign(np.random.default_rng(1).standard_normal((16, 16)))
    compiled(CONFIG | {"keep_zeros": True, "criterion": "magnitude"}, model=model)
    model.fit(INPUTS, data()[1], batch_size=BATCH, verbose=0, callbacks=[PruningCallback()])
    model.save(tmp_path / "m.keras")
    assert bits(keras.saving.load_model(tmp_path / "m.keras")) == bits(model)


def test_a_state_that_is_put_back_puts_back_what_keeps_its_mask() -> None:
    model = compiled({**CONFIG, "target_sparsity": 0.55, "max_sparsity_ratio_per_op": 0.56})
    fit(model, 1)
    tree = copy.deepcopy(model.get_state_tree(value_format="numpy_array"))
    fit(model, 1)
    ended = bits(model, optimizer=False)
    assert pruning(model).patterns[0].keep_mask_layers != {}
    model.set_state_tree(tree)
    fit(model, 1)
    assert bits(model, optimizer=False) == ended


def test_a_state_that_is_loaded_within_fit_is_followed(tmp_path: Path) -> None:
    class Rewind(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            if epoch == 0:
                self.model.save_weights(tmp_path / "m.weights.h5")
            if epoch == 2:
                self.model.load_weights(tmp_path / "m.weights.h5")

    model = compiled()
    fit(model, 5, Rewind())
    assert pruning(model).step == 18
    assert finalize(model).unit_sparsity == 0.75


def test_damaged_description_is_refused() -> None:
    config = pruning(compiled()).get_config()
    within = copy.deepcopy(config) | {"inner_optimizer": keras.saving.serialize_keras_object(pruning(compiled()))}
    config["pruning"]["patterns"][0]["kernels"]["conv"]["index"] = "first"
    with pytest.raises(StateError, match="saved description of a pruning run is damaged"):
        PruningOptimizer.from_config(config)
    with pytest.raises(StateError, match="its inner optimizer does not fit: The optimizer is already wrapped"):
        PruningOptimizer.from_config(within)
    with pytest.raises(StateError, match="the optimizer's configuration must be a mapping, found list"):
        PruningOptimizer.from_config([])
    twice = pruning(compiled(model=alike())).get_config()
    (first, second, *_) = twice["pruning"]["patterns"][0]["kernels"].values()
    second["index"] = first["index"]
    with pytest.raises(StateError, match="are one variable"):
        PruningOptimizer.from_config(twice)


def test_a_state_that_cannot_be_read_is_refused() -> None:
    class Unreadable(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            if key == "0":
                raise OSError("no such block")
            return super().__getitem__(key)

    optimizer, state = pruning(compiled()), Unreadable()
    optimizer.save_own_variables(state)
    with pytest.raises(StateError, match="cannot be read: 'no such block'"):
        optimizer.load_own_variables(state)


def test_a_run_that_has_ended_only_steps() -> None:
    optimizer = pruning(compiled())
    optimizer.close()
    config = optimizer.get_config()
    model = net()
    ended = PruningOptimizer.from_config(config)
    ended.close()  # there is nothing to end before it is built
    ended.build(model.trainable_variables)
    before = bits(model, optimizer=False)
    gradients = [keras.ops.ones_like(variable.value) for variable in model.trainable_variables]
    ended.apply(gradients, model.trainable_variables)
    assert int(ended.iterations) == int(ended.inner_optimizer.iterations) == 1
    assert ended.step == 0
    assert bits(model, optimizer=False) != before


def test_masks_are_only_applied_to_models_of_the_same_sizes() -> None:
    model = compiled()
    fit(model, 1)
    wider = keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            keras.layers.Conv2D(8, 2, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, name="fc"),
        ],
        name="wider",
    )
    before = bits(wider, optimizer=False)
    with pytest.raises(LayerError, match=r"layer 'fc' has shape \(72, 32\), but its mask has \(72, 16\)"):
        pruning(model).apply_masks(wider)
    assert bits(wider, optimizer=False) == before


def test_before_it_is_built_a_loaded_optimizer_says_so() -> None:
    optimizer = PruningOptimizer.from_config(pruning(compiled()).get_config())
    with pytest.raises(StateError, match=r"no variables yet\. Call build"):
        optimizer.report()


def test_copies_go_on_by_themselves() -> None:
    model = epoch(compiled(), 0, 4)
    copied = copy.deepcopy(model)
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    cloned.compile(keras.optimizers.deserialize(keras.optimizers.serialize(model.optimizer)), LOSS)
    assert bits(copied) == bits(model)
    fit(copied, 1, Watch())
    watch = Watch()
    fit(cloned, 2, watch)
    assert watch.units[0] == 0
    assert finalize(copied).unit_sparsity == finalize(cloned).unit_sparsity == 0.75
    assert pruning(model).step == 4


def test_own_schedule_trains_and_cannot_be_written(tmp_path: Path) -> None:
    def quick(initial: float, target: float, progress: float) -> float:
        return initial + (target - initial) * progress**0.5

    model = compiled(CONFIG | {"sparsity_decay_type": quick})
    fit(model, 1)
    with pytest.raises(ConfigError, match="sparsity_decay_type is a function, and a file can only contain a name"):
        model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    other = compiled(CONFIG | {"sparsity_decay_type": quick}, model=net(1))
    other.load_weights(tmp_path / "m.weights.h5")
    assert bits(other) == bits(model)


@pytest.mark.usefixtures("registries_restored")
def test_own_pattern_and_criterion_survive_a_file(tmp_path: Path) -> None:
    from secateur.criteria import BaseCriterion
    from secateur.patterns import BasePattern, BlockTiling

    @secateur.register_pattern("pairs")
    class Pairs(BasePattern):
        def tile(self, view: Any) -> BlockTiling:
            return BlockTiling(view.canonical_shape, (2, 1, 1))

    @secateur.register_criterion("fisher")
    class Fisher(BaseCriterion):
        needs_gradient = True
        decay = 0.95

        def score(self, weight: Any, gradient: Any) -> Any:
            return (weight * gradient) ** 2

    model = epoch(compiled(CONFIG | {"pattern": "pairs", "criterion": "fisher"}), 0, 4)
    model.save(tmp_path / "m.keras")
    other = keras.saving.load_model(tmp_path / "m.keras")
    for resumed in (model, other):
        epoch(epoch(resumed, 4, 6), 0, 5)
    assert bits(other) == bits(model)
    assert finalize(other).unit_sparsity == 0.75


def test_a_state_of_a_version_without_a_default_maximum_continues_without_one() -> None:
    config = {"pattern": "1xchannel", "criterion": "magnitude"}
    trained = epoch(start(config | {"max_sparsity_ratio_per_op": 1.0}), 0, 3)
    model = start(config)
    assert [pattern.max_sparsity_ratio_per_op for pattern in model.optimizer.patterns] == [0.98]
    broken = trained.optimizer.state_dict() | {"1": np.zeros(7)}
    with pytest.raises(StateError):
        model.optimizer.load_state_dict(broken)
    assert [pattern.max_sparsity_ratio_per_op for pattern in model.optimizer.patterns] == [0.98]
    model.optimizer.load_state_dict(trained.optimizer.state_dict())
    assert [pattern.max_sparsity_ratio_per_op for pattern in model.optimizer.patterns] == [1.0]
