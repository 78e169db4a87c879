"""A group: parameters that lose the same units, and what happens to each of them when a unit is pruned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from secateur._array import Array, namespace, pairwise_sum
from secateur.errors import ConfigError, LayerError, ScoreError
from secateur.graph.index_map import IndexMap

__all__ = ["Constraints", "Group", "Member", "Role", "intersect_masks"]

Flags = npt.NDArray[np.bool_]


class Role(StrEnum):
    """What a parameter does with the units of a group."""

    PRODUCER = "producer"
    """It computes them, as the rows of a linear layer do."""

    CONSUMER = "consumer"
    """It reads them, as the columns of the next layer do; what is lost can be repaired here."""

    PER_CHANNEL = "per-channel"
    """It holds a number per unit: a norm, a bias, running statistics."""

    PINNED = "pinned"
    """It must not shrink: an input or an output of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One axis of one parameter.

    Attributes:
        parameter: The parameter's name.
        shape: Its shape as stored.
        axis: The axis along which it has units; negative axes count from the end.
        index_map: Which slices of the axis belong to which unit.
        role: What the parameter does with the units.
        aliases: Other names of the same parameter, as tied weights have.

    Raises:
        LayerError: The axis does not exist, or the index map does not fit it.
    """

    parameter: str
    shape: tuple[int, ...]
    axis: int
    index_map: IndexMap
    role: Role
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not -len(self.shape) <= self.axis < len(self.shape):
            raise LayerError(f"{self.parameter!r} has no axis {self.axis}: its shape is {self.shape}")
        object.__setattr__(self, "axis", self.axis % len(self.shape))
        try:
            self.index_map.check(self.shape[self.axis])
        except ConfigError as error:
            raise LayerError(f"{self.parameter!r}, axis {self.axis}: {error}") from error

    @property
    def unit_size(self) -> int:
        """Numbers of the parameter that belong to one unit."""
        return math.prod(self.shape) // self.shape[self.axis] * self.index_map.width

    def score_units(self, scores: Array) -> Array:
        """Add up the scores of each unit.

        Args:
            scores: One score per number of the parameter, in its shape.

        Returns:
            One score per unit, of shape (units,).
        """
        if tuple(scores.shape) != self.shape:
            raise LayerError(
                f"{self.parameter!r}: scores of shape {self.shape} are needed, found {tuple(scores.shape)}"
            )
        xp, indices = namespace(scores), self.index_map.indices()
        if scores.dtype not in (xp.float32, xp.float64):  # sums in a shorter type overflow
            scores = xp.astype(scores, xp.float32)
        others = tuple(axis for axis in range(len(self.shape)) if axis != self.axis)
        along_axis = pairwise_sum(scores, others).reshape((-1,))
        owned = along_axis[xp.asarray(indices)]
        return pairwise_sum(owned, (1,)).reshape((-1,))

    def mask(self, keep: Flags) -> Flags:
        """Return booleans in the parameter's shape, ``False`` where a unit is pruned."""
        along_axis = np.ones(self.shape[self.axis], dtype=bool)
        along_axis[self.index_map.indices()[~keep].reshape(-1)] = False
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        return np.broadcast_to(along_axis.reshape(shape), self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """How many units of a group may stay. All of them always may.

    Attributes:
        multiple: The number that stays is a multiple of this, such as 8 for fast kernels.
        divisor: The number that stays is divisible by this, such as the groups of a grouped convolution.
        equal_parts: Units are split into this many runs of equal length, and each keeps the same number, as the query
            heads of every key/value head do.
        minimum: Units that stay at least.

    Raises:
        ConfigError: A number is less than 1.
    """

    multiple: int = 1
    divisor: int = 1
    equal_parts: int = 1
    minimum: int = 1

    def __post_init__(self) -> None:
        for name in ("multiple", "divisor", "equal_parts", "minimum"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, found {getattr(self, name)}")

    @property
    def step(self) -> int:
        """What the number of units that stay is a multiple of."""
        return math.lcm(self.multiple, self.divisor, self.equal_parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units with slices in several parameters that are pruned together.

    Attributes:
        units: Number of units.
        members: The slices: axes of parameters. A parameter may occur several times, and in several groups.
        constraints: How many units may stay.

    Raises:
        LayerError: A member has another number of units, or two members claim the same slice.
        ConfigError: The units cannot be split into equal parts.

    Example:
        The hidden channels of a perceptron are rows of one weight and columns of the next:

        >>> from secateur.graph import AffineMap
        >>> channels = AffineMap(units=3)
        >>> up = Member(parameter="up", shape=(3, 2), axis=0, index_map=channels, role=Role.PRODUCER)
        >>> down = Member(parameter="down", shape=(2, 3), axis=1, index_map=channels, role=Role.CONSUMER)
        >>> group = Group(units=3, members=(up, down))
        >>> group.score_units({"up": np.ones((3, 2)), "down": np.array([[1.0, 0.0, 2.0]] * 2)})
        array([4., 2., 6.])
        >>> group.masks(group.select_units(np.array([4.0, 2.0, 6.0]), 1))["down"][0]
        array([ True, False,  True])
    """

    units: int
    members: tuple[Member, ...]
    constraints: Constraints = field(default_factory=Constraints)

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("a group needs at least one member")
        if self.units % self.constraints.equal_parts:
            raise ConfigError(f"{self.units} units cannot be split into {self.constraints.equal_parts} equal parts")
        for member in self.members:
            if member.index_map.units != self.units:
                raise LayerError(
                    f"{member.parameter!r}, axis {member.axis}: the group has {self.units} units, and its index map "
                    f"{member.index_map.units}"
                )
        self._check_disjoint()

    @property
    def unit_size(self) -> int:
        """Numbers that belong to one unit, over all members."""
        return sum(member.unit_size for member in self.members)

    @property
    def pinned(self) -> tuple[str, ...]:
        """Parameters that keep the group from being pruned."""
        return tuple(member.parameter for member in self.members if member.role is Role.PINNED)

    def score_units(self, scores: Mapping[str, Array]) -> Array:
        """Add up the scores of each unit over its members.

        Args:
            scores: Name of a parameter, or one of its aliases → one score per number, in its shape. Members without
                scores, such as biases, do not count.

        Returns:
            One score per unit, of shape (units,).

        Raises:
            LayerError: No member has scores, or they have another shape.
        """
        total: Any = None
        for member in self.members:
            name = next((name for name in (member.parameter, *member.aliases) if name in scores), None)
            if name is not None:
                part = member.score_units(scores[name])
                total = part if total is None else total + part
        if total is None:
            raise LayerError(f"scores are needed for one of {[member.parameter for member in self.members]}")
        return total

    def count_kept(self, prune: int) -> int:
        """Return how many units stay if about `prune` are to be pruned.

        It is the number nearest to ``units - prune`` that the constraints allow; of two equally near ones, the greater.
        """
        rules, wanted = self.constraints, self.units - prune
        step, lowest = rules.step, -(-rules.minimum // rules.step) * rules.step
        if self.pinned or lowest >= self.units:
            return self.units
        allowed = {lowest, self.units}
        for kept in (wanted // step * step, (wanted // step + 1) * step):
            allowed.add(min(max(kept, lowest), self.units))
        return min(allowed, key=lambda kept: (abs(kept - wanted), -kept))

    def select_units(self, scores: Array, prune: int) -> Flags:
        """Choose the units that stay: those with the highest scores; of equals, the lower index.

        Args:
            scores: One score per unit.
            prune: Units to prune; rounded as `count_kept` says.

        Returns:
            One boolean per unit, ``True`` where it stays.

        Raises:
            LayerError: The number of scores is not that of the units.
            ScoreError: A score is ``nan``.
        """
        values = np.asarray(scores)
        if values.shape != (self.units,):
            raise LayerError(f"one score for each of {self.units} units is needed, found shape {values.shape}")
        if np.isnan(values).any():
            raise ScoreError(f"scores must be numbers, found nan for unit {int(np.argmax(np.isnan(values)))}")
        kept, parts = self.count_kept(prune), self.constraints.equal_parts
        keep = np.zeros(self.units, dtype=bool)
        if kept == self.units:
            return ~keep
        for start, part in enumerate(values.reshape(parts, -1)):
            best = np.argsort(-part, kind="stable")[: kept // parts]
            keep[start * len(part) + best] = True
        return keep

    def masks(self, keep: Flags) -> dict[str, Flags]:
        """Return the mask of every parameter: ``False`` where a unit is pruned.

        Args:
            keep: One boolean per unit, ``True`` where it stays.

        Raises:
            LayerError: A unit is pruned although a member is pinned, or `keep` has another length.
        """
        if keep.shape != (self.units,):
            raise LayerError(f"one boolean for each of {self.units} units is needed, found shape {keep.shape}")
        if self.pinned and not keep.all():
            raise LayerError(f"units cannot be pruned: {', '.join(map(repr, self.pinned))} must keep its shape")
        return intersect_masks({member.parameter: member.mask(keep)} for member in self.members)

    def _check_disjoint(self) -> None:
        """Refuse slices of one axis that belong to several members."""
        owners: dict[tuple[str, int], Flags] = {}
        for member in self.members:
            indices = member.index_map.indices()
            claimed = np.full(member.shape[member.axis], -1)
            claimed[indices.reshape(-1)] = np.repeat(np.arange(self.units), member.index_map.width)
            before = owners.setdefault((member.parameter, member.axis), np.full(len(claimed), -1))
            conflict = np.flatnonzero((before >= 0) & (claimed >= 0))
            if conflict.size:
                index = int(conflict[0])
                raise LayerError(
                    f"{member.parameter!r}, axis {member.axis}: members overlap: index {index} belongs to unit "
                    f"{before[index]} of one and to unit {claimed[index]} of another"
                )
            owners[member.parameter, member.axis] = np.where(claimed >= 0, claimed, before)


def intersect_masks(masks: Iterable[Mapping[str, Flags]]) -> dict[str, Flags]:
    """Combine masks of several groups: a number stays where every group keeps it.

    Example:
        >>> rows, columns = np.array([[True], [False]]), np.array([[True, False]])
        >>> intersect_masks([{"w": np.tile(rows, (1, 2))}, {"w": np.tile(columns, (2, 1))}])["w"].tolist()
        [[True, False], [False, False]]
    """
    combined: dict[str, Flags] = {}
    for group in masks:
        for name, mask in group.items():
            combined[name] = combined[name] & mask if name in combined else mask
    return combined
