"""The demo's results for a person and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from secateur._table import Table
from secateur.demo.digits import Case, Digits, Run
from secateur.demo.language import PATTERN, WINDOW, LanguageStudy
from secateur.demo.sentences import Comparison

__all__ = ["Row", "Study", "digits_table", "language_table", "rows", "sentences_table"]


@dataclass(frozen=True, slots=True)
class Row:
    """One network pruned in one way, over all seeds.

    Attributes:
        net: The network's name.
        case: What was pruned.
        runs: One per seed.
    """

    net: str
    case: Case
    runs: tuple[Run, ...]

    @property
    def dense(self) -> list[float]:
        """Accuracy of the dense network, per seed."""
        return [run.dense_accuracy for run in self.runs]

    @property
    def pruned(self) -> list[float]:
        """Accuracy of the pruned network, per seed."""
        return [run.accuracy for run in self.runs]

    @property
    def points(self) -> float:
        """Mean accuracy pruned minus dense, in percentage points."""
        return 100 * (mean(self.pruned) - mean(self.dense))

    @property
    def unit_sparsity(self) -> float:
        """Share of units pruned, the mean over seeds."""
        return mean(run.report.unit_sparsity for run in self.runs)

    @property
    def sparsity(self) -> float:
        """Share of weights pruned, the mean over seeds."""
        return mean(run.report.sparsity for run in self.runs)

    @property
    def seconds(self) -> float:
        """Time of a fine-tuning, the mean over seeds."""
        return mean(run.seconds for run in self.runs)

    def cells(self) -> tuple[str, ...]:
        """The row as a person reads it."""
        return (
            self.net,
            self.case.pattern,
            f"{self.case.target:.0%}",
            f"{self.sparsity:.2%}",
            _with_spread(self.dense),
            _with_spread(self.pruned),
            f"{self.points:+.2f}",
            f"{self.seconds:.1f} s",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        return {
            "net": self.net,
            "pattern": self.case.pattern,
            "target": self.case.target,
            "unit_sparsity": self.unit_sparsity,
            "sparsity": self.sparsity,
            "seeds": [run.seed for run in self.runs],
            "dense_accuracy": self.dense,
            "accuracy": self.pruned,
            "points": self.points,
            "seconds": self.seconds,
        }


def rows(runs: Sequence[Run]) -> list[Row]:
    """Runs of one network and case together, in the order in which they first appear."""
    groups: dict[tuple[str, Case], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.net, run.case), []).append(run)
    return [Row(net, case, tuple(members)) for (net, case), members in groups.items()]


@dataclass(frozen=True, slots=True)
class Study:
    """What was found in one framework.

    Attributes:
        digits: How it trained and tested.
        rows: At least one.
    """

    digits: Digits
    rows: Sequence[Row]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for machines."""
        found = {"training": asdict(self.digits.recipe), "digits": [row.to_dict() for row in self.rows]}
        return self.digits.software() | found


def digits_table(study: Study) -> Table:
    """Networks before and after pruning."""
    digits, recipe, seeds = study.digits, study.digits.recipe, len(study.rows[0].runs)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return Table(
        title=f"Digits in {digits.framework}: accuracy on {len(digits.test_images)} test images, in %",
        columns=("net", "pattern", ">asked", ">weights", ">dense", ">pruned", ">points", ">time"),
        rows=[row.cells() for row in study.rows],
        footer=[
            f"Accuracy: {spread}. Both columns start from the same network, trained for {recipe.dense_epochs} epochs, "
            f"and train for {recipe.tuning_epochs} more: dense without pruning, pruned with it.",
            "asked: share of the units to prune; exactly as many are. weights: the share of weights in them. Channels "
            "differ in size, so half of them is not half of the weights. The output layer stays dense; under 2:4 the "
            "first convolution too, as its one input channel is no group of four.",
        ],
    )


def sentences_table(found: Sequence[Comparison], count: int, yardstick: float) -> Table:
    """Embeddings before and after pruning."""
    return Table(
        title=f"MiniLM-L6: how far pruning moves the embeddings of {count} sentences",
        columns=("pattern", ">asked", ">weights", ">cosine, mean", ">worst", ">time"),
        rows=[
            (
                comparison.case.pattern,
                f"{comparison.case.target:.0%}",
                f"{comparison.report.sparsity:.2%}",
                f"{comparison.mean:.3f}",
                f"{comparison.worst:.3f}",
                f"{comparison.seconds:.1f} s",
            )
            for comparison in found
        ],
        footer=[
            "Cosine similarity of each sentence's embedding before and after: 1 is unmoved, and two different "
            f"sentences are at {yardstick:.3f} on average.",
            "The smallest weights go in one shot, and nothing is trained or repaired afterwards.",
        ],
    )


def language_table(study: LanguageStudy) -> Table:
    """A language model before and after pruning, by solver."""
    seen, held_out = WINDOW * study.calibration_windows, WINDOW * study.held_out_windows
    return Table(
        title=f"SmolLM2-135M-Instruct: {PATTERN} without any training, by solver",
        columns=("solver", ">weights", ">perplexity", ">in the solver", ">time"),
        rows=[
            ("none: dense", "", f"{study.dense_perplexity:.2f}", "", ""),
            *(
                (
                    solved.solver,
                    f"{solved.sparsity:.2%}",
                    f"{solved.perplexity:.2f}",
                    f"{solved.solver_seconds:.1f} s",
                    f"{solved.seconds:.1f} s",
                )
                for solved in study.solved
            ),
        ],
        footer=[
            "Perplexity: among how many equally likely tokens the model would have to guess the next one; lower is "
            f"better. On {held_out:,} tokens of scikit-learn's descriptions of its data sets, which no solver sees.",
            "magnitude keeps the largest weights and looks at no text; wanda weighs them by the size of their inputs; "
            "sparsegpt and alps also change those they keep, to make up for the others. Nothing is trained.",
            "weights: share pruned of all linear layers but the output layer. time: of the pruning in all; beside the "
            f"solver, that is the model running on {seen:,} tokens of Python's own documentation.",
        ],
    )


def _with_spread(accuracies: Sequence[float]) -> str:
    percent = [100 * accuracy for accuracy in accuracies]
    return f"{mean(percent):.2f}" + (f" ± {stdev(percent):.2f}" if len(percent) > 1 else "")
