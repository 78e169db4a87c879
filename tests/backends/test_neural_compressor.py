"""The interface of Intel Neural Compressor for Keras models, on every backend."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import secateur
import secateur.keras
from secateur.compat.neural_compressor import WeightPruningConfig, prepare_compression, prepare_pruning
from secateur.compat.neural_compressor.compression.pruner.patterns.base import (
    PATTERNS,
    KerasBasePattern,
    register_pattern,
)
from secateur.compat.neural_compressor.compression.pruner.pruners.base import register_pruner
from secateur.compat.neural_compressor.compression.pruner.pruners.basic import KerasBasicPruner
from secateur.compat.neural_compressor.compression.pruner.schedulers import PruningScheduler, register_scheduler
from secateur.compat.neural_compressor.compression.pruner.tf_criteria import (
    PruningCriterion,
    register_criterion,
)
from secateur.errors import ArtifactError, ConfigError
from tiny_keras_models import net

pytestmark = pytest.mark.usefixtures("registries_restored")

SETTINGS: dict[str, Any] = {
    "pruning_type": "magnitude",
    "pattern": "4x1",
    "target_sparsity": 0.5,
    "start_step": 1,
    "end_step": 8,
    "pruning_frequency": 2,
    "pruning_op_types": ["Conv", "Dense"],
    "backend": "itex",
}
STEPS = 12


def zeros(model: keras.Model, *names: str) -> int:
    return sum(int((np.asarray(model.get_layer(name).get_weights()[0]) == 0).sum()) for name in names)


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(4 * STEPS, 4, 4, 4)).astype("float32"), generator.integers(4, size=4 * STEPS)


def compiled() -> keras.Model:
    model = net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    return model


def test_fit() -> None:
    model = compiled()
    manager = prepare_compression(model, confs=WeightPruningConfig(**SETTINGS))
    manager.callbacks.on_train_begin()
    manager.model.fit(*data(), batch_size=4, verbose=0)
    report = manager.callbacks.on_train_end()
    assert (report.step, report.sparsity) == (STEPS, 0.5)
    assert zeros(model, "conv", "fc") == (128 + 1152) / 2
    assert zeros(model, "out") == 0
    _, share = manager.model.report_sparsity()
    assert share == pytest.approx(100 * 640 / (128 + 1152 + 64))


def test_a_custom_loop_has_the_same_timeline() -> None:
    model = compiled()
    manager = prepare_compression(model, confs=WeightPruningConfig(**SETTINGS, sparsity_decay_type="linear"))
    hooks = manager.callbacks.callbacks_list[0].hooks
    inputs, labels = data()
    found = []
    hooks["on_train_begin"]()
    for step in range(STEPS):
        hooks["on_step_begin"](step)
        found.append(zeros(model, "conv", "fc"))
        model.train_on_batch(inputs[4 * step : 4 * step + 4], labels[4 * step : 4 * step + 4])
        hooks["on_before_optimizer_step"]()
        hooks["on_after_optimizer_step"]()
        hooks["on_step_end"]()
    hooks["on_train_end"]()
    # 320 units; the updates after 1, 3, 5 and 7 steps have 0, 1/3, 2/3 and 3/3 of the target.
    units = [0, 0, 0, 53, 53, 107, 107, 160, 160, 160, 160, 160]
    assert found == [4 * count for count in units]


def test_two_elements_share_a_kernel() -> None:
    model = compiled()
    elements = [{"op_names": ["fc"], "pattern": "1xchannel"}, {"op_names": ["fc"], "pattern": "channelx1"}]
    manager = prepare_compression(model, confs=WeightPruningConfig(elements, **SETTINGS))
    manager.model.fit(*data(), batch_size=4, verbose=0)
    manager.callbacks.on_train_end()
    assert zeros(model, "fc") == 1152 * 3 / 4
    assert zeros(model, "conv") == 0
    assert [pruner.current_sparsity_ratio for pruner in manager.callbacks.callbacks_list[0].pruners] == [0.5, 0.5]


def test_classes_of_users_take_part() -> None:
    calls = []

    @register_criterion("reversed")
    class Reversed(PruningCriterion):
        def on_step_begin(self) -> None:
            calls.append("s")
            self.scores = {name: -np.abs(layer.get_weights()[0]) for name, layer in self.modules.items()}

        def on_before_optimizer_step(self) -> None:
            calls.append("b")

    @register_scheduler("iterative")
    class Late(PruningScheduler):
        def update_sparsity_ratio(self, target_ratio: float, step: int, total: int, *_: Any) -> float:
            return target_ratio if step == total else 0.0

    model = compiled()
    before = np.abs(model.get_layer("fc").get_weights()[0])
    settings = {**SETTINGS, "pruning_type": "reversed", "pattern": "1x1", "end_step": 5, "op_names": ["fc"]}
    manager = prepare_compression(model, confs=WeightPruningConfig(**settings))
    callbacks = manager.callbacks
    found = []
    for _ in range(6):
        callbacks.on_before_optimizer_step()
        callbacks.on_after_optimizer_step()
        found.append(zeros(model, "fc"))
    callbacks.on_train_end()
    assert calls == ["b", "s", "b", "b", "s", "b", "b", "s", "b"]
    assert found == [0, 0, 0, 0, 576, 576]
    pruned = np.asarray(model.get_layer("fc").get_weights()[0]) == 0
    assert before[pruned].min() >= before[~pruned].max()


def test_a_pruner_of_a_user() -> None:
    @register_pruner("keras_columns")
    class Columns(KerasBasicPruner):
        def update_masks(self, local_step: int) -> None:
            super().update_masks(local_step)
            for mask in self.masks.values():
                mask[..., 0] = False
            self.mask_weights()

    model = compiled()
    settings = {**SETTINGS, "pruning_type": "columns", "criterion_type": "magnitude", "pattern": "1x1"}
    manager = prepare_compression(model, confs=WeightPruningConfig(**settings, op_names=["fc"]))
    manager.model.fit(*data(), batch_size=4, verbose=0)
    report = manager.callbacks.on_train_end()
    kernel = np.asarray(model.get_layer("fc").get_weights()[0])
    assert not kernel[:, 0].any()
    assert report.layers[0].pruned_weights == int((kernel == 0).sum()) >= 576


def vision_transformer() -> keras.Model:
    """A tiny vision transformer, with convolution, attention and dense layers."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    patches = keras.layers.Conv2D(16, 4, 4, name="patches")(inputs)
    tokens = hidden = keras.layers.Reshape((4, 16))(patches)
    hidden = keras.layers.LayerNormalization()(hidden)
    tokens = tokens + keras.layers.MultiHeadAttention(2, 8, name="attention")(hidden, hidden)
    hidden = keras.layers.Dense(32, activation="gelu", name="wide")(keras.layers.LayerNormalization()(tokens))
    tokens = tokens + keras.layers.Dense(16, name="narrow")(hidden)
    outputs = keras.layers.Dense(5, name="head")(keras.layers.Flatten()(tokens))
    return keras.Model(inputs, outputs)


