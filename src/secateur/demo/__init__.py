"""The main job on real data, in a few minutes on a laptop: ``secateur demo``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from secateur._packages import KERAS_BACKENDS, get_keras_backend, is_installed
from secateur.demo.digits import Case, Digits, Recipe, Run, prune_all
from secateur.demo.files import SAVED, make_folder, write_files
from secateur.demo.language import (
    INSTALL,
    PATTERN,
    READERS,
    SOLVERS,
    LanguageModel,
    LanguageStudy,
    Solved,
    perplexity,
    select_windows,
    solve,
)
from secateur.demo.language import PACKAGE as LANGUAGE_PACKAGE
from secateur.demo.sentences import CASES as SENTENCE_CASES
from secateur.demo.sentences import (
    PACKAGE,
    Comparison,
    Encoder,
    compare,
    compute_unrelated_cosine,
    load_english_sentences,
)
from secateur.demo.tables import Study, digits_table, language_table, rows, sentences_table
from secateur.demo.text import load_held_out_text
from secateur.demo.torch_digits import TorchDigits
from secateur.models.calibration import read_python_documentation
from secateur.oneshot.execution import Progress as Part

__all__ = ["run_demo"]

HINT = 'pip install "secateur[demo]" brings it.'

QUIET_TENSORFLOW = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
"""What keeps its notes out of the tables. oneDNN announces itself at any level, and is no gain for small networks."""


def run_demo(out: Path, seeds: int, console: Console, recipe: Recipe | None = None) -> None:
    """Prune networks, print what it costs them, and write the pruned ones.

    Args:
        out: Folder to write to; made if need be.
        seeds: Starts per row of a table, ≥ 1.
        console: Where tables and progress bars go.
        recipe: How the small networks are trained; ``None``: as suits each framework.

    Raises:
        ConfigError: The folder cannot be made.
    """
    start = time.perf_counter()
    make_folder(out)
    found = _study(TorchDigits, Recipe() if recipe is None else recipe, seeds, console)
    found_in_keras = _keras_study(recipe, seeds, console)
    comparisons = _sentences(console)
    language = _language(console)
    saved, numbers = write_files(out, found, found_in_keras, comparisons, language)
    console.print(f"Written, {SAVED.pattern} at {SAVED.target:.0%}, first seed:", style="bold", highlight=False)
    for artifact in saved:
        sizes = f"{artifact.packed_bytes:,} bytes of weights instead of {artifact.dense_bytes:,}"
        console.print(f"  {artifact.title}  {sizes}", highlight=False, soft_wrap=True)
    console.print(f"  {numbers}  all numbers", highlight=False, soft_wrap=True)
    console.print("Load them with secateur.load, look into them with: secateur inspect FOLDER", highlight=False)
    console.print(f"All in {time.perf_counter() - start:.0f} seconds.", highlight=False)


def _study(framework: type[Digits], recipe: Recipe, seeds: int, console: Console) -> Study:
    epochs = recipe.dense_epochs + (1 + len(framework.cases)) * recipe.tuning_epochs
    runs: list[Run] = []
    with _progress(console) as progress:
        task = progress.add_task("", total=len(framework.nets) * seeds * epochs)
        digits = framework(recipe, on_epoch=lambda: progress.advance(task))
        for net in framework.nets:
            for seed in range(seeds):
                progress.update(task, description=f"Digits in {digits.framework}: {net}, seed {seed + 1} of {seeds}")
                runs += prune_all(digits, net, seed)
    study = Study(digits, rows(runs))
    console.print(Padding(digits_table(study), (0, 0, 1, 0)))
    return study


def _keras_study(recipe: Recipe | None, seeds: int, console: Console) -> Study | None:
    part, backend = "Digits in Keras", _backend_at_hand()
    for package in ("keras", backend):
        if not is_installed(package):
            _skip(part, f"the package {package!r} is missing. {HINT}", console)
            return None
    if backend not in KERAS_BACKENDS:
        trained = " or ".join(KERAS_BACKENDS)
        _skip(part, f"Keras cannot train on the backend {backend!r}. Set KERAS_BACKEND to {trained}.", console)
        return None
    # Keras reads the first when it is imported; TensorFlow, which it imports wherever there is one, the others.
    os.environ["KERAS_BACKEND"] = backend
    for variable, quiet in QUIET_TENSORFLOW.items():
        os.environ.setdefault(variable, quiet)
    from secateur.demo.keras_digits import RECIPE, KerasDigits

    return _study(KerasDigits, RECIPE if recipe is None else recipe, seeds, console)


def _backend_at_hand() -> str:
    """The backend that Keras is set to, or the first that is installed; with none, the one that the demo brings."""
    return next((name for name in (get_keras_backend(), *KERAS_BACKENDS) if is_installed(name)), "torch")


def _sentences(
    console: Console,
    load_encoder: Callable[[], Encoder] = Encoder,
    sentences: list[str] | None = None,
    cases: tuple[Case, ...] = SENTENCE_CASES,
) -> Sequence[Comparison]:
    for package in ("transformers", PACKAGE):
        if not is_installed(package):
            _skip("Sentence encoder", f"the package {package!r} is missing. {HINT}", console)
            return ()
    comparisons = []
    with _progress(console) as progress:
        task = progress.add_task("MiniLM-L6: pruning in one shot", total=len(cases) + 1)
        encoder, sentences = load_encoder(), sentences or load_english_sentences()
        yardstick = compute_unrelated_cosine(encoder.embed(sentences))
        progress.advance(task)
        for comparison in compare(encoder, sentences, cases):
            comparisons.append(comparison)
            progress.advance(task)
    console.print(Padding(sentences_table(comparisons, len(sentences), yardstick), (0, 0, 1, 0)))
    return comparisons


def _language(console: Console, load_model: Callable[[], LanguageModel] = LanguageModel) -> LanguageStudy | None:
    for package in (*READERS, LANGUAGE_PACKAGE):
        if not is_installed(package):
            hint = f"{INSTALL} brings it." if package == LANGUAGE_PACKAGE else HINT
            _skip("Language model", f"the package {package!r} is missing. {hint}", console)
            return None
    solved: list[Solved] = []
    with _progress(console) as progress:
        task = progress.add_task("SmolLM2: reading the model", total=None)
        reader = load_model()
        seen, held_out = (
            select_windows(reader.windows(read_python_documentation())),
            reader.windows(load_held_out_text()),
        )
        dense_perplexity = perplexity(reader.model, held_out)

        def advance(part: Part) -> None:
            progress.update(task, completed=part.done, total=part.total)

        for number, solver in enumerate(SOLVERS, start=1):
            description = f"SmolLM2: {PATTERN} by {solver}, {number} of {len(SOLVERS)}"
            progress.reset(task, description=description, total=None)
            solved.append(solve(reader.model, solver, seen, held_out, advance))
    study = LanguageStudy(
        calibration_windows=len(seen),
        held_out_windows=len(held_out),
        dense_perplexity=dense_perplexity,
        solved=tuple(solved),
    )
    console.print(Padding(language_table(study), (0, 0, 1, 0)))
    return study


def _skip(part: str, reason: str, console: Console) -> None:
    console.print(f"{part}: skipped, {reason}\n", highlight=False, markup=False, soft_wrap=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
