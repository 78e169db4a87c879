"""Prune small models on real data, in two minutes on a laptop: ``secateur demo``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding

from secateur._packages import KERAS_BACKENDS, get_install_command, get_keras_backend, is_installed
from secateur._progress import ProgressDisplay
from secateur.demo.digits import Digits, DigitsResult, Hyperparameters, PruningSetting, prune_all
from secateur.demo.files import SAVED_SETTING, make_folder, make_loading_code, write_files
from secateur.demo.language import (
    INSTALL_COMMAND,
    PATTERN,
    REQUIRED_PACKAGES,
    LanguageModel,
    LanguageResults,
    SolverResult,
    compute_perplexity,
    prune_with_solver,
    select_windows,
)
from secateur.demo.language import PACKAGE as LANGUAGE_PACKAGE
from secateur.demo.scale import FULL, QUICK, Scale
from secateur.demo.sentences import (
    PACKAGE,
    EmbeddingComparison,
    Encoder,
    compare_embeddings,
    compute_unrelated_cosine,
    load_english_sentences,
)
from secateur.demo.sentences import SETTINGS as SENTENCE_SETTINGS
from secateur.demo.tables import (
    DigitsResults,
    group_results,
    make_digits_table,
    make_language_table,
    make_sentences_table,
)
from secateur.demo.text import load_held_out_text
from secateur.demo.torch_digits import TorchDigits
from secateur.models.calibration import read_python_documentation

__all__ = ["run_demo"]

INSTALL_HINT = f"{get_install_command('demo')} installs it."

QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""Environment variables that keep TensorFlow's messages out of the tables.

oneDNN logs at every level, and does not make small networks faster.
"""


def run_demo(
    out: Path, seeds: int | None, console: Console, hyperparameters: Hyperparameters | None = None, scale: Scale = QUICK
) -> None:
    """Prune models, print how accurate they are before and after, and save the pruned ones.

    Args:
        out: Folder to write to; created if it does not exist.
        seeds: Number of seeds per row of a table, ≥ 1; ``None``: that of the scale.
        console: Where tables go, and in terminals progress bars.
        hyperparameters: How to train the small networks; ``None``: the defaults of each framework.
        scale: The scale of the demo.

    Raises:
        ConfigError: The folder cannot be created.
    """
    start = time.perf_counter()
    make_folder(out)
    seeds = scale.seeds if seeds is None else seeds
    comparisons = _run_sentences(console)  # first, because it takes seconds
    torch_results = _run_digits(TorchDigits, hyperparameters or Hyperparameters(), seeds, console, scale.torch_settings)
    keras_results = _run_keras_digits(hyperparameters, seeds, console, scale.keras_settings)
    language = _run_language_model(console, scale=scale)
    artifacts, report = write_files(out, torch_results, keras_results, comparisons, language)
    console.print(
        f"Saved, {SAVED_SETTING.pattern} at {SAVED_SETTING.target_sparsity:.0%}, first seed:",
        style="bold",
        highlight=False,
    )
    for artifact in artifacts.values():
        sizes = f"{artifact.packed_bytes:,} bytes of weights instead of {artifact.dense_bytes:,}"
        console.print(f"  {artifact.title}  {sizes}", highlight=False, soft_wrap=True)
    console.print(f"  {report}  all numbers\n", highlight=False, soft_wrap=True)
    console.print("To load them in Python:", style="bold", highlight=False)
    for line in make_loading_code(out, artifacts):
        console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"\nTo see their zeros: secateur inspect {next(iter(artifacts.values())).title}", highlight=False)
    more = "" if scale == FULL else " secateur demo --full does more: all patterns and solvers, three seeds."
    console.print(f"Finished in {time.perf_counter() - start:.0f} seconds.{more}", highlight=False)


def _run_digits(
    framework: type[Digits],
    hyperparameters: Hyperparameters,
    seeds: int,
    console: Console,
    settings: tuple[PruningSetting, ...] | None = None,
) -> DigitsResults:
    settings = framework.settings if settings is None else settings
    epochs = hyperparameters.dense_epochs + (1 + len(settings)) * hyperparameters.tuning_epochs
    seed_results: list[DigitsResult] = []
    with _show_progress(console) as display:
        digits = framework(hyperparameters, on_epoch=lambda: display.advance())
        for net in framework.nets:
            for seed in range(seeds):
                display.begin(f"Digits in {digits.framework}: {net}, seed {seed + 1} of {seeds}, epochs", total=epochs)
                seed_results += prune_all(digits, net, seed, settings)
    results = DigitsResults(digits, group_results(seed_results))
    console.print(Padding(make_digits_table(results), (0, 0, 1, 0)))
    return results


