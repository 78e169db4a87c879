"""Train and prune a small Keras network with ``fit``, on the configured Keras backend."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import keras

import secateur
from secateur.demo.digits import CLASSES, Digits, Hyperparameters, PruningSetting
from secateur.keras import PruningCallback, PruningOptimizer, finalize
from secateur.training import PruningReport

__all__ = ["HYPERPARAMETERS", "KerasDigits"]

HYPERPARAMETERS = Hyperparameters(dense_epochs=10, tuning_epochs=15)
"""Fewer epochs than in torch, because a step of ``fit`` takes longer than one of a plain loop."""


def build_convnet() -> keras.Model:
    """Build two convolutions and two dense layers, 53,000 weights: the torch network with channels last."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((64,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="dense_1"),
            layers.Dense(CLASSES, name="dense_2"),
        ],
        name="conv",
    )


class KerasDigits(Digits):
    """See `Digits`. Training sets the random seeds of Python, NumPy and the backend, and does not restore them."""

    framework = f"Keras on {keras.backend.backend()}"
    nets = ("conv",)
    settings = (PruningSetting("4x1", 0.9), PruningSetting("2:4", 0.5), PruningSetting("1xchannel", 0.5))

    def get_versions(self) -> dict[str, Any]:
        """Return the backend, and the versions of Keras and of the backend."""
        backend = keras.backend.backend()
        versions = {name: import_module(name).__version__ for name in ("keras", backend)}
        return {"backend": backend, "versions": versions}

    def build(self, net: str, seed: int) -> keras.Model:
        """See `Digits.build`."""
        assert net in self.nets
        keras.utils.set_random_seed(seed)
        return build_convnet()

    def copy(self, model: keras.Model) -> keras.Model:
        """See `Digits.copy`."""
        clone = keras.models.clone_model(model)
        clone.set_weights(model.get_weights())
        return clone

    def train(self, model: keras.Model, epochs: int, seed: int) -> None:
        """See `Digits.train`."""
        self._fit(model, self._make_optimizer(), epochs, seed)

    def prune(self, model: keras.Model, config: secateur.PruningConfig, seed: int) -> PruningReport:
        """See `Digits.prune`."""
        optimizer = PruningOptimizer(model, config, self._make_optimizer())
        self._fit(model, optimizer, self.hyperparameters.tuning_epochs, seed, PruningCallback())
        return finalize(model)

    def predict(self, model: keras.Model) -> Any:
        """See `Digits.predict`."""
        return keras.ops.convert_to_numpy(model(self.test_images)).argmax(axis=1)

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        return keras.optimizers.AdamW(self.hyperparameters.learning_rate)

    def _fit(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        epochs: int,
        seed: int,
        *callbacks: keras.callbacks.Callback,
    ) -> None:
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        keras.utils.set_random_seed(seed)
        progress = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self.on_epoch())  # noqa: ARG005
        model.fit(
            self.train_images,
            self.train_labels,
            batch_size=self.hyperparameters.batch,
            epochs=epochs,
            verbose=0,
            callbacks=[*callbacks, progress],
        )
