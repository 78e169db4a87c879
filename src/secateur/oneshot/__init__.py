"""Pruning a trained model once, without an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from secateur.config import PruningConfig
from secateur.frameworks import import_leaf
from secateur.oneshot.calibration import Calibration
from secateur.results import PruningReport

__all__ = ["Calibration", "prune"]


def prune(
    model: Any,
    config: PruningConfig | Mapping[str, Any],
    *,
    calibration: Calibration | Iterable[Any] | None = None,
    solver: Any = "magnitude",
    refine: Any = (),
    allocation: Any = None,
) -> PruningReport:
    """Prune a model to its target now, in place.

    Without calibration data, units are ranked by the weights as they are. With them, a solver prunes a torch model
    layer by layer so that each layer's outputs change least, and refiners repair what stays. Nothing holds the zeros if
    the model is trained again (``kind="pattern_lock"`` of `secateur.prepare` does). What a configuration says about
    steps, schedules and regularizers has no meaning here.

    Args:
        model: A torch module, or a built Keras model (by ``"magnitude"`` only).
        config: A `PruningConfig`, or a plain mapping with the same keys. Its criterion must not need gradients.
        calibration: Batches as the model takes them, or a `Calibration`, which also says where things are held and how
            an interrupted run goes on. 32 sequences of 512 tokens of ordinary text serve a language model.
        solver: ``"magnitude"`` (the configured criterion), ``"wanda"``, ``"ria"``, ``"sparsegpt"``, ``"alps"``, or a
            solver object with settings of its own.
        refine: What repairs the kept weights, in order: ``"pcg"`` (layer by layer), ``"block"`` (a whole block),
            ``"distill"`` (the whole model), such objects, or a list of them.
        allocation: How layers share the target: ``"uniform"``, ``"global"``, ``"owl"``, ``"sensitivity"`` or such an
            object. Left out: with calibration data, ``"uniform"`` unless the configuration sets ``pruning_scope``;
            without, what ``pruning_scope`` says.

    Returns:
        What was pruned, per layer and in all; verified against masks and weights.

    Raises:
        SecateurError: The configuration fits neither itself nor the model, its criterion needs gradients, a weight is
            ``nan``, or the calibration data do not serve. The model is as it was then.

    Example:
        >>> import torch, secateur
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> secateur.prune(model, {"pattern": "2:4"}).sparsity
        0.5
        >>> batches = [torch.randn(64, 8) for _ in range(4)]
        >>> config = {"pattern": "4x1", "target_sparsity": 0.5}
        >>> secateur.prune(model, config, calibration=batches, solver="alps").sparsity
        0.5
    """
    options = {"calibration": calibration, "solver": solver, "refine": refine, "allocation": allocation}
    report: PruningReport = import_leaf("secateur.oneshot", model).prune(model, config, **options)
    return report
