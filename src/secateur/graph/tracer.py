"""Follow the indices of parameters through the calls of a program, and record how they depend on each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.graph.graph import Barrier
from secateur.graph.group import Role
from secateur.graph.labels import FIXED, Labels, find_axes
from secateur.graph.program import Call, Program, Value

__all__ = ["Axis", "NumberUse", "Tracer"]


CONSTANT = "combines them with a tensor of constant size, such as an input of the model"
"""Why labels that meet indices without labels are pinned."""


@dataclass(slots=True, kw_only=True, eq=False)
class Axis:
    """One axis of one parameter.

    Attributes:
        parameter: Name of the parameter; empty for a new tensor of equal elements, whose size is part of the code.
        shape: Its shape.
        axis: Number of the axis.
        first: Label of its index 0. The labels of its other indices follow.
        roles: How operations use it; empty: no operation depends on it.
    """

    parameter: str
    shape: tuple[int, ...]
    axis: int
    first: int
    roles: set[Role] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Number of indices."""
        return self.shape[self.axis]


@dataclass(slots=True, kw_only=True, eq=False)
class NumberUse:
    """A number that the code of a module passes to an operation as the size of an axis.

    Attributes:
        call: The operation.
        labels: Labels along that axis, or along several axes of which it is one.
        axis: Which axis.
    """

    call: Call
    labels: Labels
    axis: int


