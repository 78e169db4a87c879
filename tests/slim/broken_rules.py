"""Rules of the graph that are wrong, to see that nothing wrong comes of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from secateur.graph import RULES, Call, Tracer

__all__ = ["broken_rule"]


@contextmanager
def broken_rule(operation: str, fault: str) -> Iterator[None]:
    """Replace a rule by one that forgets what is united, or whose output is off by one along its last axis."""
    rule = RULES[operation]

    def broken(tracer: Tracer, call: Call) -> None:
        before = len(tracer.edges)
        rule(tracer, call)
        if fault == "missing":
            del tracer.edges[before:]
        for value in call.outputs:
            if fault == "off by one" and value is not None:
                rolled = [np.roll(labels, 1, axis=np.argmax(labels.shape)) for labels in tracer.get_labels(value)]
                tracer.set_labels(value, rolled)

    RULES[operation] = broken
    try:
        yield
    finally:
        RULES[operation] = rule
