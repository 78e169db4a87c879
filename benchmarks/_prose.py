"""Read English prose for calibration and evaluation, the same on every machine with gensim.

Articles of the English Wikipedia alternate with news stories (Lee's corpus). Both are test data of gensim, whose files
are read without importing it. Documents go to the calibration set and the held-out set in turn, so no document is in
both. A document that repeats an earlier one, which is common in news, is in neither.
"""

from __future__ import annotations

import bz2
import html
import math
import re
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["compute_perplexity", "read_calibration_tokens", "read_documents", "read_held_out_tokens"]

WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"
MAX_CHARACTERS = 2_500
"""Maximum number of characters per document, so that a calibration set contains dozens of documents."""

MIN_PARAGRAPH = 150
"""Minimum number of characters of a paragraph; shorter lines are headings, captions or list items."""

REPEATED_WORDS = 12
"""Number of consecutive words that mark a document as a repetition of an earlier one."""

PAGE = re.compile(r"<text xml:space=\"preserve\">(.*?)</text>", re.DOTALL)
FLAT_MARKUP = [
    (r"<!--.*?-->", ""),
    (r"<ref[^<>]*/>", ""),
    (r"<(ref|math|gallery|code|pre|blockquote|timeline)\b[^<>]*>.*?</\1>", ""),
    (r"<[^<>]*>", ""),
    (r"\{\{convert\|([^|{}]+)\|([^|{}]+)[^{}]*\}\}", r"\1 \2"),
]
"""Patterns of markup that does not nest, with their replacements."""

NESTED_MARKUP = [
    (r"\{\{[^{}]*\}\}", ""),  # templates
    (r"\{\|(?:(?!\{\|).)*?\|\}", ""),  # tables
    (r"\[\[(?:File|Image|Category):[^\[\]]*\]\]", ""),
    (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),  # links, replaced by their text
]
"""Patterns of markup that nests, with their replacements; applied from the inside out until nothing matches."""

CLEANUP = [
    (r"\[(?:https?:)?//[^\s\]]*\s*([^\]]*)\]", r"\1"),
    (r"'{2,}", ""),
    (r"\([\s;,:]*\)", ""),
    (r"\(\s*[;,:]\s*", "("),
    (r"[ \t\xa0]+", " "),
    (r" ([,.;:)])", r"\1"),
]
"""Patterns to clean up after the nested markup is removed, with their replacements."""


def read_calibration_tokens(tokenizer: PreTrainedTokenizerBase, count: int = 32, length: int = 512) -> torch.Tensor:
    """Return token windows of the calibration set; int64 of shape (count, length)."""
    return _make_windows(tokenizer, "calibration", count, length)


def read_held_out_tokens(tokenizer: PreTrainedTokenizerBase, count: int = 32, length: int = 512) -> torch.Tensor:
    """Return token windows of the held-out set; int64 of shape (count, length)."""
    return _make_windows(tokenizer, "held out", count, length)


@torch.no_grad()
def compute_perplexity(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Compute the exponential of the mean loss per predicted token. Each window starts without context."""
    losses = 0.0
    for window in tokens:
        logits = model(window[None].to(model.device), use_cache=False).logits[0, :-1]
        losses += cross_entropy(logits.float(), window[1:].to(logits.device), reduction="sum").item()
    return math.exp(losses / (len(tokens) * (tokens.shape[1] - 1)))


@lru_cache
def read_documents(side: Literal["calibration", "held out"]) -> tuple[str, ...]:
    """Return the documents of one set: articles and stories in turn, then the rest of the longer list."""
    folder = _find_test_data()
    first = ("calibration", "held out").index(side)
    kinds = _read_articles(folder / WIKIPEDIA), _read_stories(folder / NEWS)
    members = [_drop_repetitions(kind)[first::2] for kind in kinds]
    return tuple(text for text in chain.from_iterable(zip_longest(*members)) if text is not None)


def _make_windows(
    tokenizer: PreTrainedTokenizerBase, side: Literal["calibration", "held out"], count: int, length: int
) -> torch.Tensor:
    tokens: list[int] = []
    for text in read_documents(side):
        tokens += tokenizer(f"{text}\n\n", add_special_tokens=False)["input_ids"]
        if len(tokens) >= count * length:
            return torch.tensor(tokens[: count * length]).reshape(count, length)
    raise ValueError(
        f"The {side} set has {len(tokens):,} tokens, which is too few for {count} windows of {length} tokens."
    )


def _find_test_data() -> Path:
    """Return the folder of gensim's test data."""
    spec = find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("gensim, which contains the texts, is not installed: pip install --no-deps gensim==4.4.0")
    return Path(spec.submodule_search_locations[0], "test", "test_data")


def _read_articles(path: Path) -> list[str]:
    """Read extracts of the articles in the order of the dump, without redirects."""
    dump = bz2.decompress(path.read_bytes()).decode()
    return [text for page in PAGE.findall(dump) if (text := _extract(_remove_markup(html.unescape(page))))]


def _read_stories(path: Path) -> list[str]:
    """Read extracts of the stories, one per line of the file."""
    return [text for line in path.read_text(encoding="utf-8").splitlines() if (text := _extract(line))]


def _drop_repetitions(texts: list[str]) -> list[str]:
    """Drop the documents that share a run of words with an earlier one."""
    seen: set[str] = set()
    kept: list[str] = []
    for text in texts:
        words = text.split()
        runs = {" ".join(words[start : start + REPEATED_WORDS]) for start in range(len(words) - REPEATED_WORDS + 1)}
        if seen.isdisjoint(runs):
            kept.append(text)
            seen |= runs
    return kept


def _remove_markup(markup: str) -> str:
    """Remove the wiki markup of an article. Lines that are not paragraphs remain."""
    for pattern, replacement in FLAT_MARKUP:
        markup = re.sub(pattern, replacement, markup, flags=re.DOTALL | re.IGNORECASE)
    changed = 1
    while changed:
        changed = 0
        for pattern, replacement in NESTED_MARKUP:
            markup, count = re.subn(pattern, replacement, markup, flags=re.DOTALL | re.IGNORECASE)
            changed += count
    for pattern, replacement in CLEANUP:
        markup = re.sub(pattern, replacement, markup)
    return html.unescape(markup)


def _extract(text: str) -> str:
    """Return the first paragraphs, or sentences if a paragraph is too long; empty if there is no prose."""
    kept: list[str] = []
    for line in text.splitlines():
        paragraph = line.strip()
        if len(paragraph) < MIN_PARAGRAPH or not (paragraph[0].isalnum() or paragraph[0] in "\"'"):
            continue
        kept.append(paragraph)
        if sum(map(len, kept)) > MAX_CHARACTERS:
            break
    prose = "\n\n".join(kept)
    if len(prose) <= MAX_CHARACTERS:
        return prose
    end = prose.rfind(". ", 0, MAX_CHARACTERS)
    return prose[: end + 1] if end >= 0 else ""
