"""Several devices: the same masks as on one, and every copy or part of a kernel is pruned alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import pytest

BACKEND = keras.backend.backend()

MIRRORED = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from backends.kit import compiled, fit, host, pruning
from secateur.keras import finalize
with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = compiled()
fit(model, 2)
for device in range(2):
    copy = model.get_layer("fc").kernel.value.values[device].numpy()
    assert not copy[~pruning(model).masks["fc"]].any()
masks, sparsity = pruning(model).masks, finalize(model).unit_sparsity
assert not any(host(model.get_layer(name).kernel)[~mask].any() for name, mask in masks.items())
print("sparsity", sparsity)
"""

COLUMNS = '[null, "model"]'

PLACES = {
    "one device": ([1], ["[]"]),
    "data parallel on 2": ([2], ["[null, null]"]),
    "columns on 4": ([4], [COLUMNS]),
    "resumed on 2 by 2": ([4], [COLUMNS]),
    "loop on 4": ([4], [COLUMNS]),
}
"""Run on JAX → its number of devices, and how kernels and masks are sharded over them."""


def run_python(*arguments: str) -> str:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_two_devices() -> None:
    assert run_python("-c", MIRRORED).split() == ["sparsity", "0.75"]


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    if BACKEND != "jax":
        pytest.skip("keras.distribution needs JAX")
    found: dict[str, Any] = json.loads(run_python("-m", "backends.jax_devices"))
    assert found.keys() == PLACES.keys()
    return found


@pytest.mark.parametrize("name", PLACES)
def test_masks_are_those_of_one_device(name: str, runs: dict[str, Any]) -> None:
    assert runs[name]["masks"] == runs["one device"]["masks"]
    assert runs[name]["sparsity"] == 0.5


@pytest.mark.parametrize("name", PLACES)
def test_masks_are_where_the_kernels_are(name: str, runs: dict[str, Any]) -> None:
    assert (runs[name]["devices"], runs[name]["specs"]) == PLACES[name]


def test_an_update_of_the_masks_does_not_compile_the_step_again(runs: dict[str, Any]) -> None:
    assert runs["loop on 4"]["compiled"] == 1
