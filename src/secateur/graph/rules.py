"""Rules: how each operation relates the labels of its outputs to those of its inputs."""

from __future__ import annotations

from collections.abc import Callable

from secateur._registry import Registry
from secateur.graph.labels import find_axes
from secateur.graph.program import Call, Program
from secateur.graph.tracer import Tracer

__all__ = ["RULES", "Rule", "register_rule", "run_rules"]

Rule = Callable[[Tracer, Call], None]
"""Sets the labels of a call's outputs, and records which labels are pruned together, must be kept, or are inexact."""

RULES: Registry[Rule] = Registry("rule")
"""Name of an operation, such as ``"aten.linear"`` → its rule."""


def register_rule(*operations: str) -> Callable[[Rule], Rule]:
    """Create a decorator that registers a rule for operations.

    Labels of inputs that a rule does not handle are pinned, so a rule that misses an axis prevents pruning rather than
    damaging a model.

    Args:
        operations: Names such as ``"aten.roll"`` or ``"mylib.shift"``: the namespace and the name of a torch operator,
            without its overload.

    Raises:
        ConfigError: An operation has a rule already.

    Examples:
        A custom operation that scales its input, element by element:

        >>> from secateur.graph import register_rule
        >>> @register_rule("mylib.scale")
        ... def follow_scale(tracer, call):
        ...     tracer.set_labels(call.output, tracer.get_labels(call["input"]))
        >>> _ = RULES.pop("mylib.scale")
    """

    def add(rule: Rule) -> Rule:
        for operation in operations:
            RULES.register(operation)(rule)
        return rule

    return add


def run_rules(program: Program, *, keeps_sizes: bool = False) -> Tracer:
    """Follow the labels of a program's parameters through all its calls, and pin those of its outputs; see `Tracer`."""
    tracer = Tracer(keeps_sizes=keeps_sizes)
    tracer.add_parameters(program)
    RULES.load_plugins()
    for call in program.calls:
        tracer.begin(call)
        rule = RULES.get(call.operation)
        if rule is None:
            tracer.stop("has no rule")
        else:
            rule(tracer, call)
        tracer.end()
    for value in program.outputs:
        for labels in tracer.get_labels(value):
            tracer.fix_axes(labels, find_axes(labels), "the model returns them")
    return tracer
