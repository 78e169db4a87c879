"""Models of sentence-transformers: what is saved loads there again, with pooling and everything else."""

from pathlib import Path

import transformers

import secateur
from secateur.artifact import convert
from tiny_sentence_encoders import TEXTS, make_encoder, sentence_transformers


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