def residual_network() -> keras.Model:
    """A tiny residual network, in which one layer does not fit blocks of three outputs."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(12, 3, padding="same", name="first")(inputs)
    hidden = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="narrow")(first)
    second = keras.layers.Conv2D(12, 1, name="second")(hidden)
    pooled = keras.layers.GlobalAveragePooling2D()(first + second)
    return keras.Model(inputs, keras.layers.Dense(5, activation="softmax", name="head")(pooled))


EXAMPLES: dict[str, tuple[Any, dict[str, Any], Any, bool, list[str]]] = {
    "vision transformer": (
        vision_transformer,
        {"target_sparsity": 0.7},
        lambda: keras.optimizers.AdamW(1e-3, weight_decay=1e-4),
        True,
        ["head"],
    ),
    "residual network": (
        residual_network,
        {"target_sparsity": 0.25, "pattern": "3x1"},
        lambda: keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        False,
        ["head", "narrow"],
    ),
}
"""Model, settings, optimizer, whether the outputs are logits, and the layers that stay dense."""


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str, tmp_path: Path) -> None:
    build, settings, make_optimizer, from_logits, dense = EXAMPLES[name]
    build().save(tmp_path / "baseline.keras")
    configs = WeightPruningConfig(
        backend="itex",
        pruning_type="magnitude",
        start_step=0,
        end_step=9,
        pruning_op_types=["Conv", "Dense"],
        **settings,
    )
    manager = prepare_compression(model=str(tmp_path / "baseline.keras"), confs=configs)
    manager.callbacks.on_train_begin()
    model = manager.model
    model.compile(make_optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    hooks, generator = manager.callbacks.callbacks_list[0].hooks, np.random.default_rng(0)
    for epoch in range(3):
        hooks["on_epoch_begin"](epoch)
        for step in range(4):
            hooks["on_step_begin"](step)
            model.train_on_batch(generator.normal(size=(4, 8, 8, 3)).astype("float32"), generator.integers(5, size=4))
            hooks["on_before_optimizer_step"]()
            hooks["on_after_optimizer_step"]()
            hooks["on_step_end"]()
        hooks["on_epoch_end"]()
    manager.callbacks.on_train_end()
    manager.save(tmp_path / "pruned.keras")
    _, share = model.report_sparsity()

    loaded = keras.saving.load_model(tmp_path / "pruned.keras")
    weights = {weight.path: np.asarray(weight) for weight in loaded.weights if len(weight.shape) > 1}
    kernels = {path: weight for path, weight in weights.items() if path.endswith("kernel")}  # biases have heads, too
    pruned = {path: kernel for path, kernel in kernels.items() if path.split("/")[0] not in dense}
    assert all(kernel.all() for path, kernel in kernels.items() if path not in pruned)
    found, block = sum(int((kernel == 0).sum()) for kernel in pruned.values()), 3 if "pattern" in settings else 4
    assert found == block * round(settings["target_sparsity"] * sum(kernel.size for kernel in pruned.values()) / block)
    total = sum(weight.size for weight in weights.values())
    assert share == pytest.approx(100 * sum(int((weight == 0).sum()) for weight in weights.values()) / total)


def test_a_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a model or the path of a '.keras' file, found .*model.save"):
        prepare_compression(tmp_path, WeightPruningConfig(**SETTINGS))


def test_save(tmp_path: Path) -> None:
    manager = prepare_compression(compiled(), confs=WeightPruningConfig(**SETTINGS))
    manager.save(tmp_path / "folder")
    assert (tmp_path / "folder" / "best_model.keras").exists()


def test_what_keras_models_cannot_do() -> None:
    config = WeightPruningConfig(**{**SETTINGS, "pruning_type": "snip_momentum"})
    with pytest.raises(ConfigError, match="ranks by gradients, which the callbacks of Keras models do not get"):
        prepare_compression(compiled(), config).callbacks.on_train_begin()
    with pytest.raises(ConfigError, match="optimizer must be left out for Keras models"):
        prepare_pruning(compiled(), WeightPruningConfig(**SETTINGS), keras.optimizers.SGD())
    once = WeightPruningConfig(**{**SETTINGS, "pruning_type": "sparse_gpt"})
    with pytest.raises(ConfigError, match="is for torch models"):
        prepare_pruning(compiled(), once, dataloader=[np.zeros((1, 4, 4, 4))])


class PairedOutputs(KerasBasePattern):
    """Prunes the output channels i and i + O/2 together, ranked over all layers."""

    def get_masks(self, scores: Any, target_sparsity_ratio: float, pre_masks: Any) -> dict[str, Any]:
        ranked = []
        for name, score in scores.items():
            halves = score.reshape(-1, 2, score.shape[-1] // 2).mean(axis=(0, 1))
            ranked += [(value, name, index) for index, value in enumerate(halves)]
        for _, name, index in sorted(ranked)[: int(target_sparsity_ratio * len(ranked))]:
            pre_masks[name][..., [index, index + pre_masks[name].shape[-1] // 2]] = 0
        return dict(pre_masks)

    def get_pattern_lock_masks(self, modules: Any) -> dict[str, Any]:
        kernels = {name: layer.get_weights()[0] for name, layer in modules.items()}
        return {
            name: np.broadcast_to((kernel != 0).reshape(-1, kernel.shape[-1]).any(axis=0), kernel.shape)
            for name, kernel in kernels.items()
        }


@pytest.fixture
def paired_registered(registries_restored: None) -> None:  # noqa: ARG001 - for its effect
    """Register `PairedOutputs` for blocks."""
    register_pattern("kerasNxM")(PairedOutputs)


def check_pairs(model: keras.Model) -> None:
    """Check that 6 of the 4 + 8 pairs are zero, and nothing else."""
    pruned = 0
    for name in ("conv", "fc"):
        kernel = np.asarray(model.get_layer(name).get_weights()[0])
        zero = (kernel == 0).reshape(-1, kernel.shape[-1])
        assert (zero.all(axis=0) == zero.any(axis=0)).all()
        first, second = zero.all(axis=0).reshape(2, -1)
        assert (first == second).all()
        pruned += int(first.sum())
    assert pruned == 6


@pytest.mark.usefixtures("paired_registered")
@pytest.mark.parametrize("pruning_type", ["magnitude", "magnitude_progressive"])
def test_a_written_pattern_under_fit(pruning_type: str) -> None:
    model = compiled()
    manager = prepare_compression(model, WeightPruningConfig(**{**SETTINGS, "pruning_type": pruning_type}))
    manager.callbacks.on_train_begin()
    manager.model.fit(*data(), batch_size=4, verbose=0)
    assert manager.callbacks.on_train_end().is_complete
    check_pairs(model)


@pytest.mark.usefixtures("paired_registered")
@pytest.mark.parametrize("criterion", ["magnitude", "snip_momentum"])
def test_a_written_pattern_in_compiled_training(criterion: str, tmp_path: Path) -> None:
    model = compiled()
    steps = {"start_step": 1, "end_step": 9, "pruning_frequency": 4, "kind": "progressive"}
    config = {"pattern": "kerasNxM(4x1)", "target_sparsity": 0.5, "criterion": criterion, **steps}
    secateur.prepare(model, config)
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[secateur.keras.PruningCallback()])
    report = secateur.keras.finalize(model)
    check_pairs(model)
    secateur.save(model, tmp_path / "saved", report=report)
    rows = [row for row in secateur.verify(tmp_path / "saved").tensors if row.pattern == "kerasNxM(4x1)"]
    assert [row.verified_as for row in rows] == [None, None]
    del PATTERNS["kerasNxM"]
    rows = [row for row in secateur.verify(tmp_path / "saved").tensors if row.pattern == "kerasNxM(4x1)"]
    assert [row.verified_as for row in rows] == ["1x1", "1x1"]


@pytest.mark.usefixtures("paired_registered")
@pytest.mark.parametrize("interface", ["compat", "native"])
def test_a_written_pattern_locks_its_zeros(interface: str) -> None:
    model = compiled()
    layer = model.get_layer("fc")
    kernel = np.array(layer.get_weights()[0])
    kernel[:, :2] = 0
    kernel[0, 5] = 0  # not a whole output channel
    layer.set_weights([kernel])
    if interface == "compat":
        manager = prepare_compression(model, WeightPruningConfig(**{**SETTINGS, "pruning_type": "pattern_lock"}))
        manager.model.fit(*data(), batch_size=4, verbose=0)
        manager.callbacks.on_train_end()
    else:
        secateur.prepare(model, {"pattern": "kerasNxM(4x1)", "kind": "pattern_lock"})
        model.fit(*data(), batch_size=4, verbose=0, callbacks=[secateur.keras.PruningCallback()])
        secateur.keras.finalize(model)
    after = np.asarray(layer.get_weights()[0])
    assert (after[:, :2] == 0).all()
    assert int((after == 0).sum()) == 2 * after.shape[0]


@pytest.mark.usefixtures("paired_registered")
def test_a_written_pattern_prunes_once(tmp_path: Path) -> None:
    model = compiled()
    report = secateur.prune(model, {"pattern": "kerasNxM(4x1)", "target_sparsity": 0.5})
    check_pairs(model)
    secateur.save(model, tmp_path / "saved", report=report)
    assert secateur.verify(tmp_path / "saved").problems == {}
    layer = model.get_layer("fc")
    kernel = np.array(layer.get_weights()[0])
    pruned = (kernel == 0).all(axis=0)
    kernel[0, pruned.argmax()], kernel[0, pruned.argmin()] = 1.0, 0.0  # as many zeros, but elsewhere
    layer.set_weights([kernel])
    with pytest.raises(ArtifactError, match=r"fc.* of its units are zero, but \d+ were pruned"):
        secateur.save(model, tmp_path / "bad", report=report)
