"""Small files that ask for much memory or time: refused at once, by every way in."""

import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur
from artifact.forgery import forged
from secateur import _model_limits
from secateur._huggingface.pytorch import limit_modules
from secateur._model_limits import ModelLimits
from secateur.errors import ArtifactError, CalibrationError, ModelLoadError, SecateurError
from secateur.models import load_model, load_trained
from secateur.models.archives import check_expansion
from secateur.models.pytorch import load_weights, read_array_batches

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
HUGE = 40_000
"""Width of layers that would have 6.4 GB each."""

LOADERS: dict[str, Callable[[str], object]] = {
    "plan": load_model,
    "prune": load_trained,
    "inspect": secateur.artifact.inspect,
    "verify": secateur.verify,
}


READERS: dict[str, Callable[[str], object]] = {
    ".npz": lambda path: read_array_batches(Path(path)),
    ".pt": lambda path: load_weights(nn.Linear(1, 1), Path(path)),
    ".safetensors": lambda path: load_weights(nn.Linear(1, 1), Path(path)),
    ".gguf": load_trained,
    ".keras": load_trained,
}


def bert(folder: Path, changes: Mapping[str, Any]) -> str:
    """A folder of transformers with small weights, and a configuration that says something else."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(transformers.BertConfig(**SIZES))
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": "bert", "architectures": ["BertModel"], **SIZES, **changes}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return str(folder)


def compressed(file: Path, members: Mapping[str, bytes], zeros: Mapping[str, int]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            with archive.open(name, "w") as member:
                member.write(content)
                for _ in range(zeros.get(name, 0) >> 20):
                    member.write(bytes(1 << 20))
    return file


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["num_hidden_layers", "num_labels"])
def test_counts_that_no_model_has_are_refused(tmp_path: Path, loader: str, name: str) -> None:
    with pytest.raises(SecateurError, match=rf"'{name}' must be at most [\d,]+, found 1,000,000,000"):
        LOADERS[loader](bert(tmp_path, {name: 10**9}))


@pytest.mark.parametrize(
    "name", ["n_layer", "decoder_layers", "depths", "num_experts", "num_attention_heads", "n_head"]
)
def test_counts_are_known_by_the_end_of_their_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"'{name}' must be at most [\d,]+"):
        load_model(bert(tmp_path, {"vision_config": {name: [2, 10**9]}}))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": ' * 990 + "1" + "}" * 990, '"BertModel"', "\0"])
@pytest.mark.parametrize("load", [load_model, load_trained])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str, load: Callable[[str], object]) -> None:
    bert(tmp_path, {})
    (tmp_path / "config.json").write_text(text, "utf-8")
    with pytest.raises(ModelLoadError, match="transformers cannot build a model"):
        load(str(tmp_path))


def test_a_configuration_of_another_model_than_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"describes a model of [\d,]+ numbers or more, but its weights allow for"):
        load_trained(bert(tmp_path, {"hidden_size": HUGE, "intermediate_size": HUGE}))


def test_a_plan_allocates_nothing(tmp_path: Path) -> None:
    model = load_model(bert(tmp_path, {"hidden_size": HUGE, "intermediate_size": HUGE}))
    assert {held.device.type for held in model.parameters()} == {"meta"}


@pytest.mark.parametrize("width", [32, HUGE])
def test_an_artifact_of_another_model_is_refused(tmp_path: Path, width: int) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "saved"
    secateur.save(transformers.BertModel(transformers.BertConfig(**SIZES)), folder)
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"intermediate_size": width}
    (folder / "config.json").write_text(text := json.dumps(config), "utf-8")
    entry = {"size": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    forged(folder, lambda data: data["files"].update({"config.json": entry}))
    with pytest.raises(SecateurError, match=rf"has shape \[16, 8\], but \[{width}, 8\] in the model"):
        secateur.load(folder)


def test_modules_are_counted_while_they_are_built() -> None:
    def grow() -> None:
        with limit_modules(ModelLimits(tensors=100), Path("config.json")):
            nn.ModuleList(nn.ReLU() for _ in range(10**9))

    with pytest.raises(ArtifactError, match=r"config\.json: describes a model of more than 100 modules and tensors"):
        grow()
    with limit_modules(ModelLimits(tensors=100, numbers=100), Path("config.json")):
        layer = nn.Linear(9, 9)
        layer.weight = nn.Parameter(torch.zeros(9, 9))  # in the place of the first
    nn.ModuleList(nn.ReLU() for _ in range(200))


def test_a_tied_embedding_may_be_built_four_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(_model_limits, "SPARE_NUMBERS", 0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 2000}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    secateur.save(model, tmp_path / "saved")
    model.save_pretrained(tmp_path / "dense")
    assert secateur.load(tmp_path / "saved").lm_head.weight.shape == (2000, 16)
    load_trained(str(tmp_path / "dense"))


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_a_zip_bomb_is_refused(tmp_path: Path, kind: str) -> None:
    held = io.BytesIO()
    if kind == "npz":
        np.lib.format.write_array_header_1_0(held, {"descr": "<f4", "fortran_order": False, "shape": (75 << 20,)})
        file = compressed(tmp_path / "x.npz", {"x.npy": held.getvalue()}, {"x.npy": 300 << 20})
        with pytest.raises(CalibrationError, match=r"unpacks to 314,5.* may unpack to at most 268,435,456"):
            read_array_batches(file)
        return
    torch.save({"weight": torch.ones(2)}, held)
    with zipfile.ZipFile(held) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    file = compressed(tmp_path / "x.pt", members, dict.fromkeys(list(members)[-1:], 300 << 20))
    with pytest.raises(ModelLoadError, match=r"unpacks to 314,5.* may unpack to at most 268,435,456"):
        load_weights(nn.Linear(1, 1), file)


def test_what_a_file_may_unpack_to_grows_with_it() -> None:
    check_expansion(Path("x"), 1 << 28, 1)
    check_expansion(Path("x"), 100 << 30, 1 << 30)
    with pytest.raises(ArtifactError, match="Save it again without compression"):
        check_expansion(Path("x"), (100 << 30) + 1, 1 << 30)


@pytest.mark.parametrize("kind", ["pipe", "folder", "null", "loop", "long"])
@pytest.mark.parametrize("name", ["x.npz", "x.safetensors", "x.pt", "x.gguf", "x.keras"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("needs pipes")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    shown = {"null": f"{path}\0", "long": "x" * 5000 + name}.get(kind, str(path))
    with pytest.raises(SecateurError):
        READERS[path.suffix](shown)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path, name: str) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs pipes")
    folder = bert(tmp_path, {})
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ModelLoadError, match="must be a file, found a pipe or a device"):
        load_trained(folder)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("../other.safetensors", "'../other.safetensors' is not the name of a file in the folder"),
        ("/etc/passwd", "'/etc/passwd' is not the name of a file in the folder"),
        (3, "'weight_map' must map each tensor to the name of its file"),
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, place: Any, message: str) -> None:
    folder = bert(tmp_path, {})
    index = {"metadata": {}, "weight_map": {"pooler.dense.weight": place}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(ModelLoadError, match=re.escape(message)):
        load_trained(folder)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGML", "it does not begin with 'GGUF'"),
        (b"GGUF", "it is incomplete"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "it has no room for 1,152,921,504,606,846,976 entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "it has no room"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 50), "it has no room"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"a") + struct.pack("<IIQ", 9, 9, 1 << 50), "values of type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<QQ", 1 << 63, 0), "it has no room"),
    ],
)
def test_a_gguf_file_has_room_for_what_it_counts(tmp_path: Path, content: bytes, message: str) -> None:
    for package in ("transformers", "gguf", "accelerate"):
        pytest.importorskip(package)
    (tmp_path / "x.gguf").write_bytes(content)
    for load in (load_model, load_trained):
        with pytest.raises(ModelLoadError, match=message):
            load(str(tmp_path / "x.gguf"))


MEMORY = """
import resource, sys
from secateur.errors import SecateurError
from secateur.models import load_trained

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for reference in sys.argv[1:]:
    try:
        load_trained(reference)
    except SecateurError:
        refused += 1
print(refused, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs peaks of memory in kilobytes")
def test_small_files_take_little_memory(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    (tmp_path / "bert").mkdir()
    references = [bert(tmp_path / "bert", {"hidden_size": HUGE, "intermediate_size": HUGE})]
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in "abc")])
    model.save(tmp_path / "net.keras")
    secateur.save(model, tmp_path / "net")
    with zipfile.ZipFile(tmp_path / "net.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    wide = json.loads(members["config.json"])
    for layer in wide["config"]["layers"][1:]:
        layer["config"]["units"] = HUGE
        layer.pop("build_config")
    members["config.json"] = json.dumps(wide).encode()
    references.append(str(compressed(tmp_path / "wide.keras", members, {})))
    (tmp_path / "net" / "keras.json").write_bytes(content := members["config.json"])
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    forged(tmp_path / "net", lambda data: data["files"].update({"keras.json": entry}))
    references.append(str(tmp_path / "net"))
    done = subprocess.run([sys.executable, "-c", MEMORY, *references], capture_output=True, text=True, check=True)
    refused, megabytes = map(int, done.stdout.split())
    assert refused == len(references)
    assert megabytes < 900  # of which torch, Keras and transformers are most
