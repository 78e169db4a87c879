"""Files that third-party code reads: whatever it makes of them, the error is one of this package."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur._third_party import describe_error, translate_errors
from secateur.errors import ArtifactError, CalibrationError, ConfigError, ModelLoadError
from secateur.models import load_model, load_trained
from secateur.models.pytorch import load_tokenizer, load_weights, make_text_batches, read_array_batches


class PanicException(BaseException):
    __module__ = "pyo3_runtime"


class Unspeakable(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PanicException("index out of bounds"), r"^x: index out of bounds\.$"),
        (SystemExit(7), r"^x: 7\.$"),
        (KeyError("bias"), r"^x: KeyError: 'bias'\.$"),
        (MemoryError(), r"^x: there is not enough memory\.$"),
        (RecursionError("too deep"), r"^x: too deep\.$"),
        (Unspeakable(), r"^x: Unspeakable\.$"),
        (ArtifactError("y: damaged."), r"^x: y: damaged\.$"),
        (ArtifactError("x: damaged."), r"^x: damaged\.$"),
        (ValueError("\n\nfirst\nsecond"), r"^x: first\.$"),
        (
            ValueError("Field 'layers':\n    TypeError: expected int\nmore"),
            r"^x: Field 'layers': TypeError: expected int\.$",
        ),
        (ValueError("a:\nb:"), r"^x: a: b:\.$"),
    ],
)
def test_what_third_party_code_raises_is_translated(error: BaseException, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message) as raised, translate_errors(ModelLoadError, "x"):
        raise error
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), ConfigError("mine")])
def test_interrupts_and_other_errors_of_this_package_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, translate_errors(ModelLoadError, "x"):
        raise error
    assert raised.value is error


def test_a_long_message_is_cut() -> None:
    assert len(describe_error(ValueError("x" * 16_000_000))) <= 500


# Weights


FLOATS = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            FLOATS.to(torch.complex64),
            "is torch.complex64 in .*, but torch.float32 in the model, which cannot represent",
        ),
        (FLOATS.to(torch.int64), "is torch.int64 in"),
        (FLOATS.to(torch.bool), "is torch.bool in"),
        (FLOATS.to(torch.float8_e4m3fn), "is torch.float8_e4m3fn in"),
        (FLOATS.to(torch.float64) * 1e300, "is torch.float64 in"),
        (FLOATS.to_sparse(), r"'weight', which is not a plain dense tensor but Tensor \(sparse_coo, torch.float32\)"),
        (torch.ones(2, 2, device="meta"), r"Tensor \(meta, torch.float32\)"),
        (torch.ones(1).expand(2, 3), r"has shape \[2, 3\]"),
        (3, "'weight', which is of type int"),
        ({"a": 1}, "'weight', which is of type dict"),
        (None, "'weight', which is of type NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_not_the_numbers_of_the_model_are_refused(tmp_path: Path, weight: Any, message: str) -> None:
    torch.save({"weight": weight}, tmp_path / "x.pt")
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.clone()
    with pytest.raises(ModelLoadError, match=message):
        load_weights(model, tmp_path / "x.pt")
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("stored", "held"),
    [
        (torch.float64, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.int64, torch.int32),
        (torch.uint8, torch.int64),
        (torch.float8_e5m2, torch.float8_e5m2),
        (torch.complex64, torch.complex64),
    ],
)
def test_numbers_are_rounded_to_types_of_their_kind(
    tmp_path: Path, kind: str, stored: torch.dtype, held: torch.dtype
) -> None:
    model = nn.Module()
    model.register_buffer("x", torch.zeros(2, dtype=held))
    state = {"x": torch.tensor([1, 100]).to(stored)}
    save_file(state, tmp_path / "x.safetensors") if kind == "safetensors" else torch.save(state, tmp_path / "x.pt")
    load_weights(model, tmp_path / f"x.{kind}")
    assert model.x.dtype == held
    assert torch.equal(model.x, state["x"].to(held))


@pytest.mark.parametrize(("stored", "held"), [(300, torch.uint8), (-1, torch.uint8), (1 << 40, torch.int32)])
def test_integers_must_fit(tmp_path: Path, stored: int, held: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("x", torch.zeros(1, dtype=held))
    torch.save({"x": torch.tensor([stored])}, tmp_path / "x.pt")
    with pytest.raises(ModelLoadError, match="cannot represent its values"):
        load_weights(model, tmp_path / "x.pt")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        self.two.weight = self.one.weight


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tied_weights_stay_tied(tmp_path: Path, device: str) -> None:
    with torch.device(device):
        model = Tied()
    torch.save({"two.weight": torch.ones(1, 1).expand(2, 2)}, tmp_path / "x.pt")
    load_weights(model, tmp_path / "x.pt")
    assert model.one.weight is model.two.weight
    assert torch.equal(model.one.weight, FLOATS)
    assert model.one.weight.is_contiguous()


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    torch.save({"one.weight": FLOATS, "two.weight": 2 * FLOATS}, tmp_path / "x.pt")
    with pytest.raises(ModelLoadError, match=r"'one.weight' and 'two.weight' are tied in the model"):
        load_weights(Tied(), tmp_path / "x.pt")


# Arrays


def header(shape: tuple[int, ...], descr: str = "<f4", *, fortran: bool = False) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return held.getvalue()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x.npy": header((1 << 40,)) + bytes(8)}, r"array 'x.npy' must have 4,398,046,511,104 bytes .* found 8"),
        ({"x.npy": header((2,)) + bytes(12)}, "must have 8 bytes for its shape, found 12"),
        ({"x.npy": header((-2,)) + bytes(8)}, "must have -8 bytes|cannot be read"),
        ({"x.npy": header((1 << 62, 8)) + bytes(8)}, "found 8"),
        ({"x.npy": header((2,), "|O") + bytes(16)}, "must contain numbers, found Python objects"),
        ({"x.npy": header((2,), "<U2") + bytes(16)}, "cannot be read"),
        ({"x.npy": b"\x93NUMPY\x07\x00" + bytes(100)}, "must have version 1 or 2"),
        ({"x.npy": b"nothing"}, "cannot be read"),
        ({"x": header((2,)) + bytes(8), "x.npy": header((2,)) + bytes(8)}, "two arrays have the same name"),
        ({"folder/": b""}, "cannot be read"),
        ({"x.npy": header((2,), "<c8") + b"\xff" * 16}, "must not contain nan"),
        ({"x.npy": header((2,), "<u4") + bytes(8)}, "has type torch.uint32. Convert it"),
        ({"x.npy": header((2,), "<m8[s]") + bytes(16)}, "cannot be read"),
    ],
)
def test_arrays_that_lie_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CalibrationError, match=message):
        read_array_batches(tmp_path / "x.npz")


def test_arrays_in_the_order_of_fortran_are_read(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez_compressed(tmp_path / "x.npz", array)
    assert read_array_batches(tmp_path / "x.npz")[0][0].tolist() == array.tolist()


def test_infinities_serve_as_masks(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.full((2, 2), -np.inf, np.float32))
    assert len(read_array_batches(tmp_path / "x.npz")) == 1


# Tokenizers and code


def test_a_tokenizer_that_panics_is_an_error(tmp_path: Path) -> None:
    def panic(text: str) -> Any:
        raise PanicException(text)

    with pytest.raises(CalibrationError, match="The tokenizer cannot read the text for calibration: abc"):
        make_text_batches(panic, "abc", 1, 1)
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    for text in ("", "{}", "[" * 100_000, '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [1]}}'):
        (tmp_path / "tokenizer.json").write_text(text, "utf-8")
        with pytest.raises(ModelLoadError, match="transformers cannot read a tokenizer"):
            load_tokenizer(tmp_path)


def test_weights_that_the_model_does_not_use_are_named(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "vocab_size": 8}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_hidden_layers=2)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}), "utf-8")
    with pytest.warns(UserWarning, match=r"has 9 tensors that LlamaForCausalLM does not use .*'model.layers.1.mlp"):
        load_trained(str(tmp_path))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    for kind in ("bert", "gpt2", "llama"):  # of the first two, transformers makes up a tokenizer that knows no word
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
        with pytest.raises(
            ModelLoadError, match=r"cannot read a tokenizer .* or pass inputs as a .npz or .safetensors"
        ):
            load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), "utf-8")
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nrose\n", "utf-8")
    assert "rose" in load_tokenizer(tmp_path).get_vocab()


def test_code_that_leaves_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_nets.py").write_text("import sys\ndef build():\n    sys.exit(0)\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match=r"raised SystemExit: 0 \(leaving_nets.py, line 3\)"):
        load_model("leaving_nets:build")
