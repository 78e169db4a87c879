"""Find the layers to prune, check configurations and count zeros, as `neural_compressor.compression.pruner.utils`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from secateur.compat.neural_compressor._elements import complete_element
from secateur.compat.neural_compressor.compression.pruner.model_slim.pattern_analyzer import (
    ClassifierHeadSearcher,
    ClassifierHeadSearcherTF,
)
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.compat.neural_compressor.utils import logger
from secateur.compat.neural_compressor.utils.utility import DotDict, LazyImport
from secateur.errors import ConfigError
from secateur.frameworks import import_leaf

__all__ = [
    "check_config",
    "collect_layer_inputs",
    "get_layers",
    "get_sparsity_ratio",
    "get_sparsity_ratio_tf",
    "parse_last_linear",
    "parse_last_linear_tf",
    "parse_to_prune",
    "parse_to_prune_tf",
    "process_and_check_config",
    "process_config",
    "reset_none_to_default",
    "safe_get_data",
    "safe_get_grad",
    "safe_get_shape",
    "safe_set_data",
    "update_params",
]

torch = LazyImport("torch")
nn = LazyImport("torch.nn")
F = LazyImport("torch.nn.functional")
tf = LazyImport("tensorflow")

FLATTEN_DIM2 = 1
"""Columns of weights that another library has flattened, which patterns do not support here."""

CONVOLUTION = re.compile(r"Conv.d")
"""Matches the class names of layers that count as convolutions."""


def process_config(config: WeightPruningConfig) -> list[DotDict]:
    """Return one dictionary per element of a configuration, completed with the common keys and checked.

    Raises:
        ConfigError: The configuration is not a `WeightPruningConfig`, or a value is invalid.

    Examples:
        >>> config = WeightPruningConfig([{"pattern": "2:4"}], start_step=1, end_step=9)
        >>> [(element.pattern, element.end_step) for element in process_config(config)]
        [('2:4', 9)]
    """
    if not isinstance(config, WeightPruningConfig):
        raise ConfigError(f"config must be a WeightPruningConfig, found {type(config).__name__}.")
    elements = config.complete_elements()
    for element in elements:
        check_config(element)
    return elements


process_and_check_config = process_config


def check_config(prune_config: Mapping[str, Any]) -> None:
    """Check the keys of one element.

    Raises:
        ConfigError: A value is out of bounds, or two contradict each other.
    """
    start, end = prune_config["start_step"], prune_config["end_step"]
    target, maximum = prune_config["target_sparsity"], prune_config["max_sparsity_ratio_per_op"]
    minimum, frequency = prune_config["min_sparsity_ratio_per_op"], prune_config["pruning_frequency"]
    rules = {
        f"start_step must be at least 0, found {start}.": start >= 0,
        f"end_step must not be less than start_step, found {end} < {start}.": end >= start,
        f"target_sparsity must be in [0, 1), found {target}.": 0 <= target < 1,
        f"pruning_frequency must be above 0, found {frequency}.": frequency > 0,
        f"max_sparsity_ratio_per_op must be in [0, 1), found {maximum}.": 0 <= maximum < 1,
        f"min_sparsity_ratio_per_op must be in [0, {maximum}], found {minimum}.": 0 <= minimum <= maximum,
        "pruning_scope must be 'global' or 'local'.": prune_config["pruning_scope"] in ("global", "local"),
    }
    if violations := [message for message, holds in rules.items() if not holds]:
        raise ConfigError(" ".join(violations))


def reset_none_to_default(obj: Any, key: str, default: Any) -> Any:
    """Return the value of a key or attribute, or `default` if it is missing or ``None``."""
    if obj is None:
        return None
    value = obj.get(key) if isinstance(obj, Mapping) else getattr(obj, key, None)
    return default if value is None else value


def update_params(info: dict[str, Any]) -> None:
    """Copy the entries of ``parameters``, such as ``reg_coeff``, to the element itself."""
    info.update(info.get("parameters") or {})


def parse_last_linear(model: Any) -> str | None:
    """Return the name of the classification head: the last layer of a torch model, if it is linear or a Conv2d."""
    name: str | None = ClassifierHeadSearcher(model).search(return_name=True)
    return name


def parse_last_linear_tf(model: Any) -> str | None:
    """Return the name of the classification head: the last layer of a Keras model, if it is Dense or a Conv2d."""
    name: str | None = ClassifierHeadSearcherTF(model).search(return_name=True)
    return name


def parse_to_prune(config: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return the layers of a torch model that an element prunes, by name; the classification head stays dense.

    Args:
        config: Has ``op_names`` and ``excluded_op_names``, regular expressions that match anywhere in a name, and
            ``pruning_op_types``, substrings of class names.
        model: The model.

    Raises:
        ConfigError: An expression is not valid.

    Examples:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> config = {"op_names": [], "excluded_op_names": [], "pruning_op_types": ["Linear"]}
        >>> list(parse_to_prune(config, model))
        ['0']
    """
    return _select_layers(config, model.named_modules(), parse_last_linear(model))


