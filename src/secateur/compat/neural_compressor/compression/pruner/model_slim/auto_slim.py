"""Prune feed-forward networks and attention heads, and remove what was pruned."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from secateur._wording import format_list
from secateur.compat.neural_compressor.compression.pruner.model_slim.pattern_analyzer import (
    PACKAGE,
    Linear2LinearSearcher,
)
from secateur.errors import UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf

__all__ = [
    "generate_ffn2_pruning_config",
    "generate_mha_pruning_config",
    "model_slim",
    "model_slim_ffn2",
    "model_slim_mha",
    "parse_auto_slim_config",
]

logger = logging.getLogger(__name__)


def parse_auto_slim_config(
    model: Any,
    dataloader: Iterable[Any] | None = None,
    ffn2_sparsity: float = 0.0,
    mha_sparsity: float = 0.0,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Return elements of ``pruning_configs`` that prune feed-forward networks and attention heads.

    Args:
        model: A torch module.
        dataloader: Batches that the model accepts; without it, the model is called with generated inputs.
        ffn2_sparsity: Share of hidden channels to prune, in (0, 1); 0: prune none.
        mha_sparsity: Share of attention heads to prune, in (0, 1); 0: prune none.
        settings: Further keys of both elements.

    Raises:
        CalibrationError: The model does not run on the inputs.
        UnsupportedModelError: The model has no consecutive linear layers.

    Examples:
        >>> from torch import nn
        >>> block = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        >>> model = nn.Sequential(*block, nn.LayerNorm(8), nn.Linear(8, 2))
        >>> parse_auto_slim_config(model, ffn2_sparsity=0.5)
        [{'op_names': ['2'], 'pattern': 'channelx1', 'target_sparsity': 0.5}]
    """
    elements: list[dict[str, Any]] = []
    if 0 < ffn2_sparsity < 1:
        elements += generate_ffn2_pruning_config(model, dataloader, ffn2_sparsity, **settings)
    if 0 < mha_sparsity < 1:
        elements += generate_mha_pruning_config(model, dataloader, mha_sparsity, **settings)
    return elements


def generate_ffn2_pruning_config(
    model: Any, dataloader: Iterable[Any] | None, ffn2_sparsity: float, **settings: Any
) -> list[dict[str, Any]]:
    """Return an element that prunes input channels of the second layer of each feed-forward network.

    Args:
        model: A torch module.
        dataloader: See `parse_auto_slim_config`.
        ffn2_sparsity: Share of hidden channels to prune.
        settings: Further keys of the element.

    Raises:
        UnsupportedModelError: There is no such layer.
    """
    names = [pair["root_linear"] for pair in Linear2LinearSearcher(model, dataloader).search()]
    if not names:
        raise UnsupportedModelError(
            "The model must have linear layers that follow each other, found none beside its output layer. Write the "
            "element yourself: {'op_names': [...], 'pattern': 'channelx1'}."
        )
    return [{"op_names": names, "pattern": "channelx1", "target_sparsity": ffn2_sparsity} | settings]


def generate_mha_pruning_config(
    model: Any,  # noqa: ARG001 - part of the interface
    dataloader: Iterable[Any] | None,  # noqa: ARG001
    mha_sparsity: float,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Return an element that prunes attention heads of the whole model.

    Args:
        model: Not used.
        dataloader: Not used.
        mha_sparsity: Share of heads to prune.
        settings: Further keys of the element.
    """
    return [{"pattern": "mha", "target_sparsity": mha_sparsity} | settings]


def model_slim(model: Any, dataloader: Iterable[Any] | None = None, round_multiplier: int = 32) -> Any:
    """Remove pruned channels and attention heads from a torch model, in place.

    A hidden channel or head is removed if all weights that read it are zero. Zero channels are kept where this makes
    their number a multiple of `round_multiplier`. The outputs of the model do not change, which is verified; see
    `secateur.slim`. Parameters are new objects, so create a new optimizer to continue training. An active pruning run
    of the model is ended.

    Args:
        model: The pruned model.
        dataloader: Batches that the model accepts, the first of which is used. If a batch is a tuple or list, its first
            element is the model's input; mappings are passed as keyword arguments, without ``labels``. ``None``: random
            tokens or images, as the configuration of a transformers model describes them.
        round_multiplier: The number of channels of a slimmed layer is a multiple of this.

    Returns:
        The model.

    Raises:
        CalibrationError: The model does not run on the inputs, or there is no dataloader and no configuration.
        SecateurError: Parts cannot be removed; see `secateur.slim`. The model is unchanged.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
        >>> model = torch.nn.Sequential(*layers)
        >>> with torch.no_grad():
        ...     model[2].weight[:, ::2] = 0
        >>> model_slim(model, dataloader=[torch.randn(2, 8)])
        Sequential(
          (0): Linear(in_features=8, out_features=32, bias=True)
          (1): ReLU()
          (2): Linear(in_features=32, out_features=4, bias=True)
        )
    """
    return _slim(model, dataloader, {"channels": round_multiplier, "heads": 1})


def model_slim_ffn2(model: Any, dataloader: Iterable[Any] | None = None, round_multiplier: int = 32) -> Any:
    """Remove pruned channels from a torch model, in place; see `model_slim`.

    Args:
        model: The pruned model.
        dataloader: Batches that the model accepts.
        round_multiplier: The number of channels of a slimmed layer is a multiple of this.
    """
    return _slim(model, dataloader, {"channels": round_multiplier})


def model_slim_mha(model: Any, dataloader: Iterable[Any] | None = None) -> Any:
    """Remove pruned attention heads from a torch model, in place; see `model_slim`.

    Args:
        model: The pruned model.
        dataloader: Batches that the model accepts.
    """
    return _slim(model, dataloader, {"heads": 1})


def _slim(model: Any, dataloader: Iterable[Any] | None, multiples: Mapping[str, int]) -> Any:
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError("model_slim needs a torch module, found a Keras model.")
    report = import_leaf(PACKAGE, model).slim_groups(
        model, dataloader, {kind: max(1, int(multiple)) for kind, multiple in multiples.items()}
    )
    logger.info("%s", report)
    if not report.removed_units:
        reasons = [f"{group.name!r} ({group.reason})" for group in report.groups if group.zero_units and group.reason]
        logger.warning("model_slim removed nothing: %s.", format_list(reasons, limit=3) or "nothing is pruned")
    return model
