"""One-shot pruning: prune a trained model once, without an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from secateur._progress import ProgressDisplay
from secateur.config import ConfigLike
from secateur.frameworks import import_leaf
from secateur.oneshot.calibration import Calibration
from secateur.oneshot.execution import Execution, Progress
from secateur.results import PruningReport

__all__ = ["Calibration", "Execution", "Progress", "prune"]


def prune(
    model: Any,
    config: ConfigLike,
    *,
    calibration: Calibration | Iterable[Any] | None = None,
    solver: Any = "magnitude",
    refine: Any = (),
    recipe: Literal["best"] | None = None,
    minutes: float | None = None,
    allocation: Any = None,
    execution: Execution | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    example_inputs: Any = None,
    permute: bool = False,
    progress: bool = False,
) -> PruningReport:
    """Prune a model to its target sparsity in one shot, in place.

    Without calibration data, units are ranked by the weights alone. With calibration data, a solver prunes a torch
    model layer by layer so that each layer's outputs change as little as possible, and refiners repair the kept
    weights. For the patterns ``"channels"`` and ``"heads"``, it removes units with slices in several layers, group by
    group, and refiners repair the layers that read them. Later training can revive pruned weights;
    ``kind="pattern_lock"`` of `secateur.prepare` keeps them zero.
    Steps, schedules and regularizers in the configuration are ignored.

    Args:
        model: A torch module, or a built Keras model (``"magnitude"`` only).
        config: A `PruningConfig`, a plain mapping with the same keys, or a pattern such as ``"2:4"``. Its
            criterion may need gradients only with calibration data.
        calibration: Batches in the form that the model accepts. For a language model, 32 sequences of 512 tokens of
            ordinary text are enough.
        solver: ``"magnitude"`` (the configured criterion), ``"wanda"``, ``"ria"``, ``"sparsegpt"``, ``"alps"``, or a
            solver object with its own settings. For channels and heads: ``"magnitude"``, ``"wanda"``, ``"taylor"``,
            ``"fisher"``, ``"ziplm"`` or ``"osscar"``.
        refine: Refiners that repair the kept weights, in order: ``"dsnot"``, ``"swap"`` and ``"pcg"`` (layer by
            layer), or for channels and heads ``"ridge"`` and ``"bias"``; ``"block"`` (block by block), ``"distill"``
            (the whole model), refiner objects, or a list of them.
        recipe: ``"best"`` chooses the solver and the refiners: the most accurate solver of layers (``"alps"``) or of
            channels and heads (``"osscar"``), then ``"block"``, where the model has a stack of blocks, and
            ``"distill"``.
        minutes: Time limit of a recipe. Pruning itself is always completed. Half of the time goes to ``"block"``, and
            what is left at the end to ``"distill"``, for at most six passes over the data. How many steps that
            allows depends on the machine and what else it does, so equal calls give slightly different weights.
            ``None``: a fixed number of steps, with equal results. For other numbers, pass the members:
            ``solver="alps", refine=[Block(steps=20), Distill(steps=100)]``.
        allocation: How to distribute the target over layers: ``"uniform"``, ``"global"``, ``"owl"``,
            ``"sensitivity"``, the result of `secateur.sensitivity` (also without calibration data, and for Keras
            models), a trial of `secateur.search` (also without calibration data) or an allocation object;
            ``"uniform"`` or ``"global"`` for channels and heads. ``None`` follows
            ``pruning_scope``; if that is ``None`` too, the default is ``"uniform"``: every layer is pruned to the
            target.
        execution: Where and how a run with calibration data executes: device, offloading, a folder to resume from, a
            callback for progress, and whether the processes of ``torch.distributed`` share the work if it is
            initialized, as they do by default.
        loss: For torch models and criteria that need gradients, such as ``"mask_fisher"``: a function of the model's
            outputs and the batch that returns the loss. ``None``: the model returns it, as the attribute ``loss`` of
            its outputs. Gradients only rank units; nothing is trained. Solvers of channels and heads that need
            gradients also work without any loss: labels are sampled from the predictions of the model.
        example_inputs: For the patterns ``"channels"`` and ``"heads"``: one batch in the form that the model accepts;
            see `secateur.plan`. With calibration data, its first batch can serve.
        permute: Whether to reorder channels first, so that patterns such as 2:4 or 4x1 remove less important weights;
            needs a torch model and calibration data. The dense model computes the same, which is checked; see
            `secateur.permutation.permute_channels`.
        progress: Whether to show the progress on standard error: a bar in terminals, and elsewhere a line every ten
            seconds.

    Returns:
        What was pruned, per layer and in total; masks and weights are verified.

    Raises:
        SecateurError: The configuration is inconsistent or does not fit the model, its criterion needs gradients, a
            weight is ``nan``, or the calibration data is unusable. The model is unchanged in that case.

    Examples:
        >>> import torch, secateur
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> secateur.prune(model, {"pattern": "2:4"}).sparsity
        0.5
        >>> batches = [torch.randn(64, 8) for _ in range(4)]
        >>> config = {"pattern": "4x1", "target_sparsity": 0.5}
        >>> secateur.prune(model, config, calibration=batches, solver="alps").sparsity
        0.5

        With a minute of time, and more for larger models:

        >>> report = secateur.prune(
        ...     model, "2:4", calibration=batches, recipe="best", minutes=1
        ... )
        >>> [phase.name for phase in report.phases]
        ['layers and blocks', 'the outputs of the dense model', 'Distill']

        Channels and heads are removed from all layers that have slices of them:

        >>> config = {"pattern": "channels", "target_sparsity": 0.5}
        >>> report = secateur.prune(model, config, calibration=batches, solver="osscar")
        >>> [(group.name, group.pruned_units) for group in report.groups]
        [('0.channels', 4)]

        Units can also be ranked by the gradients of a loss, without training:

        >>> batches = [(torch.randn(64, 8), torch.randint(3, (64,))) for _ in range(4)]
        >>> def loss(outputs, batch):
        ...     return torch.nn.functional.cross_entropy(outputs, batch[1])
        >>> config = {**config, "pattern": "1xchannel", "criterion": "mask_fisher"}
        >>> secateur.prune(model, config, calibration=batches, loss=loss).sparsity
        0.5
    """
    options = {
        "calibration": calibration,
        "solver": solver,
        "refine": refine,
        "recipe": recipe,
        "minutes": minutes,
        "allocation": allocation,
        "execution": execution,
        "loss": loss,
        "example_inputs": example_inputs,
        "permute": permute,
    }
    leaf = import_leaf("secateur.oneshot", model)
    with _show_progress(model, options) if progress and leaf.is_leader(calibration, execution) else nullcontext():
        report: PruningReport = leaf.prune(model, config, **options)
    return report


@contextmanager
def _show_progress(model: Any, options: dict[str, Any]) -> Iterator[None]:
    """Show the progress of a run; with calibration data, the parts of the model as `options` are changed to."""
    calibration, execution = options["calibration"], options["execution"]
    with ProgressDisplay() as display:
        display.begin(f"Pruning {type(model).__name__}")
        has_own = isinstance(calibration, Calibration) and calibration.execution is not None
        if calibration is not None and not has_own and (execution is None or execution.progress is None):
            options["execution"] = replace(execution or Execution(), progress=display.show_part)
        yield
