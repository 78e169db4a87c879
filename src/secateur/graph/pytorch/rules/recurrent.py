"""Rules for recurrent layers."""

from __future__ import annotations

from secateur.graph.program import Call
from secateur.graph.rules import register_rule
from secateur.graph.tracer import Tracer

__all__: list[str] = []


RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell mkldnn_rnn_layer"


@register_rule(*(f"aten.{name}" for name in RECURRENT.split()))
def stop_at_recurrence(tracer: Tracer, call: Call) -> None:  # noqa: ARG001
    """Pin all weights: each step reads the outputs of the last one, through gates that share one size."""
    tracer.stop("is recurrent")
