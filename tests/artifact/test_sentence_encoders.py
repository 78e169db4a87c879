"""Models of sentence-transformers: what is saved loads there again, with pooling and everything else."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import secateur
from secateur.artifact import convert

sentence_transformers = pytest.importorskip("sentence_transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "to", "prune", "is", "cut"]
TEXTS = ["to prune", "to cut is to prune"]


def make_encoder(folder: Path) -> Any:
    """A tiny encoder with pooling and a projection."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    (folder / "vocab.txt").write_text("\n".join(WORDS), "utf-8")
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=16))
    bert.save_pretrained(folder / "bert")
    transformer = modules.Transformer(str(folder / "bert"), max_seq_length=12)
    pooling = modules.Pooling(16, pooling_mode="max")
    return sentence_transformers.SentenceTransformer(modules=[transformer, pooling, modules.Dense(16, 8)], device="cpu")


def test_an_encoder_is_saved_with_everything(tmp_path: Path) -> None:
    model = make_encoder(tmp_path)
    report = secateur.prune(model, {"pattern": "2:4"})
    expected = model.encode(TEXTS)
    secateur.save(model, tmp_path / "dense", report=report, dense=True)
    secateur.save(model, tmp_path / "packed", report=report)
    convert(tmp_path / "packed", tmp_path / "again", dense=True)
    for folder in ("dense", "again"):
        loaded = sentence_transformers.SentenceTransformer(str(tmp_path / folder), device="cpu")
        assert (loaded.encode(TEXTS) == expected).all()
        assert loaded.max_seq_length == 12
    assert not list((tmp_path / "packed").glob("model*"))
    row = next(row for row in secateur.verify(tmp_path / "packed", pattern="2:4").tensors if row.pattern == "2:4")
    assert row.layer in {layer.name for layer in report.layers}
    assert not row.name.startswith("0.")
    assert type(secateur.load(tmp_path / "packed")) is transformers.BertModel


def test_an_artifact_loads_into_an_encoder(tmp_path: Path) -> None:
    model = make_encoder(tmp_path)
    report = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5, "op_names": [".*query", "2.linear"]})
    assert {layer.name.rpartition(".")[2] for layer in report.layers} == {"query", "linear"}
    secateur.save(model, tmp_path / "packed", report=report)
    other = make_encoder(tmp_path)
    for tensor in other.parameters():
        tensor.data.zero_()
    secateur.load(tmp_path / "packed", other)
    assert (other.encode(TEXTS) == model.encode(TEXTS)).all()
