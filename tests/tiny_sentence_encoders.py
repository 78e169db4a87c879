"""A tiny model of sentence-transformers with random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

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