def _run_keras_digits(
    hyperparameters: Hyperparameters | None,
    seeds: int,
    console: Console,
    settings: tuple[PruningSetting, ...] | None = None,
) -> DigitsResults | None:
    part, backend = "Digits in Keras", _choose_keras_backend()
    for package in ("keras", backend):
        if not is_installed(package):
            _print_skipped(part, f"the package {package!r} is missing. {INSTALL_HINT}", console)
            return None
    if backend not in KERAS_BACKENDS:
        names = " or ".join(KERAS_BACKENDS)
        _print_skipped(part, f"Keras cannot train on the backend {backend!r}. Set KERAS_BACKEND to {names}.", console)
        return None
    # Keras reads KERAS_BACKEND when it is imported, and TensorFlow, which Keras imports if it is installed, the others.
    os.environ["KERAS_BACKEND"] = backend
    for variable, value in QUIET_TENSORFLOW.items():
        os.environ.setdefault(variable, value)
    from secateur.demo.keras_digits import HYPERPARAMETERS, KerasDigits

    return _run_digits(KerasDigits, hyperparameters or HYPERPARAMETERS, seeds, console, settings)


def _choose_keras_backend() -> str:
    """Choose the configured Keras backend, else the first that is installed, else that of the demo extra."""
    return next((name for name in (get_keras_backend(), *KERAS_BACKENDS) if is_installed(name)), "torch")


def _run_sentences(
    console: Console,
    load_encoder: Callable[[], Encoder] = Encoder,
    sentences: list[str] | None = None,
    settings: tuple[PruningSetting, ...] = SENTENCE_SETTINGS,
) -> Sequence[EmbeddingComparison]:
    for package in ("transformers", PACKAGE):
        if not is_installed(package):
            _print_skipped("Sentence encoder", f"the package {package!r} is missing. {INSTALL_HINT}", console)
            return ()
    comparisons = []
    with _show_progress(console) as display:
        display.begin("MiniLM-L6: pruning in one shot", total=len(settings) + 1)
        encoder, sentences = load_encoder(), sentences or load_english_sentences()
        unrelated_cosine = compute_unrelated_cosine(encoder.embed(sentences))
        display.advance()
        for comparison in compare_embeddings(encoder, sentences, settings):
            comparisons.append(comparison)
            display.advance()
    console.print(Padding(make_sentences_table(comparisons, len(sentences), unrelated_cosine), (0, 0, 1, 0)))
    return comparisons


def _run_language_model(
    console: Console, load_model: Callable[[], LanguageModel] = LanguageModel, scale: Scale = FULL
) -> LanguageResults | None:
    for package in (*REQUIRED_PACKAGES, LANGUAGE_PACKAGE):
        if not is_installed(package):
            hint = f"{INSTALL_COMMAND} installs it." if package == LANGUAGE_PACKAGE else INSTALL_HINT
            _print_skipped("Language model", f"the package {package!r} is missing. {hint}", console)
            return None
    results: list[SolverResult] = []
    with _show_progress(console) as display:
        display.begin("SmolLM2: loading the model")
        language_model = load_model()
        texts = language_model.split_windows(read_python_documentation())
        calibration = select_windows(texts, scale.calibration_windows)
        held_out = language_model.split_windows(load_held_out_text())[: scale.held_out_windows]
        display.begin("SmolLM2: perplexity of the dense model")
        dense_perplexity = compute_perplexity(language_model.model, held_out)
        for number, solver in enumerate(scale.solvers, start=1):
            display.begin(f"SmolLM2: {PATTERN} by {solver}, {number} of {len(scale.solvers)}")
            results.append(prune_with_solver(language_model.model, solver, calibration, held_out, display.show_part))
    language_results = LanguageResults(
        calibration_windows=len(calibration),
        held_out_windows=len(held_out),
        dense_perplexity=dense_perplexity,
        solvers=tuple(results),
    )
    console.print(Padding(make_language_table(language_results), (0, 0, 1, 0)))
    return language_results


def _print_skipped(part: str, reason: str, console: Console) -> None:
    console.print(f"{part}: skipped, {reason}\n", highlight=False, markup=False, soft_wrap=True)


def _show_progress(console: Console) -> ProgressDisplay:
    """Show progress bars between the tables in a terminal; elsewhere, print lines to standard error."""
    return ProgressDisplay(console if console.is_terminal else None)
