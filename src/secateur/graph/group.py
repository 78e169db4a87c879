"""Groups of units with slices in several parameters, and how pruning a unit affects each parameter."""

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
    """How a parameter uses the units of a group."""

    PRODUCER = "producer"
    """It computes the units, as the rows of a linear layer do."""

    CONSUMER = "consumer"
    """It reads the units, as the columns of the next layer do. Its other weights can compensate for pruned units."""

    PER_CHANNEL = "per-channel"
    """It has one value per unit, as a norm, a bias or running statistics do."""

    PINNED = "pinned"
    """Its shape must not change, as for an input or an output of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One axis of one parameter.

    Attributes:
        parameter: The parameter's name.
        shape: Its shape as stored.
        axis: The axis of the units; negative axes count from the end.
        index_map: Which indices along the axis belong to which unit.
        role: How the parameter uses the units.
        aliases: Other names of the same parameter, for tied weights.

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
        """Number of elements of the parameter that belong to one unit."""
        return math.prod(self.shape) // self.shape[self.axis] * self.index_map.width

    def score_units(self, scores: Array) -> Array:
        """Add up the scores of each unit.

        Args:
            scores: One score per element of the parameter, in its shape.

        Returns:
            One score per unit, of shape (units,).
        """
        if tuple(scores.shape) != self.shape:
            raise LayerError(f"{self.parameter!r}: scores must have shape {self.shape}, found {tuple(scores.shape)}")
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
    """Limits for the number of units that a group keeps. Keeping all units is always allowed.

    Attributes:
        multiple: The number of kept units is a multiple of this, such as 8 for fast kernels.
        divisor: The number of kept units is divisible by this, such as the number of groups of a grouped convolution.
        equal_parts: Units are split into this many runs of equal length, and each run keeps the same number of units,
            as is required of the query heads of each key/value head.
        minimum: Minimum number of kept units.

    Raises:
        ConfigError: A value is less than 1.
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
        """The number of kept units is a multiple of this, which combines all constraints except the minimum."""
        return math.lcm(self.multiple, self.divisor, self.equal_parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Units that have slices in several parameters and are pruned as a whole.

    Attributes:
        units: Number of units.
        members: The axes of parameters that contain the slices. A parameter may occur several times in a group, and in
            several groups.
        constraints: Limits for the number of kept units.
        name: The module that contains the members, or the layer that computes the units; unique in a graph.
        kind: ``"channels"`` or ``"heads"``.
        reason: Why its units must not be pruned, such as an operation without a rule; ``None``: they may be.
        inexact: Why removing units changes the model's output although every consumer of them is zero, such as a norm
            over them; ``None``: it does not change.

    Raises:
        LayerError: A member has a different number of units, or two members contain the same slice.
        ConfigError: The units cannot be split into equal parts.

    Examples:
        The hidden channels of a perceptron are rows of one weight and columns of the next:

        >>> from secateur.graph import AffineMap
        >>> channels = AffineMap(units=3)
        >>> up = Member(
        ...     parameter="up", shape=(3, 2), axis=0, index_map=channels, role=Role.PRODUCER
        ... )
        >>> down = Member(
        ...     parameter="down", shape=(2, 3), axis=1, index_map=channels, role=Role.CONSUMER
        ... )
        >>> group = Group(units=3, members=(up, down))
        >>> group.score_units({"up": np.ones((3, 2)), "down": np.array([[1.0, 0.0, 2.0]] * 2)})
        array([4., 2., 6.])
        >>> group.masks(group.select_units(np.array([4.0, 2.0, 6.0]), 1))["down"][0]
        array([ True, False,  True])
    """

    units: int
    members: tuple[Member, ...]
    constraints: Constraints = field(default_factory=Constraints)
    name: str = ""
    kind: str = "channels"
    reason: str | None = None
    inexact: str | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("a group needs at least one member")
        if self.units % self.constraints.equal_parts:
            raise ConfigError(f"{self.units} units cannot be split into {self.constraints.equal_parts} equal parts")
        for member in self.members:
            if member.index_map.units != self.units:
                raise LayerError(
                    f"{member.parameter!r}, axis {member.axis}: the group has {self.units} units, but the index map "
                    f"has {member.index_map.units}"
                )
        self._check_disjoint()

    @property
    def unit_size(self) -> int:
        """Number of elements that belong to one unit, over all members."""
        return sum(member.unit_size for member in self.members)

    @property
    def pinned(self) -> tuple[str, ...]:
        """Parameters that prevent the group from being pruned."""
        return tuple(member.parameter for member in self.members if member.role is Role.PINNED)

    @property
    def obstacle(self) -> str | None:
        """Why no unit can be pruned; ``None``: units can be."""
        if self.reason is not None or not self.pinned:
            return self.reason
        return f"{', '.join(map(repr, self.pinned))} must keep its shape"

    def score_units(self, scores: Mapping[str, Array]) -> Array:
        """Add up the scores of each unit over its members.

        Args:
            scores: Name of a parameter, or one of its aliases → one score per element, in its shape. Members without
                scores, such as biases, are ignored.

        Returns:
            One score per unit, of shape (units,).

        Raises:
            LayerError: No member has scores, or scores have the wrong shape.
        """
        total: Any = None
        for member in self.members:
            name = next((name for name in (member.parameter, *member.aliases) if name in scores), None)
            if name is not None:
                part = member.score_units(scores[name])
                total = part if total is None else total + part
        if total is None:
            raise LayerError(f"at least one of {[member.parameter for member in self.members]} must have scores")
        return total

    def count_kept(self, prune: int) -> int:
        """Return how many units to keep in order to prune about `prune` units.

        This is the number nearest to ``units - prune`` that the constraints allow. Ties go to the larger number.
        """
        rules, target = self.constraints, self.units - prune
        step, lowest = rules.step, -(-rules.minimum // rules.step) * rules.step
        if self.obstacle is not None or lowest >= self.units:
            return self.units
        allowed = {lowest, self.units}
        for kept in (target // step * step, (target // step + 1) * step):
            allowed.add(min(max(kept, lowest), self.units))
        return min(allowed, key=lambda kept: (abs(kept - target), -kept))

    def select_units(self, scores: Array, prune: int) -> Flags:
        """Select the units with the highest scores to keep. Ties go to the lower index.

        Args:
            scores: One score per unit.
            prune: Number of units to prune, rounded by `count_kept`.

        Returns:
            One boolean per unit, ``True`` = kept.

        Raises:
            LayerError: The number of scores is not the number of units.
            ScoreError: A score is ``nan``.
        """
        values = np.asarray(scores)
        if values.shape != (self.units,):
            raise LayerError(f"scores must have shape {(self.units,)}, found {values.shape}")
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
        """Return the mask of each parameter, ``False`` where a unit is pruned.

        Args:
            keep: One boolean per unit, ``True`` = kept.

        Raises:
            LayerError: A unit is pruned although a member is pinned, or `keep` has the wrong length.
        """
        if keep.shape != (self.units,):
            raise LayerError(f"keep must have shape {(self.units,)}, found {keep.shape}")
        if self.obstacle is not None and not keep.all():
            raise LayerError(f"units cannot be pruned: {self.obstacle}")
        return intersect_masks({member.parameter: member.mask(keep)} for member in self.members)

    def _check_disjoint(self) -> None:
        """Raise `LayerError` if an index along an axis belongs to several members."""
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
                    f"{before[index]} of one member and to unit {claimed[index]} of another"
                )
            owners[member.parameter, member.axis] = np.where(claimed >= 0, claimed, before)


def intersect_masks(masks: Iterable[Mapping[str, Flags]]) -> dict[str, Flags]:
    """Combine the masks of several groups: an element is kept if every group keeps it.

    Examples:
        >>> rows, columns = np.array([[True], [False]]), np.array([[True, False]])
        >>> first, second = np.tile(rows, (1, 2)), np.tile(columns, (2, 1))
        >>> intersect_masks([{"w": first}, {"w": second}])["w"].tolist()
        [[True, False], [False, False]]
    """
    combined: dict[str, Flags] = {}
    for group in masks:
        for name, mask in group.items():
            combined[name] = combined[name] & mask if name in combined else mask
    return combined
