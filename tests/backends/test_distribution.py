"""Several devices: every copy of a kernel is pruned alike."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

HEAD = """
import keras
from backends.kit import CONFIG, compiled, fit, host, net, pruning
from secateur.keras import finalize
"""

TAIL = """
masks, sparsity = pruning(model).masks, finalize(model).unit_sparsity
assert not any(host(model.get_layer(name).kernel)[~mask].any() for name, mask in masks.items())
print("sparsity", sparsity)
"""

CODE = {
    "jax": f"""{HEAD}
devices = keras.distribution.list_devices()
assert len(devices) == 2
keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
model = compiled()
fit(model, 2)
assert len(model.get_layer("fc").kernel.value.sharding.device_set) == 2
{TAIL}""",
    "tensorflow": f"""
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
{HEAD}
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = compiled()
fit(model, 2)
for device in range(2):
    copy = model.get_layer("fc").kernel.value.values[device].numpy()
    assert not copy[~pruning(model).masks["fc"]].any()
{TAIL}""",
}


@pytest.mark.skipif(keras.backend.backend() not in CODE, reason="Keras distributes on JAX and TensorFlow")
def test_two_devices() -> None:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-c", CODE[keras.backend.backend()]]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["sparsity", "0.75"]
