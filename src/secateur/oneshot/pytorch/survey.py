"""One pass of the calibration data through the dense model, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from secateur.oneshot.pytorch.activations import Activations
from secateur.oneshot.pytorch.problem import Problem
from secateur.oneshot.pytorch.stages import Stage
from secateur.oneshot.pytorch.statistics import InputStatistics
from secateur.oneshot.pytorch.targets import make_problem

__all__ = ["survey"]


def survey(stages: Sequence[Stage], inputs: Activations, *, with_gram: bool) -> Iterator[tuple[str, Sequence[Problem]]]:
    """Part by part: its name, and the problems of the layers in it. The model stays as it is.

    Args:
        stages: The parts.
        inputs: Holds what the next part reads.
        with_gram: Whether Gram matrices are needed, rather than norms.
    """
    for stage in stages:
        with stage.opened():
            own = {target.name: target for target in stage.targets}
            modules = {name: target.module for name, target in own.items()}
            statistics = InputStatistics(modules, with_gram=with_gram)
            with statistics.listening():
                for batch in stage.batches:
                    statistics.next_batch(batch.keep)
                    given = stage.forward(batch.number)
                    if given is not None:
                        inputs[batch.number] = given
            groups = statistics.groups()
            problems = [make_problem([own[name] for name in names], statistics) for names in groups]
        yield stage.name, problems
