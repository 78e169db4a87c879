"""A text classification task from texts in scikit-learn, and a tiny BERT for it."""

import re
from functools import cache
from zlib import crc32

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

__all__ = ["TINY", "load_sentences", "make_bert"]

WORDS = 256
LENGTH = 8

TINY = BertConfig(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    vocab_size=WORDS,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


@cache
def load_sentences() -> list[dict[str, torch.Tensor]]:
    """Runs of words from the descriptions of two data sets, each labelled with its data set; words are hashed."""
    from sklearn.datasets import load_breast_cancer, load_wine

    rows = []
    for label, load in enumerate((load_wine, load_breast_cancer)):
        words = re.findall(r"[a-z]+", load().DESCR.lower())
        for start in range(0, 32 * LENGTH, LENGTH):
            ids = [crc32(word.encode()) % WORDS for word in words[start : start + LENGTH]]
            rows.append({"input_ids": torch.tensor(ids), "labels": torch.tensor(label)})
    return [rows[index] for index in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def make_bert(seed: int = 0, config: BertConfig = TINY) -> nn.Module:
    torch.manual_seed(seed)
    return BertForSequenceClassification(config)
