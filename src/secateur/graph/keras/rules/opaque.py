"""Layers that no rule can describe: their weights are pinned, with the reason."""

from __future__ import annotations

from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []

RECURRENT = (
    "LSTM GRU SimpleRNN RNN LSTMCell GRUCell SimpleRNNCell StackedRNNCells ConvLSTM1D ConvLSTM2D ConvLSTM3D "
    "Bidirectional"
)


@register_rule(*(f"keras.{name}" for name in RECURRENT.split()))
def stop_at_recurrence(tracer: Tracer, call: Call) -> None:  # noqa: ARG001
    """Pin all weights: each step reads the outputs of the last one, through gates that share one size."""
    tracer.stop("is recurrent")


@register_rule("keras.Lambda")
def stop_at_lambda(tracer: Tracer, call: Call) -> None:  # noqa: ARG001
    """Pin the inputs: it is not known what the function does with them."""
    tracer.stop("runs a Python function")


@register_rule("keras.Model")
def stop_at_subclassed_model(tracer: Tracer, call: Call) -> None:
    """Pin all weights: the model has no graph, only a call method."""
    tracer.stop(f"is subclassed: the call method of {type(call['operation']).__name__} is code, not a graph of layers")
