"""Measure the overhead of pruning for a step of ``fit`` of an encoder of the size of BERT-mini, between mask updates.

Epochs with and without pruning alternate in one process (batch 8, sequence 128), compiled by the backend. Both wall and
CPU time are measured. TensorFlow's threads wait for each other, so times differ by a fifth between two copies of a
model. ``--threads 1`` limits its operations to one thread. Run it once per backend, while no other program is running:

    OMP_WAIT_POLICY=PASSIVE KERAS_BACKEND=tensorflow python benchmarks/keras_step_overhead.py --threads 1
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers
from rich.console import Console

import secateur
import secateur.keras
from _timing import measure_wall_and_cpu_seconds, parse_options
from secateur._table import Table

VOCABULARY, WIDTH, DEPTH, HEADS, CLASSES = 30_522, 256, 4, 4, 2
BATCH, LENGTH, STEPS = 8, 128, 10
CASES: dict[str, dict[str, object] | None] = {
    "no pruning": None,
    "magnitude 4x1": {"criterion": "magnitude", "pattern": "4x1"},
    "magnitude 2:4": {"criterion": "magnitude", "pattern": "2:4"},
    "SNIP 4x1": {"criterion": "snip", "pattern": "4x1"},
    "SNIP momentum 1x1": {"criterion": "snip_momentum", "pattern": "1x1"},
    "SNIP momentum 4x1": {"criterion": "snip_momentum", "pattern": "4x1"},
    "SNIP momentum 2:4": {"criterion": "snip_momentum", "pattern": "2:4"},
}


def build_encoder() -> keras.Model:
    """Build an encoder with the sizes of BERT-mini and a classifier."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((LENGTH,), dtype="int32")
    hidden = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    for _ in range(DEPTH):
        attended = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(hidden, hidden)
        hidden = layers.LayerNormalization()(hidden + attended)
        fed = layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="gelu")(hidden))
        hidden = layers.LayerNormalization()(hidden + fed)
    return keras.Model(tokens, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(hidden)))


def prune_immediately(initial: float, target: float, progress: float) -> float:  # noqa: ARG001
    """Return the target at the first update, although more updates follow."""
    return target


class Epochs:
    """Epochs of ``fit`` with a separate model."""

    def __init__(self, config: dict[str, object] | None) -> None:
        self.model = build_encoder()
        optimizer = keras.optimizers.AdamW(1e-4)
        self.callbacks = []
        if config is not None:
            # The last update comes after the measurement, so scores are accumulated in every step.
            timing = {"start_step": 1, "pruning_frequency": 100_000, "end_step": 1_000_000}
            settings = config | timing | {"target_sparsity": 0.5, "sparsity_decay_type": prune_immediately}
            optimizer = secateur.keras.PruningOptimizer(self.model, settings, optimizer)
            self.callbacks = [secateur.keras.PruningCallback()]
        self.model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        generator = np.random.default_rng(0)
        self.tokens = generator.integers(0, VOCABULARY, (BATCH * STEPS, LENGTH), dtype=np.int32)
        self.labels = generator.integers(0, CLASSES, BATCH * STEPS)

    def __call__(self) -> None:
        """Run one epoch. Medians exclude the first epoch, which compiles and prunes."""
        self.model.fit(self.tokens, self.labels, batch_size=BATCH, verbose=0, callbacks=self.callbacks)


def limit_threads(threads: int) -> None:
    """Limit the threads of TensorFlow's operations. JAX uses all processors of the process."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)


def main() -> None:
    arguments = parse_options(__doc__, rounds=20)
    limit_threads(arguments.threads)
    times = measure_wall_and_cpu_seconds({name: Epochs(config) for name, config in CASES.items()}, arguments.rounds)
    plain, rows = times["no pruning"], []
    for name, seconds in times.items():
        clocks = zip(seconds, plain, strict=True)
        cells = [
            cell for pruned, dense in clocks for cell in (f"{pruned / STEPS * 1e3:.1f}", f"{pruned / dense - 1:+.1%}")
        ]
        rows.append([name, *cells])
    backend = keras.backend.backend()
    title = f"One step of fit, Keras on {backend}, {arguments.threads} threads, median of {arguments.rounds}"
    columns = ("pruning", ">ms", ">added", ">CPU ms", ">CPU time added")
    Console().print(Table(title=title, columns=columns, rows=rows))


if __name__ == "__main__":
    main()
