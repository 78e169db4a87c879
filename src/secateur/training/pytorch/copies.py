"""Find the weights of a pruned model in a copy of it, such as an average of its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from secateur.errors import LayerError
from secateur.frameworks.pytorch import get_layer, get_parameter, unwrap_model
from secateur.training.pytorch.weight import TrainedParameter

__all__ = ["find_copies"]


def find_copies(
    weights: Mapping[str, TrainedParameter], model: nn.Module
) -> list[tuple[TrainedParameter, nn.Parameter]]:
    """Find each weight in a copy of its model, by the names of its layers.

    Returns:
        Each weight, and the parameter in the copy.

    Raises:
        LayerError: A pruned layer is missing there or has a different shape.
    """
    inner = unwrap_model(model)
    copies = []
    for name, weight in weights.items():
        try:
            target = get_parameter(get_layer(inner, name))
        except AttributeError as error:
            raise LayerError(f"layer {name!r} was pruned, but {type(inner).__name__} does not have it.") from error
        except LayerError as error:
            raise LayerError(f"layer {name!r} was pruned, but in {type(inner).__name__} {error}.") from error
        if target.shape != weight.parameter.shape:
            raise LayerError(
                f"layer {name!r} has shape {tuple(target.shape)}, but its mask has {tuple(weight.parameter.shape)}."
            )
        copies.append((weight, target))
    return copies
