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
    "RecipeSearcher",
    "SelfMHASearcher",
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


class RecipeSearcher:
    """Finds modules by the name of their class.

    Args:
        model: A torch module.
        recipe: Class name → dotted names of submodules of modules of this class.

    Attributes:
        targets: The class names.
        search_results: What `search` found last.

    Examples:
        >>> from torch import nn
        >>> layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
        >>> recipe = {"TransformerEncoderLayer": ["linear1", "linear2"]}
        >>> searcher = RecipeSearcher(layer, recipe)
        >>> [[found.out_features for found in modules] for modules in searcher.search("")]
        [[16, 8]]
    """

    def __init__(self, model: Any, recipe: dict[str, list[str]]) -> None:
        self.model = getattr(model, "model", model) if "PyTorchFXModel" in type(model).__name__ else model
        self.recipe = recipe
        self.targets = list(recipe)
        self.search_results: list[list[Any]] = []

    def search(self, target_name: str = "") -> list[list[Any]]:  # noqa: ARG002 - part of the interface
        """Return the submodules of each module of one of the classes, in the order of the model.

        Args:
            target_name: Not used.
        """
        modules = [module for _, module in self.model.named_modules() if type(module).__name__ in self.targets]
        self.search_results = [
            [get_attributes(module, name) for name in self.recipe[type(module).__name__]] for module in modules
        ]
        return self.search_results


class SelfMHASearcher:
    """Finds the projections of the attention layers whose heads Secateur can prune.

    Args:
        model: A torch module.
        dataloader: Batches that the model accepts, the first of which is used. Without it, attention is found by the
            names of its layers.
        options: Not used.
    """

    def __init__(self, model: Any, dataloader: Any = None, **options: Any) -> None:  # noqa: ARG002
        self.model = model
        self.dataloader = dataloader

    def search(self, split_qkv_ffn: Any = True) -> tuple[list[Any], list[str] | None]:
        """Find the projections.

        Args:
            split_qkv_ffn: Whether to return two lists of names: the projections of queries, keys and values, and the
                output projections. Otherwise, the first list has one dictionary per attention, with the names as
                ``qkv`` and ``ffn``, and there is no second list.
        """
        found = [
            {"qkv": list(inputs), "ffn": list(outputs)}
            for inputs, outputs in import_leaf(PACKAGE, self.model).find_attention(self.model, self.dataloader)
        ]
        if not split_qkv_ffn:
            return found, None
        return [name for each in found for name in each["qkv"]], [name for each in found for name in each["ffn"]]

    def obtain_mha_module(self, self_attention_list: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the innermost module around the inputs' projections, as ``mha_name`` and ``mha_module``."""
        for found in self_attention_list:
            found["mha_name"] = [get_common_module(found["qkv"][0], found["qkv"][-1])]
            found["mha_module"] = [get_attributes(self.model, name) for name in found["mha_name"]]
        return self_attention_list

    def from_layer_name_to_object(self, mha_search_layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return results of `obtain_mha_module` with names as ``…_name`` and modules as ``…_module``."""
        return [
            {f"{key}_name": list(found[key]) for key in ("qkv", "ffn")}
            | {f"{key}_module": [get_attributes(self.model, name) for name in found[key]] for key in ("qkv", "ffn")}
            | {key: list(found[key]) for key in ("mha_name", "mha_module")}
            for found in mha_search_layers
        ]


class Linear2LinearSearcher:
    """Finds linear layers whose input channels are output channels of other linear layers, which can be removed.

    They follow from the dependencies between the parameters, as `secateur.graph.trace` finds them.

    Args:
        model: A torch module.
        dataloader: Batches that the model accepts, the first of which is used; without it, inputs are generated from
            the configuration or the first layer of the model.
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
        """Replace the names in results of `search` with modules."""
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
