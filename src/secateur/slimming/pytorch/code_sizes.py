"""Find the attributes of modules that contain the numbers in their code, such as the number of heads.

The graph knows that the code of a module passes a number to an operation, but not where the code takes it from.
Attributes that equal the number are therefore candidates, and the outputs on the example inputs decide.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any, NamedTuple

from torch import nn

from secateur._calls.pytorch.example_run import ExampleRun
from secateur._resizing.pytorch import CONFIG
from secateur.errors import CalibrationError, LayerError
from secateur.graph import SizeUse
from secateur.slimming.pytorch.journal import Journal
from secateur.slimming.pytorch.plain_norms import follow_inputs
from secateur.slimming.removal import Removal

__all__ = ["SizeSearch", "UnresolvedSizeError"]

MAX_ATTEMPTS = 256
"""Maximum number of combinations of attributes to try."""

HEAD_COUNTS = frozenset(
    {"h", "heads", "n_head", "n_heads", "n_kv_heads", "nhead", "num_attention_heads", "num_heads"}
    | {"num_key_value_heads", "num_kv_heads"}
)
"""Attributes that can only mean a number of heads; they are tried first."""


class UnresolvedSizeError(LayerError):
    """Raised if no attribute contains a number in the code of a module that must change.

    Attributes:
        groups: Indices of the groups whose units cannot be removed.
    """

    def __init__(self, message: str, groups: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.groups = tuple(groups)


class _Demand(NamedTuple):
    """A number in the code of a module that must change.

    Attributes:
        use: The number.
        new: Its new value.
        heads: Numbers of heads of the group that it follows, before and after; ``None``: it follows other units.
    """

    use: SizeUse
    new: int
    heads: tuple[int, int] | None

    def __str__(self) -> str:
        place = f"{self.use.module!r}" if self.use.module else "the model itself"
        return f"the code of {place} passes {self.use.size} to {self.use.operation}, which must become {self.new}"


class _Slot(NamedTuple):
    """An attribute of a module that may be the source of a number.

    Attributes:
        attribute: Its name; with the prefix `CONFIG`, that of a number of heads in the module's configuration, from
            which the code computes the number.
        position: The position of the number if the attribute is a tuple or a list; ``None``: it is a number.
        demand: Which of the demands of the module it would fulfill.
    """

    attribute: str
    position: int | None
    demand: int


@dataclass(frozen=True, slots=True)
class _Kind:
    """Modules of the same class whose demands could be fulfilled by the same attributes, as in all blocks of a model.

    Attributes:
        modules: The modules, each with its demands.
        slots: The candidates.
    """

    modules: list[tuple[nn.Module, Sequence[_Demand]]]
    slots: tuple[_Slot, ...]

    def list_options(self) -> list[tuple[_Slot, ...]]:
        """List which slots to change: numbers of heads, nothing, each alone, all, and those of the configuration."""
        configured = tuple(slot for slot in self.slots if slot.attribute.startswith(CONFIG))
        own = tuple(slot for slot in self.slots if slot not in configured)
        named = tuple(slot for slot in own if slot.attribute in HEAD_COUNTS)
        with_named = [(*named, slot) for slot in own if slot not in named]
        options = [named, (), *((slot,) for slot in own), *with_named, own]
        options += [(*option, *configured) for option in options]
        return list(dict.fromkeys(options))

    def apply(self, option: Sequence[_Slot], journal: Journal) -> None:
        """Change the slots of an option in all modules."""
        for module, demands in self.modules:
            own = [slot for slot in option if not slot.attribute.startswith(CONFIG)]
            for slot in own:
                value: Any = demands[slot.demand].new
                if slot.position is not None:
                    items = [*module.__dict__[slot.attribute]]
                    items[slot.position] = value
                    value = type(module.__dict__[slot.attribute])(items)
                journal.set_attribute(module, slot.attribute, value)
            if len(own) < len(option):
                config = copy.copy(module.__dict__["config"])
                for slot in option:
                    if slot not in own:
                        _scale_heads(config, slot.attribute.removeprefix(CONFIG), demands[slot.demand])
                journal.set_attribute(module, "config", config)


class SizeSearch:
    """Changes attributes of modules until the model gives the expected outputs.

    Args:
        model: The model.
        removal: The removed units.
        example: Runs the model.
    """

    def __init__(self, model: nn.Module, removal: Removal, example: ExampleRun) -> None:
        self._model, self._example = model, example
        self._demands = list(_list_demands(removal))
        self._kinds = self._group_modules()

    def fit(self, journal: Journal, tolerance: float) -> float:
        """Change the attributes, and return the largest difference of the outputs, which is at most the tolerance.

        An infinite tolerance selects the attributes with the smallest difference.

        Raises:
            LayerError: The model fails, or its outputs differ for every choice of attributes; the message says which
                number has no attribute.
        """
        failure: CalibrationError | None = None
        smallest, best = math.inf, None
        for choice in islice(_order_choices([kind.list_options() for kind in self._kinds]), MAX_ATTEMPTS):
            start = journal.mark()
            self._apply(choice, journal)
            try:
                with follow_inputs(self._model, journal):
                    difference = self._example.measure_change()
            except CalibrationError as error:
                failure, difference = failure or error, math.inf
            if difference <= tolerance < math.inf:
                return difference
            journal.roll_back(start)
            if difference < smallest:
                smallest, best = difference, choice
        if best is None or tolerance < math.inf:
            raise self._make_error(failure, smallest) from failure
        self._apply(best, journal)
        with follow_inputs(self._model, journal):
            return self._example.measure_change()

    def _apply(self, choice: Sequence[Sequence[_Slot]], journal: Journal) -> None:
        for kind, option in zip(self._kinds, choice, strict=True):
            kind.apply(option, journal)

    def _group_modules(self) -> list[_Kind]:
        kinds: dict[Any, _Kind] = {}
        by_module: dict[str, list[_Demand]] = {}
        for demand in self._demands:
            by_module.setdefault(demand.use.module, []).append(demand)
        for name, demands in by_module.items():
            module = self._model.get_submodule(name)
            slots = tuple(_find_slots(module, demands))
            kinds.setdefault((type(module), slots), _Kind([], slots)).modules.append((module, demands))
        return [kind for kind in kinds.values() if kind.slots]

    def _make_error(self, failure: CalibrationError | None, smallest: float) -> LayerError:
        if failure is None or smallest < math.inf or not self._demands:
            reason = f"{failure}" if smallest == math.inf else f"its outputs differ by {smallest:.1e}"
            return LayerError(
                f"the model without the removed units fails: {reason}. Exclude the group. Nothing was removed"
            )
        without = [demand for demand in self._demands if not [*_find_slots(self._find(demand), [demand])]]
        if without:
            return UnresolvedSizeError(f"{without[0]}, and no attribute of the module contains that number")
        return UnresolvedSizeError(f"{self._demands[0]}, and changing the attributes that contain it does not help")

    def _find(self, demand: _Demand) -> nn.Module:
        return self._model.get_submodule(demand.use.module)


def _list_demands(removal: Removal) -> Iterator[_Demand]:
    """Yield the numbers that change, each once."""
    seen = set()
    for use in removal.graph.sizes:
        new = use.count_kept(removal.keep)
        if new != use.size and (use.module, use.size, new) not in seen:
            seen.add((use.module, use.size, new))
            followed = sorted({group for group in use.groups.tolist() if group >= 0})
            heads = [number for number in followed if removal.graph.groups[number].kind == "heads"]
            counts = [(len(removal.keep[number]), int(removal.keep[number].sum())) for number in heads]
            yield _Demand(use, new, counts[0] if len(followed) == len(counts) == 1 else None)


def _find_slots(module: nn.Module, demands: Sequence[_Demand]) -> Iterator[_Slot]:
    """Yield the attributes of a module that equal a number that must change, or contain it."""
    for number, demand in enumerate(demands):
        for attribute, value in module.__dict__.items():
            if attribute == "training" or attribute.startswith("_"):
                continue
            if _is_number(value, demand.use.size):
                yield _Slot(attribute, None, number)
            elif isinstance(value, tuple | list):
                for position, item in enumerate(value):
                    if _is_number(item, demand.use.size):
                        yield _Slot(attribute, position, number)
    yield from _find_config_slots(module, demands)


def _find_config_slots(module: nn.Module, demands: Sequence[_Demand]) -> Iterator[_Slot]:
    """Yield the numbers of heads in the configuration of a module, if one of the numbers in its code follows heads."""
    fields = getattr(module.__dict__.get("config"), "__dict__", {})
    for number, demand in enumerate(demands):
        if demand.heads is not None:
            for name in sorted(HEAD_COUNTS & fields.keys()):
                if isinstance(fields[name], int) and fields[name] and fields[name] % demand.heads[0] == 0:
                    yield _Slot(CONFIG + name, None, number)
            return


def _scale_heads(config: Any, field: str, demand: _Demand) -> None:
    assert demand.heads is not None, "only demands that follow heads have slots in the configuration"
    before, after = demand.heads
    setattr(config, field, getattr(config, field) // before * after)


def _is_number(value: Any, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == size


def _order_choices(options: Sequence[Sequence[tuple[_Slot, ...]]]) -> Iterator[tuple[tuple[_Slot, ...], ...]]:
    """Yield one option per kind, those first whose options are first."""
    if math.prod(map(len, options)) <= MAX_ATTEMPTS**2:
        numbers = sorted(product(*(range(len(kind)) for kind in options)), key=sum)
        yield from (tuple(kind[number] for kind, number in zip(options, choice, strict=True)) for choice in numbers)
    else:
        yield from product(*options)
