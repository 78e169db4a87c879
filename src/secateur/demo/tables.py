"""Show the results of the demo as tables and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from secateur._table import Table
from secateur.demo.digits import Digits, DigitsResult, PruningSetting
from secateur.demo.language import PATTERN, WINDOW, LanguageResults
from secateur.demo.sentences import EmbeddingComparison

__all__ = [
    "DigitsResults",
    "DigitsRow",
    "group_results",
    "make_digits_table",
    "make_language_table",
    "make_sentences_table",
]


@dataclass(frozen=True, slots=True)
class DigitsRow:
    """The results of one network and setting over all seeds.

    Attributes:
        net: The network's name.
        setting: What to prune, and how much.
        results: One result per seed.
    """

    net: str
    setting: PruningSetting
    results: tuple[DigitsResult, ...]

    @property
    def dense(self) -> list[float]:
        """Accuracy of the dense network, per seed."""
        return [result.dense_accuracy for result in self.results]

    @property
    def pruned(self) -> list[float]:
        """Accuracy of the pruned network, per seed."""
        return [result.accuracy for result in self.results]

    @property
    def points(self) -> float:
        """Mean accuracy after pruning minus dense, in percentage points."""
        return 100 * (mean(self.pruned) - mean(self.dense))

    @property
    def unit_sparsity(self) -> float:
        """Share of pruned units, mean over seeds."""
        return mean(result.report.unit_sparsity for result in self.results)

    @property
    def sparsity(self) -> float:
        """Share of pruned weights, mean over seeds."""
        return mean(result.report.sparsity for result in self.results)

    @property
    def seconds(self) -> float:
        """Duration of the fine-tuning, mean over seeds."""
        return mean(result.seconds for result in self.results)

    def format_cells(self) -> tuple[str, ...]:
        """Format the row for a table."""
        return (
            self.net,
            self.setting.pattern,
            f"{self.setting.target_sparsity:.0%}",
            f"{self.sparsity:.2%}",
            _format_accuracies(self.dense),
            _format_accuracies(self.pruned),
            f"{self.points:+.2f}",
            f"{self.seconds:.1f} s",
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert the row to plain values."""
        return {
            "net": self.net,
            "pattern": self.setting.pattern,
            "target": self.setting.target_sparsity,
            "unit_sparsity": self.unit_sparsity,
            "sparsity": self.sparsity,
            "seeds": [result.seed for result in self.results],
            "dense_accuracy": self.dense,
            "accuracy": self.pruned,
            "points": self.points,
            "seconds": self.seconds,
        }


def group_results(results: Sequence[DigitsResult]) -> list[DigitsRow]:
    """Group results by network and setting, in the order in which these first appear."""
    groups: dict[tuple[str, PruningSetting], list[DigitsResult]] = {}
    for result in results:
        groups.setdefault((result.net, result.setting), []).append(result)
    return [DigitsRow(net, setting, tuple(members)) for (net, setting), members in groups.items()]


@dataclass(frozen=True, slots=True)
class DigitsResults:
    """The results in one framework.

    Attributes:
        digits: What trained and tested the networks.
        rows: The rows of the table, at least one.
    """

    digits: Digits
    rows: Sequence[DigitsRow]

    def to_dict(self) -> dict[str, Any]:
        """Convert the results to plain values."""
        rows = [row.to_dict() for row in self.rows]
        return self.digits.get_versions() | {"training": asdict(self.digits.hyperparameters), "digits": rows}


def make_digits_table(results: DigitsResults) -> Table:
    """Make a table of the accuracy of networks before and after pruning."""
    digits, hyperparameters, seeds = results.digits, results.digits.hyperparameters, len(results.rows[0].results)
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return Table(
        title=f"Digits in {digits.framework}: accuracy on {len(digits.test_images)} test images, in %",
        columns=("net", "pattern", ">target", ">weights", ">dense", ">pruned", ">points", ">time"),
        rows=[row.format_cells() for row in results.rows],
        footer=[
            f"Accuracy: {spread}. Both columns start from the same network, trained for "
            f"{hyperparameters.dense_epochs} epochs, and train for {hyperparameters.tuning_epochs} more: dense without "
            f"pruning, pruned with it.",
            "target: share of units to prune, which is met exactly. weights: share of weights in these units. "
            "Channels differ in size, so half of the channels is not half of the weights. The output layer stays "
            "dense, and with 2:4 so does the first convolution: its single input channel is not a group of four.",
        ],
    )


def make_sentences_table(comparisons: Sequence[EmbeddingComparison], count: int, unrelated_cosine: float) -> Table:
    """Make a table that compares embeddings before and after pruning."""
    return Table(
        title=f"MiniLM-L6: how far pruning moves the embeddings of {count} sentences",
        columns=("pattern", ">target", ">weights", ">cosine, mean", ">worst", ">time"),
        rows=[
            (
                comparison.setting.pattern,
                f"{comparison.setting.target_sparsity:.0%}",
                f"{comparison.report.sparsity:.2%}",
                f"{comparison.mean:.3f}",
                f"{comparison.worst:.3f}",
                f"{comparison.seconds:.1f} s",
            )
            for comparison in comparisons
        ],
        footer=[
            "cosine: similarity of a sentence's embeddings before and after pruning. 1 means unchanged, and two "
            f"different sentences have {unrelated_cosine:.3f} on average.",
            "The smallest weights are pruned in one shot, without any training or correction afterwards.",
        ],
    )


def make_language_table(results: LanguageResults) -> Table:
    """Make a table of the perplexity of a language model before and after pruning, by solver."""
    calibration, held_out = WINDOW * results.calibration_windows, WINDOW * results.held_out_windows
    return Table(
        title=f"SmolLM2-135M-Instruct: {PATTERN} without any training, by solver",
        columns=("solver", ">weights", ">perplexity", ">solver time", ">total time"),
        rows=[
            ("none: dense", "", f"{results.dense_perplexity:.2f}", "", ""),
            *(
                (
                    result.solver,
                    f"{result.sparsity:.2%}",
                    f"{result.perplexity:.2f}",
                    f"{result.solver_seconds:.1f} s",
                    f"{result.seconds:.1f} s",
                )
                for result in results.solvers
            ),
        ],
        footer=[
            f"Perplexity on {held_out:,} tokens of scikit-learn's descriptions of its data sets, which no solver sees; "
            f"lower is better.",
            "magnitude keeps the largest weights and uses no calibration data; wanda multiplies weights by the norm of "
            "their inputs; sparsegpt and alps also update the remaining weights to compensate. Nothing is trained.",
            "weights: share of pruned weights in all linear layers except the output layer. total time: the solver, "
            f"and running the model on {calibration:,} tokens of Python's documentation.",
        ],
    )


def _format_accuracies(accuracies: Sequence[float]) -> str:
    percent = [100 * accuracy for accuracy in accuracies]
    return f"{mean(percent):.2f}" + (f" ± {stdev(percent):.2f}" if len(percent) > 1 else "")
