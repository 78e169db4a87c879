"""Register rules for Keras layers, and apply the activations that layers contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import keras

from secateur.graph.labels import Labels
from secateur.graph.program import Call, Value
from secateur.graph.rules import Rule, register_rule
from secateur.graph.shared_rules import fix_scanned_axis
from secateur.graph.tracer import Tracer

__all__ = ["activate", "get_weight", "register_layer_rule"]

ELEMENTWISE = (
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear log_sigmoid mish relu "
    "relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus sparse_sigmoid squareplus tanh tanh_shrink "
    "threshold"
)
ALONG_LAST_AXIS = "softmax log_softmax sparsemax"

ACTIVATION_LAYERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
"""Layers that act on each element."""


def register_layer_rule(*kinds: str, weights: Sequence[str] = ()) -> Callable[[Rule], Rule]:
    """Create a decorator that registers a rule for Keras's own layers.

    A layer with weights that the rule does not describe, such as those of LoRA or of quantization, is a barrier.

    Args:
        kinds: Names of classes, such as ``"Dense"``.
        weights: Names that its weights can have.
    """

    def add(rule: Rule) -> Rule:
        @wraps(rule)
        def follow(tracer: Tracer, call: Call) -> None:
            unknown = sorted(set(call["weights"]) - set(weights))
            if unknown:
                tracer.stop(f"has weights that its rule does not describe: {', '.join(unknown)}")
            else:
                rule(tracer, call)

        register_rule(*(f"keras.{kind}" for kind in kinds))(follow)
        return rule

    return add


def get_weight(call: Call, name: str) -> Value | None:
    """Return a weight of a layer by its name; ``None`` if the layer has none of that name."""
    weight: Value | None = call["weights"].get(name)
    return weight


def activate(tracer: Tracer, call: Call, labels: Sequence[Labels], activation: Any = None) -> None:
    """Follow the activation at the end of a layer, and set the labels of its output.

    Args:
        tracer: The tracer.
        call: The call of the layer.
        labels: The labels before the activation.
        activation: The activation; ``None``: the layer's own.
    """
    activation = call["operation"].activation if activation is None else activation
    if activation is None or type(activation) in ACTIVATION_LAYERS or _is_known(activation, ELEMENTWISE):
        tracer.set_labels(call.output, labels)
    elif _is_known(activation, ALONG_LAST_AXIS):
        tracer.set_labels(call.output, fix_scanned_axis(tracer, labels, [len(call.output.shape) - 1]))
    else:
        name = getattr(activation, "__name__", type(activation).__name__)
        for array in labels:
            tracer.pin(array, f"has the activation {name!r}, for which there is no rule")
        tracer.stop(f"has the activation {name!r}, for which there is no rule")


def _is_known(activation: Any, names: str) -> bool:
    name = getattr(activation, "__name__", "")
    return name in names.split() and activation is keras.activations.get(name)
