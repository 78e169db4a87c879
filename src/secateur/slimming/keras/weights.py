"""Find the units of a Keras model that nothing reads, and probe that nothing does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keras
import numpy as np
import numpy.typing as npt

from secateur.frameworks.keras import read_array
from secateur.graph import Graph, Group, Role
from secateur.slimming.removal import Flags, Removal

__all__ = ["add_noise", "cut_array", "find_zero_units"]

SEED = 0

MIN_SCALE = 0.1
"""Scale of the noise for variables of zeros, such as the running means of a new model."""

POSITIVE = ("variance", "stddev")
"""Last parts of the names of variables that must stay positive."""


def find_zero_units(graph: Graph, variables: Mapping[str, keras.Variable]) -> list[Flags]:
    """Return for each group which units nothing reads: all weights that do are zero, of shape (units,)."""
    return [_find_zeros(group, variables) for group in graph.groups]


def _find_zeros(group: Group, variables: Mapping[str, keras.Variable]) -> Flags:
    readers = [member for member in group.members if member.role is Role.CONSUMER]
    is_zero = np.full(group.units, bool(readers))
    for member in readers:
        others = tuple(axis for axis in range(len(member.shape)) if axis != member.axis)
        along_axis = ~(read_array(variables[member.parameter]) != 0).any(axis=others)
        is_zero &= along_axis[member.index_map.indices()].all(axis=1)
    return is_zero


def cut_array(array: npt.NDArray[np.generic], name: str, removal: Removal) -> npt.NDArray[np.generic]:
    """Return a weight without the removed units."""
    for (parameter, axis), indices in removal.list_removed(frozenset(Role)).items():
        if parameter == name:
            array = np.delete(array, indices, axis=axis)
    return array


@contextmanager
def add_noise(removal: Removal, variables: Mapping[str, keras.Variable]) -> Iterator[None]:
    """Write noise into weights that compute removed units and zeros into those that read them, then restore both."""
    generator = np.random.default_rng(SEED)
    writers = removal.list_removed({Role.PRODUCER, Role.PER_CHANNEL})
    readers = removal.list_removed({Role.CONSUMER})
    saved = {name: read_array(variables[name]).copy() for name, _ in (*writers, *readers)}
    changed = {name: values.copy() for name, values in saved.items()}
    for (name, axis), indices in writers.items():
        values = np.moveaxis(changed[name], axis, 0)
        noise = generator.standard_normal(values[indices].shape) * _get_scale(saved[name])
        values[indices] += np.abs(noise) if name.endswith(POSITIVE) else noise
    for (name, axis), indices in readers.items():
        np.moveaxis(changed[name], axis, 0)[indices] = 0
    try:
        for name, values in changed.items():
            variables[name].assign(values)
        yield
    finally:
        for name, values in saved.items():
            variables[name].assign(values)


def _get_scale(values: npt.NDArray[np.generic]) -> float:
    size = float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))
    return size if 0 < size < np.inf else MIN_SCALE
