"""Analyze how much each layer of a model can lose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from secateur._progress import ProgressDisplay
from secateur.analysis.assigned_targets import assign_targets
from secateur.analysis.scan_request import ScanRequest, read_scan_request
from secateur.config import ConfigLike
from secateur.frameworks import import_leaf
from secateur.oneshot import Calibration, Execution
from secateur.results import SensitivityReport

__all__ = ["SensitivityReport", "assign_targets", "sensitivity"]


def sensitivity(
    model: Any,
    calibration: Calibration | Iterable[Any] | None = None,
    *,
    patterns: str | Iterable[str] = "1x1",
    sparsities: float | Iterable[float] = (0.25, 0.5, 0.75),
    metric: Literal["layer", "block"] | Callable[[Any], float] = "layer",
    higher_is_better: bool = False,
    solver: Any = None,
    config: ConfigLike | None = None,
    execution: Execution | None = None,
    progress: bool = False,
) -> SensitivityReport:
    """Measure what each layer loses if only this layer is pruned, for several patterns and sparsities.

    Each layer is pruned from its dense weights, while all others stay dense, without repair. The model is unchanged at
    the end, bit for bit, also after an error or Ctrl-C.

    For ``"layer"`` and ``"block"``, the calibration data runs through the torch model once, part by part. All patterns
    and sparsities of a layer are computed from the same statistics of its inputs, so more of them take little more
    time. For ``"block"``, each pruned layer runs its block once more. A function runs once per layer, pattern and
    sparsity, and twice on the dense model.

    Args:
        model: A torch module; or with a function as `metric`, also a built Keras model.
        calibration: Batches in the form that the model accepts; see `secateur.prune`. ``None``: layers are pruned by
            the configured criterion alone, and `metric` must be a function.
        patterns: Patterns of single layers, such as ``["1x1", "4x1", "2:4"]``. Layers that a pattern does not fit are
            measured with the others only.
        sparsities: Shares of the weights of a layer to prune, in (0, 1]. A pattern that cannot reach one, as 2:4
            cannot reach 0.75, is measured with the others only.
        metric: What to measure. ``"layer"``: the share of the layer's output energy that is lost,
            ``‖X (W − Ŵ)ᵀ‖² / ‖X Ŵᵀ‖²``, with dense weights Ŵ and dense inputs X. ``"block"``: the same error
            of the outputs of the block that the layer is in. A function of the model, such as its perplexity: the
            loss is how much worse the value is than that of the dense model. It runs in evaluation mode without
            gradients, and must return the same finite number for the same weights.
        higher_is_better: Whether higher values of the function are better, as of an accuracy. The default is for
            perplexities and losses.
        solver: Selects the weights to keep, and may update them: a name or an object as for `secateur.prune`. ``None``:
            ``"wanda"`` with calibration data, ``"magnitude"`` without.
        config: Which layers to measure and by which criterion, such as ``{"excluded_op_names": ["layers[.]0[.].*"]}``;
            without a pattern and a target.
        execution: The device for ``"layer"`` and ``"block"``, where inputs are stored meanwhile, and a callback for
            progress, which counts layers. The other settings must have their defaults.
        progress: Whether to show the progress on standard error.

    Returns:
        The loss of each layer with each pattern at each sparsity. ``secateur.prune(model, config, allocation=report)``
        distributes a target by it, and `secateur.analysis.assign_targets` does so for training.

    Raises:
        ConfigError: An argument is invalid, or a pattern reaches none of the sparsities.
        CalibrationError: The calibration data is missing or unusable.
        ScoreError: The metric returned something else than a finite number, or two values for the dense model.
        UnsupportedModelError: A pattern couples layers, or the model has no blocks for ``"block"``, or is a Keras model
            and the arguments are for torch models.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8)
        >>> model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 3))
        >>> batches = [torch.randn(64, 8) for _ in range(4)]
        >>> report = secateur.sensitivity(model, batches, patterns=["1x1", "2:4"])
        >>> [str(case) for case in report.cases]
        ['1x1 25%', '1x1 50%', '1x1 75%', '2:4 25%', '2:4 50%']
        >>> config = {"pattern": "1x1", "target_sparsity": 0.5}
        >>> pruned = secateur.prune(
        ...     model, config, calibration=batches, solver="wanda", allocation=report
        ... )
        >>> pruned.sparsity
        0.5
    """
    leaf = import_leaf("secateur.analysis", model)
    arguments = {"patterns": patterns, "sparsities": sparsities, "metric": metric, "config": config, "solver": solver}
    request = read_scan_request(
        arguments,
        execution,
        higher_is_better=higher_is_better,
        has_data=calibration is not None,
    )
    with _show_progress(model, request) if progress else nullcontext(request) as shown:
        report: SensitivityReport = leaf.scan(model, calibration, shown)
    return report


@contextmanager
def _show_progress(model: Any, request: ScanRequest) -> Iterator[ScanRequest]:
    """Show the progress of a scan, unless it already has a callback."""
    with ProgressDisplay() as display:
        display.begin(f"Scanning {type(model).__name__}")
        if request.execution.progress is not None:
            yield request
            return

        def show(part: Any) -> None:
            display.show_part(part, verb="Measured")

        yield replace(request, execution=replace(request.execution, progress=show))