class Tracer:
    """Labels of all tensors, and the facts that rules add.

    Rules call its methods. Facts about single labels are arrays of labels, so all of them can be combined at the end
    with array operations.

    Args:
        keeps_sizes: Whether indices will be reordered rather than removed. Where a tensor depends on several axes, such
            as on heads and on the channels of each, they then remain apart, because they can change places along the
            last of these axes.

    Attributes:
        axes: Every axis of every parameter, by its first label.
        edges: Pairs of arrays: labels that are pruned together.
        pins: Labels that must not be pruned, with the reason.
        inexact: Labels whose removal changes the output, with the reason.
        heads: Labels of attention heads.
        rectangles: Labels that depend on several axes. What is kept must be whole rows along one of them; what is
            reordered must remain in the same row, which is along the last of them.
        numbers: Numbers in the code of modules.
        barriers: Operations without a rule.
    """

    def __init__(self, *, keeps_sizes: bool = False) -> None:
        self.keeps_sizes = keeps_sizes
        self.axes: list[Axis] = []
        self.edges: list[tuple[Labels, Labels]] = []
        self.pins: list[tuple[Labels, str]] = []
        self.inexact: list[tuple[Labels, str]] = []
        self.heads: list[Labels] = []
        self.rectangles: list[Labels] = []
        self.numbers: list[NumberUse] = []
        self.barriers: list[Barrier] = []
        self.count = 0
        self._labels: dict[Value, tuple[Labels, ...]] = {}
        self._handled: list[Labels] = []
        self._call: Call | None = None

    def add_parameters(self, program: Program) -> None:
        """Give every index of every axis of every parameter a label."""
        for name, value in program.parameters.items():
            self._labels[value] = tuple(self._number_axes(name, value.shape))

    def add_new_tensor(self, call: Call) -> None:
        """Give labels to the indices of a new tensor of equal elements, because any of them can be left out.

        Its sizes are numbers in the code of the module.
        """
        labels = self._number_axes("", call.output.shape)
        self.set_labels(call.output, labels)
        for array in labels:
            self.note_number(call, array, find_axes(array)[0])

    def _number_axes(self, parameter: str, shape: tuple[int, ...]) -> list[Labels]:
        labels = []
        for axis, size in enumerate(shape):
            if size > 1:
                self.axes.append(Axis(parameter=parameter, shape=shape, axis=axis, first=self.count))
                place = [1] * len(shape)
                place[axis] = size
                labels.append(np.arange(self.count, self.count + size).reshape(place))
                self.count += size
        return labels

    def get_labels(self, value: Value) -> tuple[Labels, ...]:
        """Return the labels of a tensor: arrays that depend on different axes."""
        return self._labels.get(value, ())

    def set_labels(self, value: Value, labels: Iterable[Labels]) -> None:
        """Set the labels of a tensor. Arrays that depend on no axis are left out, and their labels must be kept."""
        kept = []
        for array in labels:
            assert array.ndim == len(value.shape), (array.shape, value.shape)
            assert all(size in (1, length) for size, length in zip(array.shape, value.shape, strict=True))
            self._handled.append(array)
            is_rectangle = len(find_axes(array)) > 1
            if is_rectangle and (array == FIXED).any():
                self.pin(array, CONSTANT)
            elif array.size > 1 and (array != FIXED).any():
                kept.append(array)
                if is_rectangle:
                    self.rectangles.append(array)
            elif array.size == 1:
                self.pin(array, "uses one of them alone")
        self._labels[value] = tuple(kept)

    def unite(self, first: Labels, second: Labels) -> None:
        """Record that labels are pruned together, element by element. Labels united with `FIXED` must be kept."""
        first, second = np.broadcast_arrays(first, second)
        first, second = first.reshape(-1), second.reshape(-1)
        self._handled += [first, second]
        is_fixed = (first == FIXED) | (second == FIXED)
        if is_fixed.any():
            stuck = np.maximum(first[is_fixed], second[is_fixed])
            self.pin(stuck, CONSTANT)
        differ = ~is_fixed & (first != second)
        if differ.any():
            self.edges.append((first[differ], second[differ]))

    def pin(self, labels: Labels, reason: str) -> None:
        """Record that labels must not be pruned."""
        self._handled.append(labels)
        labels = np.unique(labels[labels != FIXED])
        if labels.size:
            self.pins.append((labels, self._explain(reason)))

    def mark_inexact(self, labels: Labels, reason: str) -> None:
        """Record that the output depends on the number of these labels."""
        self._handled.append(labels)
        labels = np.unique(labels[labels != FIXED])
        if labels.size:
            self.inexact.append((labels, self._explain(reason)))

    def mark_role(self, labels: Labels, role: Role) -> None:
        """Record how a weight is used along the axes to which labels belong."""
        firsts = np.array([axis.first for axis in self.axes])
        for index in np.unique(np.searchsorted(firsts, labels[labels != FIXED], side="right") - 1).tolist():
            self.axes[index].roles.add(role)

    def mark_heads(self, labels: Labels) -> None:
        """Record that labels belong to attention heads."""
        self.heads.append(np.unique(labels[labels != FIXED]))

    def fix_axes(self, labels: Labels, axes: Sequence[int], reason: str) -> Labels:
        """Record that some axes must keep their size.

        If labels also depend on other axes, all labels along the fixed axes are pruned together, such as all channels
        of a head. Otherwise none can be pruned.

        Returns:
            Labels that do not depend on the axes.
        """
        own = [axis for axis in find_axes(labels) if axis in axes]
        if not own:
            return labels
        if len(own) == len(find_axes(labels)):
            self.pin(labels, reason)
            return np.full([1] * labels.ndim, FIXED, dtype=np.int64)
        for axis in own:
            first = np.take(labels, [0], axis=axis)
            self.unite(labels, first)
            labels = first
        return labels

    def consume(self, labels: Labels) -> None:
        """Record that a rule has handled labels that are not labels of its output."""
        self._handled.append(labels)

    def note_number(self, call: Call, labels: Labels, axis: int) -> None:
        """Record that the code of a module contains the size of a labeled axis."""
        self.numbers.append(NumberUse(call=call, labels=labels, axis=axis))

    def stop(self, reason: str) -> None:
        """Make the current call a barrier: pin the labels of its inputs. Its outputs have none."""
        call = self._call
        assert call is not None
        labels = [array for value in call.inputs for array in self.get_labels(value)]
        if not labels:
            return
        barrier = Barrier(operation=call.operation, module=call.module, reason=reason)
        if barrier not in self.barriers:
            self.barriers.append(barrier)
        for array in labels:
            self.pin(array, reason)

    def begin(self, call: Call) -> None:
        """Set the current call, which reasons name, and forget which labels the rule of the previous call handled."""
        self._call, self._handled = call, []

    def end(self) -> None:
        """Pin labels of the current call's inputs that its rule has not handled."""
        assert self._call is not None
        inputs = [array.reshape(-1) for value in self._call.inputs for array in self.get_labels(value)]
        if inputs:
            handled = [array.reshape(-1) for array in self._handled]
            found = np.unique(np.concatenate(inputs))
            self.pin(np.setdiff1d(found, np.concatenate(handled)) if handled else found, "has a rule that ignores them")
        self._call = None

    def _explain(self, reason: str) -> str:
        call = self._call
        if call is None:
            return reason
        place = f"in {call.module!r}" if call.module else "in the model's own code"
        return f"{call.operation} {place} {reason}"
