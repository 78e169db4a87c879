"""Data and training of a small Keras model, and what is asked of it again and again."""

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np

from secateur.frameworks.keras import read_array
from secateur.keras import PruningCallback, PruningOptimizer
from tiny_keras_models import net

CONFIG: dict[str, Any] = {
    "pattern": "4x1",
    "target_sparsity": 0.75,
    "criterion": "snip_momentum",
    "start_step": 2,
    "end_step": 9,
    "pruning_frequency": 3,
}
BATCH, BATCHES = 8, 6
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "adadelta": lambda: keras.optimizers.Adadelta(1.0),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "adamax": lambda: keras.optimizers.Adamax(0.01),
    "ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "clipped": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "scheduled": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)),
}


def data(seed: int = 0) -> tuple[Any, Any]:
    """One epoch of batches."""
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((BATCH * BATCHES, 4, 4, 4), dtype=np.float32)
    return inputs, generator.integers(0, 4, BATCH * BATCHES)


@cache
def feed(first: int = 0, last: int = BATCHES) -> dict[str, Any]:
    """An epoch, or some batches of one, in order, as arguments of ``fit``.

    TensorFlow gets batches: it would trace functions that divide the arrays, again in each call.
    """
    part = slice(first * BATCH, last * BATCH)
    inputs, labels = (array[part] for array in data())
    if keras.backend.backend() != "tensorflow":
        return {"x": inputs, "y": labels, "batch_size": BATCH, "shuffle": False}
    import tensorflow as tf

    whole = tf.data.Dataset.from_tensor_slices((inputs, labels))
    return {"x": whole.batch(BATCH, drop_remainder=True), "shuffle": False}


def compiled(config: dict[str, Any] = CONFIG, *, model: Any = None, inner: Any = None, **options: Any) -> Any:
    """A model that is to be pruned. Without `inner`, its optimizer is one that takes little time to trace."""
    model = net() if model is None else model
    inner = keras.optimizers.SGD(0.1, momentum=0.9) if inner is None else inner
    model.compile(PruningOptimizer(model, config, inner), LOSS, **options)
    return model


def fit(model: Any, epochs: int = 2, *more: keras.callbacks.Callback, **options: Any) -> Any:
    """Train in a fixed order; other callbacks come behind the one that updates masks."""
    settings = {**feed(), "epochs": epochs, "verbose": 0} | options
    return model.fit(callbacks=[PruningCallback(), *more], **settings)


def pruning(model: Any) -> PruningOptimizer:
    """The pruning optimizer of a compiled model."""
    from secateur.training.keras import find_pruning_optimizer

    return find_pruning_optimizer(model)


def kernels(model: Any, names: Iterable[str] = ("conv", "fc")) -> dict[str, Any]:
    """Layer → its kernel as a NumPy array."""
    return {name: host(model.get_layer(name).kernel) for name in names}


def revived(model: Any) -> list[str]:
    """The layers in which a pruned weight is not zero."""
    masks, found = pruning(model).masks, kernels(model, pruning(model).masks)
    return [name for name, mask in masks.items() if found[name][~mask].any()]


def bits(model: Any, *, optimizer: bool = True) -> list[bytes]:
    """All variables of a model and its optimizer, to the last bit."""
    variables = [*model.weights, *(model.optimizer.variables if optimizer else ())]
    return [host(variable).tobytes() for variable in variables]


def pruned_units(model: Any) -> int:
    return sum(layer.pruned_units for layer in pruning(model).report().layers)


class Watch(keras.callbacks.Callback):
    """After each batch: what is pruned is zero and, unless the kind regrows, stays pruned. Notes the pruned units."""

    def __init__(self) -> None:
        super().__init__()
        self.units: list[int] = []
        self.before: dict[str, Any] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        model = self.model
        assert revived(model) == [], batch
        masks = pruning(model).masks
        regrows = {name for pattern in pruning(model).patterns if pattern.config.has_regrowth for name in pattern.views}
        revived_units = [name for name, mask in self.before.items() if (masks[name] & ~mask).any()]
        assert [name for name in revived_units if name not in regrows] == [], batch
        self.before = masks
        self.units.append(pruned_units(model))


def saved(model: Any, path: Path) -> Path:
    model.save(path)
    return path


def host(variable: Any) -> Any:
    """A variable as a NumPy array of its own."""
    return read_array(variable).copy()
