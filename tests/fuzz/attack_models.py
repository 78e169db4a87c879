"""Attack with descriptions of models that contain arbitrary values."""

import copy
import hashlib
import json
import random
import resource
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import secateur
from artifact.forgery import forged
from fuzz.harness import attack
from secateur.models import load_model, load_trained

MAX_MEGABYTES = 1_500
"""Maximum growth of the peak in one case: the limits allow a few hundred, and imports need memory too."""

VALUES: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 8, 1000, 40_000, 10**6, 10**9, 2**31, 2**63, 10**30, -(10**9)),
    *(0.5, 1e308, -1.5, True, False, None, "", "x", "gelu", "../x", "\0", "\x1b[2J", "x" * 5000),
    *([], {}, [1], [10**9], {"a": 1}, [[[]]], {"": {}}, [None] * 100),
]

BERT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
DISTILBERT = {"dim": 8, "hidden_dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 30}
LLAMA = BERT | {"num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 32}


@contextmanager
def limited_memory() -> Iterator[None]:
    """Fail if the peak memory of this process grows too much."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown <= MAX_MEGABYTES, f"{grown:,} MB"


def list_paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all values in a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*above, key)
        yield from list_paths(below, (*above, key))


def mutate_json(chooser: random.Random, value: Any) -> Any:
    """Change, remove or move one to three values of a JSON document."""
    value = json.loads(json.dumps(value))
    for _ in range(chooser.choice([1, 1, 1, 2, 3])):
        paths = list(list_paths(value))
        if not paths:
            return value
        *above, key = chooser.choice(paths)
        holder = value
        for step in above:
            holder = holder[step]
        kind = chooser.random()
        if kind < 0.7:
            holder[key] = copy.deepcopy(chooser.choice(VALUES))
        elif kind < 0.85 and isinstance(holder, dict):
            del holder[key]
        else:
            other = value
            for step in chooser.choice(paths):
                try:
                    other = other[step]
                except (KeyError, IndexError, TypeError):
                    break
            holder[key] = json.loads(json.dumps(other))
    return value


@cache
def folders() -> list[Path]:
    """Create transformers folders with tiny models."""
    import transformers

    created = []
    for name, sizes in (("Bert", BERT), ("Llama", LLAMA), ("DistilBert", DISTILBERT)):
        config = getattr(transformers, f"{name}Config")(**sizes)
        folder = Path(tempfile.mkdtemp(prefix="fuzz-models-"))
        model = getattr(transformers, f"{name}Model")(config)
        save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
        config.architectures = [f"{name}Model"]
        config.save_pretrained(folder)
        created.append(folder)
    return created


@cache
def artifacts() -> list[Path]:
    """Create artifacts of a torch model and of a Keras model."""
    import keras

    keras_model = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 2), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    targets = [Path(tempfile.mkdtemp(prefix="fuzz-models-")) / "saved" for _ in range(2)]
    secateur.save(load_trained(str(folders()[0])).model, targets[0])
    secateur.save(keras_model, targets[1])
    return targets


LOADERS: list[Callable[[str], object]] = [load_model, load_trained, secateur.artifact.inspect, secateur.verify]


@attack(cases=40, seconds=60)
def mutate_config(chooser: random.Random, folder: Path) -> None:
    """Load a transformers folder whose ``config.json`` contains arbitrary values."""
    original = chooser.choice(folders())
    target = Path(shutil.copytree(original, folder / "model"))
    config = json.loads((target / "config.json").read_text("utf-8"))
    text = json.dumps(mutate_json(chooser, config)).encode()
    if chooser.random() < 0.1:
        cut = chooser.randrange(len(text))
        text = text[:cut] + chooser.choice([b"", b"\xff", b"[" * 5000, b"NaN"]) + text[cut + chooser.randrange(3) :]
    (target / "config.json").write_bytes(text)
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chooser.choice(LOADERS)(str(target))


@attack(cases=30, seconds=60)
def mutate_description(chooser: random.Random, folder: Path) -> None:
    """Load an artifact with an arbitrary description: if it succeeds, the model has the tensors of the artifact."""
    original = chooser.choice(artifacts())
    target = Path(shutil.copytree(original, folder / "saved"))
    file = target / ("keras.json" if (target / "keras.json").exists() else "config.json")
    text = json.dumps(mutate_json(chooser, json.loads(file.read_text("utf-8"))))
    file.write_text(text, "utf-8")
    entry = {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    forged(target, lambda data: data["files"].update({file.name: entry}))
    with limited_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = secateur.load(target)
    expected = secateur.artifact.Artifact(original)
    if isinstance(model, torch.nn.Module):
        shapes = [tuple(tensor.shape) for tensor in model.state_dict().values()]
    else:
        shapes = [tuple(variable.shape) for variable in model.weights]
    assert sorted(shapes) == sorted(expected.entry(name).shape for name in expected)
