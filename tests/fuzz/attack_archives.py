"""Attack with damaged or forged files of weights, inputs and models."""

import io
import json
import random
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from fuzz.attack_models import limited_memory, mutate_json
from fuzz.harness import attack
from secateur.models import load_model
from secateur.models.pytorch import load_weights, read_array_batches

NUMBERS = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


def keras_net() -> Any:
    import keras

    layers = [keras.layers.Dense(3, name="a"), keras.layers.LSTM(2, name="b"), keras.layers.Dense(2, name="c")]
    return keras.Sequential([keras.Input((2, 4)), *layers], name="net")


@cache
def samples() -> dict[str, bytes]:
    """Return an intact file of each kind."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        torch.save(net().state_dict(), folder / "x.pt")
        torch.save(
            {"epoch": 1, "state_dict": net().state_dict()}, folder / "old.pt", _use_new_zipfile_serialization=False
        )
        save_file(net().state_dict(), folder / "x.safetensors")
        rng = np.random.default_rng(0)
        np.savez(folder / "x.npz", a=rng.standard_normal((4, 3)), b=np.arange(4))
        np.savez_compressed(folder / "small.npz", rng.standard_normal((4, 3)).astype(np.float32))
        keras_net().save(folder / "x.keras")
        keras_net().save_weights(folder / "x.weights.h5")
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def change_bytes(chooser: random.Random, content: bytes) -> bytes:
    """Change some bytes, replace numbers, or cut out, duplicate or move parts."""
    data = bytearray(content)
    for _ in range(chooser.choice([1, 1, 2, 4, 16])):
        if not data:
            break
        place = chooser.randrange(len(data))
        kind = chooser.random()
        if kind < 0.35:
            data[place] = chooser.randrange(256)
        elif kind < 0.65:
            size = chooser.choice([2, 4, 8])
            data[place : place + size] = struct.pack("<Q", chooser.choice(NUMBERS))[:size]
        elif kind < 0.8:
            del data[place : place + chooser.choice([1, 8, 64, len(data)])]
        else:
            other = chooser.randrange(len(data))
            data[place:place] = data[other : other + chooser.choice([1, 16, 256])]
    return bytes(data)


def rewrite_archive(chooser: random.Random, content: bytes, change: Callable[[str, bytes], bytes]) -> bytes:
    """Change, remove, duplicate, rename or compress one member of a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = chooser.randrange(len(members))
    name, data = members[place]
    kind = chooser.random()
    if kind < 0.7:
        members[place] = (name, change(name, data))
    elif kind < 0.8:
        del members[place]
    elif kind < 0.9:
        members.append((name, data))
    else:
        members[place] = (chooser.choice(["../x", "/x", " ", "x" * 1000, "\x1b[2J", name.upper()]), data)
    buffer = io.BytesIO()
    method = chooser.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def damage(chooser: random.Random, name: str) -> bytes:
    content = samples()[name]

    def change(member: str, data: bytes) -> bytes:
        if member.endswith(".json") and chooser.random() < 0.8:
            return json.dumps(mutate_json(chooser, json.loads(data))).encode()
        return change_bytes(chooser, data)

    if zipfile.is_zipfile(io.BytesIO(content)) and chooser.random() < 0.6:
        return rewrite_archive(chooser, content, change)
    return change_bytes(chooser, content)


@attack(cases=300, seconds=60)
def damage_weights(chooser: random.Random, folder: Path) -> None:
    """Load weights into a torch model: if it succeeds, shapes and dtypes are unchanged."""
    name = chooser.choice(["x.pt", "x.pt", "old.pt", "x.safetensors"])
    (folder / name).write_bytes(damage(chooser, name))
    model = net()
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_weights(model, folder / name)
    loaded = [(tensor.shape, tensor.dtype) for tensor in model.state_dict().values()]
    assert loaded == [(tensor.shape, tensor.dtype) for tensor in net().state_dict().values()]


@attack(cases=300, seconds=60)
def damage_inputs(chooser: random.Random, folder: Path) -> None:
    """Read calibration data: if it succeeds, batches contain tensors without ``nan``."""
    name = chooser.choice(["x.npz", "small.npz", "x.safetensors"])
    (folder / name).write_bytes(damage(chooser, name))
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = read_array_batches(folder / name)
    for batch in batches:
        tensors = batch.values() if isinstance(batch, dict) else batch
        assert all(isinstance(tensor, torch.Tensor) and not torch.isnan(tensor).any() for tensor in tensors)


@attack(cases=60, seconds=60)
def damage_keras(chooser: random.Random, folder: Path) -> None:
    """Load a ``.keras`` file, or weights into a Keras model."""
    from secateur.models.keras import load_keras_weights

    name = chooser.choice(["x.keras", "x.keras", "x.weights.h5"])
    (folder / name).write_bytes(damage(chooser, name))
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "x.keras":
            load_model(str(folder / name))
        else:
            load_keras_weights(keras_net(), folder / name)
