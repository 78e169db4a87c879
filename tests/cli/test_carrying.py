"""``secateur prune FOLDER`` changes the weights that it prunes, and nothing else in the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secateur
from cli.kit import TEXT, run, write_llama
from secateur.artifact import Artifact
from secateur.artifact.pytorch import to_torch

pytestmark = pytest.mark.filterwarnings("always:.*does not use and that are not pruned:UserWarning")

transformers = pytest.importorskip("transformers")

EXTRA = {"model.mtp.0.proj.weight": torch.randn(16, 16), "model.mtp.0.steps": torch.tensor(3)}
"""A head that the model class does not know, as published with some models."""


NOT_CARRIED = frozenset(
    {"model.safetensors", "pytorch_model.bin", "secateur.json", "packed-00001-of-00001.safetensors"}
)


@pytest.fixture
def llama(folder: Path) -> Path:
    """A transformers folder in the current one."""
    write_llama(folder / "llama")
    return folder / "llama"


def add_extra(llama: Path) -> None:
    save_file(load_file(llama / "model.safetensors") | EXTRA, llama / "model.safetensors")


def mix_types(llama: Path) -> None:
    """Store most tensors in float32 though the configuration says bfloat16, and some in float16."""
    tensors = load_file(llama / "model.safetensors")
    half = {name: tensor.half() if "k_proj" in name else tensor for name, tensor in tensors.items()}
    save_file(half, llama / "model.safetensors")
    edit_config(llama, dtype="bfloat16")


def edit_config(llama: Path, **changes: Any) -> None:
    config = json.loads((llama / "config.json").read_text("utf-8")) | changes
    (llama / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def forget_class(llama: Path) -> None:
    """Without its class, the model is loaded without its head."""
    edit_config(llama, architectures=None)


def pickle_weights(llama: Path) -> None:
    add_extra(llama)
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()


def pack(llama: Path) -> None:
    add_extra(llama)
    secateur.artifact.convert(llama, llama.parent / "packed")
    (llama.rename(llama.parent / "before"), (llama.parent / "packed").rename(llama))


def read_source(llama: Path) -> dict[str, torch.Tensor]:
    if (llama / "pytorch_model.bin").is_file():
        return torch.load(llama / "pytorch_model.bin", weights_only=True)  # type: ignore[no-any-return]
    return load_file(
        (llama if (llama / "model.safetensors").is_file() else llama.parent / "before") / "model.safetensors"
    )


@pytest.mark.parametrize(
    ("change", "solver"),
    [
        (add_extra, "magnitude"),
        (add_extra, "sparsegpt"),
        (mix_types, "magnitude"),
        (forget_class, "magnitude"),
        (pickle_weights, "magnitude"),
        (pack, "magnitude"),
    ],
)
def test_nothing_but_pruned_weights_changes(change: Callable[[Path], None], solver: str, llama: Path) -> None:
    for name in ("1_Pooling/config.json", "LICENSE", "README.md", "model.py", "chat_template.jinja"):
        (llama / name).parent.mkdir(exist_ok=True)
        (llama / name).write_text(name)
    (llama / "text.txt").write_text(TEXT)
    change(llama)
    paths = {path.relative_to(llama) for path in llama.rglob("*") if path.is_file()}
    files = {name: (llama / name).read_bytes() for name in paths if name.name not in NOT_CARRIED}
    data = () if solver == "magnitude" else ("--calibration", "llama/text.txt", "--sequences", "2", "--length", "8")
    result = run("prune", "llama", "--pattern", "2:4", "--solver", solver, *data, "--out", "out")
    assert result.exit_code == 0, result.stderr
    assert run("convert", "out", "dense", "--dense").exit_code == 0
    before, after = read_source(llama), load_file("dense/model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        if "self_attn" not in name and "mlp" not in name:
            assert torch.equal(after[name], tensor), name
        else:
            kept = after[name] != 0
            assert kept.float().mean() == 0.5, name
            assert solver != "magnitude" or torch.equal(after[name][kept], tensor[kept]), name
    assert secateur.verify("out", pattern="2:4").problems == {}
    for name in files:
        assert Path("out", name).read_bytes() == files[name], name


def test_extra_tensors_are_named_and_do_not_prevent_loading(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_extra(llama)
    result = run("prune", "llama", "--pattern", "2:4", "--out", "out")
    assert "'llama' has 2 tensors that LlamaForCausalLM does not use" in result.stderr
    loaded = secateur.load("out")
    assert "'model.mtp.0.proj.weight' are not used by LlamaForCausalLM" in caplog.text
    assert not {"model.mtp.0.proj.weight"} & loaded.state_dict().keys()
    again = transformers.LlamaForCausalLM.from_pretrained(llama)
    secateur.load("out", again)
    assert torch.equal(again.lm_head.weight, loaded.lm_head.weight)


def test_a_folder_without_its_class_loads_again(llama: Path) -> None:
    forget_class(llama)
    assert run("prune", "llama", "--pattern", "2:4", "--out", "out").exit_code == 0
    assert type(secateur.load("out")) is transformers.LlamaModel
    assert run("convert", "out", "dense", "--dense").exit_code == 0
    model = transformers.LlamaForCausalLM.from_pretrained("dense")
    assert torch.equal(model.lm_head.weight, load_file("llama/model.safetensors")["lm_head.weight"])
    assert float((model.model.layers[0].mlp.up_proj.weight == 0).float().mean()) == 0.5


def test_one_block_at_a_time_keeps_everything_too(llama: Path) -> None:
    add_extra(llama)
    (llama / "text.txt").write_text(TEXT)
    (llama / "LICENSE").write_text("free")
    data = ("--calibration", "llama/text.txt", "--sequences", "2", "--length", "8")
    result = run("prune", "llama", "--pattern", "2:4", "--low-memory", *data, "--out", "out")
    assert result.exit_code == 0, result.stderr
    artifact = Artifact("out")
    assert {"LICENSE", "text.txt", "config.json", "tokenizer.json"} <= artifact.manifest.files.keys()
    assert not any("state" in name for name in artifact.manifest.files)
    for name, tensor in EXTRA.items():
        assert torch.equal(to_torch(artifact[name]), tensor)


def test_one_block_at_a_time_of_a_published_mixture_of_experts(llama: Path) -> None:
    """The layout in which it is published is refused with a way out, which works."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "head_dim": 4}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))
    model.save_pretrained(llama)
    (llama / "text.txt").write_text(TEXT)
    command = ("prune", "llama", "--pattern", "2:4", "--solver", "wanda", "--calibration", "llama/text.txt")
    options = ("--sequences", "2", "--length", "8", "--out", "out", "--low-memory")
    result = run(*command, *options)
    assert result.exit_code == 1
    assert "save_original_format=False" in result.stderr.replace("\n", "")
    model.save_pretrained(llama, save_original_format=False)
    result = run(*command, *options)
    assert result.exit_code == 0, result.stderr
    assert secateur.verify("out", pattern="2:4").problems == {}
    assert run("convert", "out", "dense", "--dense").exit_code == 0
    loaded, again = secateur.load("out"), transformers.MixtralForCausalLM.from_pretrained("dense")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), again.parameters(), strict=True))


