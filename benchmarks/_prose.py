"""English prose to calibrate on and to measure perplexity on, the same on every machine that has gensim.

One mixture: articles of the English Wikipedia and news stories (Lee's corpus) take turns. Both are test data of gensim,
which is located, never imported. Neighbouring documents go to different sides, so no document is on both, and one that
repeats an earlier document, as news agencies do, is on none.
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

__all__ = ["calibration_tokens", "documents", "held_out_tokens", "perplexity"]

WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"
EXTRACT = 2_500
"""Characters that one document gives at most, so that a calibration set holds dozens of documents."""

PARAGRAPH = 150
"""Characters below which a line of an article is taken for a heading, a caption or an item of a list."""

REPEAT = 12
"""Words in a row that make a document a repetition of an earlier one."""

PAGE = re.compile(r"<text xml:space=\"preserve\">(.*?)</text>", re.DOTALL)
ONCE = [
    (r"<!--.*?-->", ""),
    (r"<ref[^<>]*/>", ""),
    (r"<(ref|math|gallery|code|pre|blockquote|timeline)\b[^<>]*>.*?</\1>", ""),
    (r"<[^<>]*>", ""),
    (r"\{\{convert\|([^|{}]+)\|([^|{}]+)[^{}]*\}\}", r"\1 \2"),
]
"""Markup that does not nest, and what replaces it."""

NESTED = [
    (r"\{\{[^{}]*\}\}", ""),  # templates
    (r"\{\|(?:(?!\{\|).)*?\|\}", ""),  # tables
    (r"\[\[(?:File|Image|Category):[^\[\]]*\]\]", ""),
    (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),  # links, by the text they show
]
"""Markup that nests: the innermost goes first, until nothing is left."""

LAST = [
    (r"\[(?:https?:)?//[^\s\]]*\s*([^\]]*)\]", r"\1"),
    (r"'{2,}", ""),
    (r"\([\s;,:]*\)", ""),
    (r"\(\s*[;,:]\s*", "("),
    (r"[ \t\xa0]+", " "),
    (r" ([,.;:)])", r"\1"),
]
"""What is left to tidy once the nested markup is gone."""


def calibration_tokens(tokenizer: PreTrainedTokenizerBase, count: int = 32, length: int = 512) -> torch.Tensor:
    """Windows of the documents for calibration, joined; int64 of shape (count, length)."""
    return _windows(tokenizer, "calibration", count, length)


def held_out_tokens(tokenizer: PreTrainedTokenizerBase, count: int = 32, length: int = 512) -> torch.Tensor:
    """Windows of the documents that no calibration sees, joined; int64 of shape (count, length)."""
    return _windows(tokenizer, "held out", count, length)


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: torch.Tensor) -> float:
    """Exponential of the mean loss per predicted token; every window starts without context and runs on its own."""
    losses = 0.0
    for window in tokens:
        logits = model(window[None].to(model.device), use_cache=False).logits[0, :-1]
        losses += cross_entropy(logits.float(), window[1:].to(logits.device), reduction="sum").item()
    return math.exp(losses / (len(tokens) * (tokens.shape[1] - 1)))


@lru_cache
def documents(side: Literal["calibration", "held out"]) -> tuple[str, ...]:
    """The documents of one side: an article, a story, an article, and so on, then what is left of the longer list."""
    folder = _folder()
    first = ("calibration", "held out").index(side)
    kinds = _articles(folder / WIKIPEDIA), _stories(folder / NEWS)
    mine = [_without_repetitions(kind)[first::2] for kind in kinds]
    return tuple(text for text in chain.from_iterable(zip_longest(*mine)) if text is not None)


def _windows(
    tokenizer: PreTrainedTokenizerBase, side: Literal["calibration", "held out"], count: int, length: int
) -> torch.Tensor:
    tokens: list[int] = []
    for text in documents(side):
        tokens += tokenizer(f"{text}\n\n", add_special_tokens=False)["input_ids"]
        if len(tokens) >= count * length:
            return torch.tensor(tokens[: count * length]).reshape(count, length)
    raise ValueError(f"{count} windows of {length} tokens were asked; the {side} side has {len(tokens):,} tokens.")


def _folder() -> Path:
    """Where gensim keeps its test data."""
    found = find_spec("gensim")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("gensim is not installed, and brings the prose: pip install --no-deps gensim==4.4.0")
    return Path(found.submodule_search_locations[0], "test", "test_data")


def _articles(path: Path) -> list[str]:
    """Extracts of the articles that are more than a redirection, in the order of the dump."""
    dump = bz2.decompress(path.read_bytes()).decode()
    return [text for page in PAGE.findall(dump) if (text := _extract(_plain(html.unescape(page))))]


def _stories(path: Path) -> list[str]:
    """Extracts of the stories, one per line of the file."""
    return [text for line in path.read_text(encoding="utf-8").splitlines() if (text := _extract(line))]


def _without_repetitions(texts: list[str]) -> list[str]:
    """The documents that share no run of words with one kept before."""
    seen: set[str] = set()
    kept: list[str] = []
    for text in texts:
        words = text.split()
        runs = {" ".join(words[start : start + REPEAT]) for start in range(len(words) - REPEAT + 1)}
        if seen.isdisjoint(runs):
            kept.append(text)
            seen |= runs
    return kept


def _plain(markup: str) -> str:
    """An article without wiki markup: paragraphs, and lines that are none."""
    for pattern, shown in ONCE:
        markup = re.sub(pattern, shown, markup, flags=re.DOTALL | re.IGNORECASE)
    changed = 1
    while changed:
        changed = 0
        for pattern, shown in NESTED:
            markup, found = re.subn(pattern, shown, markup, flags=re.DOTALL | re.IGNORECASE)
            changed += found
    for pattern, shown in LAST:
        markup = re.sub(pattern, shown, markup)
    return html.unescape(markup)


def _extract(text: str) -> str:
    """The first whole paragraphs, sentences where one paragraph is too long; empty where there is no prose."""
    kept: list[str] = []
    for line in text.splitlines():
        paragraph = line.strip()
        if len(paragraph) < PARAGRAPH or not (paragraph[0].isalnum() or paragraph[0] in "\"'"):
            continue
        kept.append(paragraph)
        if sum(map(len, kept)) > EXTRACT:
            break
    prose = "\n\n".join(kept)
    if len(prose) <= EXTRACT:
        return prose
    end = prose.rfind(". ", 0, EXTRACT)
    return prose[: end + 1] if end >= 0 else ""
