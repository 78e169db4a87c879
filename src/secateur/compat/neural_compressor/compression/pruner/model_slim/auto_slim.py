"""Configure the pruning of feed-forward networks and attention heads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from secateur.compat.neural_compressor.compression.pruner.model_slim.pattern_analyzer import Linear2LinearSearcher
from secateur.errors import UnsupportedModelError

__all__ = ["generate_ffn2_pruning_config", "generate_mha_pruning_config", "model_slim", "parse_auto_slim_config"]


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
        dataloader: Batches that the model accepts; without it, the model is called with made-up inputs.
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


def model_slim(model: Any, dataloader: Any = None, round_multiplier: int = 32) -> NoReturn:  # noqa: ARG001
    """Raise: pruned channels and heads cannot be removed from the model yet.

    Args:
        model: The pruned model.
        dataloader: Batches that the model accepts.
        round_multiplier: Number of which the remaining channels should be a multiple.

    Raises:
        UnsupportedModelError: Always.
    """
    raise UnsupportedModelError(
        "model_slim cannot remove pruned channels and heads yet. Leave the call out: the model keeps its shape, and "
        "its pruned weights are zero; secateur.save stores it without them, and secateur.compile uses them."
    )