def test_a_mixture_of_experts_keeps_its_published_layout(folder: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "head_dim": 4}
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads)).bfloat16()
    model.save_pretrained(folder / "experts")
    assert run("prune", "experts", "--pattern", "2:4", "--out", "packed").exit_code == 0
    assert run("verify", "packed", "--pattern", "2:4").exit_code == 0
    assert run("convert", "packed", "dense", "--dense").exit_code == 0
    before, after = load_file("experts/model.safetensors"), load_file("dense/model.safetensors")
    assert after.keys() == before.keys()
    secateur.prune(model, {"pattern": "2:4"})
    for loaded in (secateur.load("packed"), transformers.MixtralForCausalLM.from_pretrained("dense")):
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    kept = after["model.layers.0.block_sparse_moe.experts.1.w3.weight"] != 0
    assert kept.float().mean() == 0.5


def test_weights_in_other_formats_are_named(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("pytorch_model.bin", "onnx/model.onnx", "onnx/config.json"):
        (llama / name).parent.mkdir(exist_ok=True)
        (llama / name).write_text("{}")
    assert run("prune", "llama", "--pattern", "2:4", "--out", "out").exit_code == 0
    assert "in another format, which are not pruned: 'onnx/', 'pytorch_model.bin'." in caplog.text
    assert not Path("out", "onnx").exists()


def test_an_encoder_goes_back_to_sentence_transformers(folder: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from tiny_sentence_encoders import TEXTS, make_encoder, sentence_transformers

    make_encoder(folder).save(str(folder / "encoder"))
    assert run("prune", "encoder", "--pattern", "2:4", "--out", "packed").exit_code == 0
    assert run("verify", "packed", "--pattern", "2:4").exit_code == 0
    assert run("convert", "packed", "dense", "--dense").exit_code == 0
    loaded = sentence_transformers.SentenceTransformer("dense", device="cpu")
    model = sentence_transformers.SentenceTransformer("encoder", device="cpu")
    secateur.prune(model[0].auto_model, {"pattern": "2:4"})
    assert (loaded.encode(TEXTS) == model.encode(TEXTS)).all()
