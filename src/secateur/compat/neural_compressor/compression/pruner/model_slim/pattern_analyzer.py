"""Find the layers that can be slimmed, and the classification head."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from secateur.frameworks import import_leaf

__all__ = [
    "ClassifierHeadSearcher",
    "ClassifierHeadSearcherTF",
    "Linear2LinearSearcher",
    "get_attributes",
    "get_common_module",
]

PACKAGE = "secateur.compat.neural_compressor.compression.pruner.model_slim"


def get_attributes(module: Any, attrs: str) -> Any:
    """Return the submodule with a dotted name."""
    return attrgetter(attrs)(module) if attrs else module


def get_common_module(layer1: str, layer2: str) -> str:
    """Return the name of the innermost module that contains two layers.

    Examples:
        >>> get_common_module("block.0.query", "block.0.output.dense")
        'block.0'
    """
    shared = []
    for first, second in zip(layer1.split("."), layer2.split("."), strict=False):
        if first != second:
            break
        shared.append(first)
    return ".".join(shared)


class Linear2LinearSearcher:
    """Finds linear layers whose input comes from other linear layers, through activations and dropout alone.

    The model runs once, without gradients, and the calls are recorded.

    Args:
        model: A torch module.
        dataloader: Batches that the model accepts, the first of which is used; without it, inputs are made up from the
            first layer of the model.
        options: Not used.
    """

    def __init__(self, model: Any, dataloader: Iterable[Any] | None = None, **options: Any) -> None:  # noqa: ARG002
        self.model = model
        self.dataloader = dataloader

    def search(self) -> list[dict[str, Any]]:
        """Return one dictionary per layer: its name as ``root_linear``, and ``target_frontier_linears`` before it.

        The output layer of the model is left out.

        Raises:
            CalibrationError: The model does not run on the inputs.
        """
        leaf = import_leaf(PACKAGE, self.model)
        pairs: dict[str, tuple[str, ...]] = leaf.find_consecutive_layers(self.model, self.dataloader)
        return [{"root_linear": name, "target_frontier_linears": list(before)} for name, before in pairs.items()]

    def from_layer_name_to_object(self, layers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Replace the names in results of `search` by modules."""
        return [
            {
                "root_linear": get_attributes(self.model, pair["root_linear"]),
                "target_frontier_linears": [
                    get_attributes(self.model, name) for name in pair["target_frontier_linears"]
                ],
            }
            for pair in layers
        ]


class ClassifierHeadSearcher:
    """Finds the classification head of a torch model: its last module other than dropout, if that is linear.

    Args:
        model: A torch module.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> ClassifierHeadSearcher(model).search()
        '2'
    """

    pruning_ops = ("Linear", "Conv2d")
    excluded_ops = ("Dropout",)

    def __init__(self, model: Any) -> None:
        self.model = model

    def search(self, *, return_name: bool = True) -> Any:
        """Return the name of the head, or with ``return_name=False`` the layer; ``None`` if there is none."""
        layers = [(name, layer) for name, layer in self._list_layers() if type(layer).__name__ not in self.excluded_ops]
        if not layers or type(layers[-1][1]).__name__ not in self.pruning_ops:
            return None
        return layers[-1][0 if return_name else 1]

    def _list_layers(self) -> Iterable[tuple[str, Any]]:
        layers: Iterable[tuple[str, Any]] = self.model.named_modules()
        return layers


class ClassifierHeadSearcherTF(ClassifierHeadSearcher):
    """Finds the classification head of a Keras model: its last layer other than dropout, if that is dense.

    Args:
        model: A Keras model.
    """

    pruning_ops = ("Dense", "Conv2D")

    def _list_layers(self) -> Iterable[tuple[str, Any]]:
        return [(layer.name, layer) for layer in self.model.layers]
