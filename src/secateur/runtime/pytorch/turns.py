"""A model's own calls, by turns with its layers as they are and with others in their place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from secateur.runtime.pytorch.timing import rounds, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

__all__ = ["Seconds", "layer_seconds", "model_seconds", "replace_layers", "replaced_layers"]

BUDGET = 2.0
"""Seconds to spend on each of both, beyond the fewest rounds."""


class Seconds(NamedTuple):
    """Of a call, in the median.

    Attributes:
        before: As the model is.
        after: With the others in place.
    """

    before: float
    after: float


class Clock:
    """What a module's calls take, one after the other."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self._begun, self._calls = 0.0, list[float]()

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[None]:
        """Time the module's calls."""
        hooks = module.register_forward_pre_hook(self._begin), module.register_forward_hook(self._end)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def lap(self) -> None:
        """Note the mean of the calls since the last lap, if there were any."""
        if self._calls:
            self.laps.append(mean(self._calls))
            self._calls.clear()

    def _begin(self, *_: Any) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self._calls.append(time.perf_counter() - self._begun)


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in the places of those of the same names, wherever the model holds these.

    If it is interrupted, the model is as it was.
    """
    places = _places(model, layers)
    try:
        _fill(places)
    except BaseException:
        _restore(places)
        raise


@contextmanager
def replaced_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put layers in the places of those of the same names within the block."""
    places = _places(model, layers)
    try:
        _fill(places)
        yield
    finally:
        _restore(places)


class Place(NamedTuple):
    """Where a model holds a layer.

    Attributes:
        children: The children of its parent.
        name: Its name among them.
        old: The layer.
        new: What takes its place.
    """

    children: dict[str, nn.Module | None]
    name: str
    old: nn.Module
    new: nn.Module


def _places(model: nn.Module, layers: Mapping[str, nn.Module]) -> list[Place]:
    """Every place of layers, which may have several names."""
    new = {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    return [
        Place(parent._modules, name, child, new[id(child)])
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and id(child) in new
    ]


def _fill(places: Iterable[Place]) -> None:
    for place in places:
        place.children[place.name] = place.new


def _restore(places: Iterable[Place]) -> None:
    for place in places:
        place.children[place.name] = place.old


def layer_seconds(model: nn.Module, call: Callable[[], object], others: Mapping[str, nn.Module]) -> dict[str, Seconds]:
    """What layers take within the model's own calls, where that may be otherwise than alone.

    There, other layers have used the caches since, and torch's threads are still awake from what ran before.

    Args:
        model: A model on the CPU; it is left as it was.
        call: Calls it.
        others: Name of a layer → another for its place. They are in place all at once.

    Returns:
        Name → seconds; those whose layer or whose other was not called are left out.
    """
    clocks = {name: (Clock(), Clock()) for name in others}

    def laps(_: int) -> None:
        call()
        for pair in clocks.values():
            for clock in pair:
                clock.lap()

    with ExitStack() as stack:
        for name, (before, after) in clocks.items():
            stack.enter_context(before.on(model.get_submodule(name)))
            stack.enter_context(after.on(others[name]))
        _by_turns(model, others, laps)
    return {
        name: Seconds(median(before.laps), median(after.laps))
        for name, (before, after) in clocks.items()
        if before.laps and after.laps
    }


def model_seconds(
    model: nn.Module, call: Callable[[], object], others: Mapping[str, nn.Module], device: torch.device
) -> Seconds:
    """What calls of the whole model take; it is left as it was."""
    found: tuple[list[float], list[float]] = [], []
    _by_turns(model, others, lambda side: found[side].append(seconds(call, device)))
    return Seconds(*map(median, found))


def _by_turns(model: nn.Module, others: Mapping[str, nn.Module], work: Callable[[int], None]) -> None:
    """Work with the model as it is, 0, and with the others in place, 1."""
    for _ in rounds(BUDGET):
        work(0)
        with replaced_layers(model, others):
            work(1)