def parse_to_prune_tf(config: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return the layers of a Keras model that an element prunes, by name; see `parse_to_prune`."""
    layers = [(layer.name, layer) for layer in model.layers if layer.weights]
    return _select_layers(config, layers, parse_last_linear_tf(model))


def _select_layers(config: Mapping[str, Any], layers: Iterable[tuple[str, Any]], head: str | None) -> dict[str, Any]:
    config = complete_element(config, {})
    included = _compile_names(config["op_names"] or [".*"])
    excluded = _compile_names([*config["excluded_op_names"], *([] if head is None else [head])])
    return {
        name: layer
        for name, layer in layers
        if any(kind in type(layer).__name__ for kind in config["pruning_op_types"])
        and (hasattr(layer, "weight") or hasattr(layer, "kernel"))
        and any(expression.search(name) for expression in included)
        and not any(expression.search(name) for expression in excluded)
    }


def _compile_names(expressions: Iterable[str]) -> list[re.Pattern[str]]:
    try:
        return [re.compile(expression) for expression in expressions]
    except re.error as error:
        raise ConfigError(f"{error.pattern!r} must be a regular expression: {error}.") from error


def get_layers(model: Any) -> Any:
    """Return the first ``nn.ModuleList`` of a model, which contains its blocks; an empty list if there is none."""
    lists = (module for _, module in model.named_modules() if "ModuleList" in type(module).__name__)
    return next(lists, [])


def collect_layer_inputs(
    model: Any, layers: Any, layer_idx: int, layer_inputs: Iterable[Any], device: Any = None
) -> tuple[list[Any], Any, dict[str, list[Any]]]:
    """Return the inputs of a block of a torch model for each batch.

    Args:
        model: The model.
        layers: Its blocks, such as those of `get_layers`.
        layer_idx: Index of the block.
        layer_inputs: For the first block, batches: the first element of a list or tuple is the model's input; mappings
            are passed as keyword arguments. For others, the arguments of the block before as lists, whose first
            elements are replaced by its outputs.
        device: Device of the result; ``None``: where the inputs are.

    Returns:
        The hidden states of all batches; the other positional arguments of the first batch; and name → the keyword
        arguments of all batches. The last two are empty for blocks after the first one.

    Examples:
        >>> from torch import nn
        >>> layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)])
        >>> model = nn.Sequential(*layers)
        >>> collect_layer_inputs(model, layers, 0, [torch.ones(1, 2)])[0]
        [tensor([[1., 1.]])]
    """
    if layer_idx == 0:
        leaf = import_leaf("secateur.compat.neural_compressor.compression.pruner", model)
        recorded: tuple[list[Any], Any, dict[str, list[Any]]] = leaf.record_inputs(
            model, layers[0], layer_inputs, device
        )
        return recorded
    inputs = []
    with torch.no_grad():
        for batch in layer_inputs:
            output = layers[layer_idx - 1](*batch)
            batch[0] = output[0] if isinstance(output, list | tuple) else output
            inputs.append(batch)
    return inputs, [], {}


def get_sparsity_ratio(pruners: Iterable[Any], model: Any) -> tuple[float, float, float]:
    """Return the sparsity of a torch model in three ways, and log it.

    Args:
        pruners: The pruners of a run. Those of whole attention heads do not count.
        model: The model.

    Returns:
        The pruned weights as a share of all weights of Linear and convolutional layers; as a share of all parameters;
        and the pruned units of the patterns, weighted by the size of their layers, as a share of all weights of Linear
        and convolutional layers.
    """
    model = getattr(model, "model", model)
    linear = sum(layer.weight.numel() for layer in model.modules() if _is_counted(layer, "Linear"))
    total = sum(parameter.numel() for parameter in model.parameters())
    return _compute_ratios(pruners, lambda layer: layer.weight.numel(), linear, total)


def get_sparsity_ratio_tf(pruners: Iterable[Any], model: Any) -> tuple[float, float, float]:
    """Return the sparsity of a Keras model in three ways; see `get_sparsity_ratio`."""
    model = getattr(model, "model", model)
    sizes = {id(layer): layer.get_weights()[0].size for layer in model.layers if layer.weights}
    linear = sum(sizes[id(layer)] for layer in model.layers if _is_counted(layer, "Dense"))
    return _compute_ratios(pruners, lambda layer: sizes[id(layer)], linear, sum(sizes.values()))


def _is_counted(layer: Any, name: str) -> bool:
    kind = type(layer).__name__
    return kind == name or CONVOLUTION.search(kind) is not None


def _compute_ratios(pruners: Iterable[Any], get_size: Any, linear: int, total: int) -> tuple[float, float, float]:
    kept: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    units = 0
    for pruner in pruners:
        if "MultiheadAttention" in type(pruner).__name__:
            continue
        units += int(
            sum(map(get_size, pruner.modules.values())) * float(pruner.pattern.get_sparsity_ratio(pruner.masks))
        )
        for name, mask in pruner.masks.items():
            # Where several pruners share a layer, a weight is zero where any of their masks is.
            kept[name] = (mask != 0) & kept[name] if name in kept else mask != 0
            sizes[name] = get_size(pruner.modules[name])
    shares = {name: 1 - float(mask.sum()) / max(1, _count(mask)) for name, mask in kept.items()}
    elements = sum(round(shares[name] * sizes[name]) for name in kept)
    ratios = (_divide(elements, linear), _divide(elements, total), _divide(units, linear))
    logger.info(
        "elementwise_over_matmul_gemm_conv:%s, elementwise_over_all:%s, blockwise_over_matmul_gemm_conv:%s", *ratios
    )
    return ratios


def _count(mask: Any) -> int:
    count = 1
    for size in mask.shape:
        count *= int(size)
    return count


def _divide(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def safe_get_shape(param: Any) -> Any:
    """Return the shape of a parameter."""
    return param.shape


def safe_get_data(param: Any) -> Any:
    """Return the values of a parameter, without its history."""
    return param.data


def safe_get_grad(param: Any) -> Any:
    """Return the gradient of a parameter."""
    return param.grad


def safe_set_data(param: Any, new_val: Any) -> None:
    """Replace the values of a parameter."""
    param.data = new_val
