"""Find an order of channels in which a pattern keeps higher scores.

Legend: R rows of scores, C channels, G groups, M channels of a group; N some of the groups; P one channel of each group
left out; O the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError

__all__ = ["BlockGoal", "Goal", "NMGoal", "search_permutation"]

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]

FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.25, 0.08
"""Temperatures of the annealing, relative to the standard deviation of what exchanges gain at first."""

SWEEPS = 1000
"""How often annealing visits each channel."""

MAX_ANNEALED, MIN_ROWS = 1 << 20, 128
"""Maximum rows × channels² for annealing, which takes two seconds, and the rows below which it gets no faster. Larger
searches gain little from it."""

MAX_SUBSET = 256
"""Maximum number of channels that are searched at a time. The effort grows with its square."""

ROUNDS = 4
"""How often more channels than that are divided at random, and each part is searched."""

CHUNK = 1 << 16
"""Scores compared at a time, few enough to fit in the cache of a core."""


class Goal(ABC):
    """What a group of channels keeps, as a sum over rows of scores.

    Attributes:
        group: Number of channels of a group.
    """

    group: int

    @abstractmethod
    def split(self, others: Sequence[Floats]) -> tuple[Floats, Floats]:
        """Describe what groups keep with one more channel.

        Args:
            others: The scores of their other channels, each of shape (..., R).

        Returns:
            A limit of shape (..., R) and a number of shape (...): with a channel x, a group keeps the number plus
            ``Σ max(limit, x)``, up to a constant.
        """

    def measure(self, scores_RC: npt.NDArray[np.floating]) -> float:
        """Return what all groups keep, with the channels in the given order."""
        grouped = scores_RC.astype(np.float64).reshape(len(scores_RC), -1, self.group)
        *others, last = grouped.transpose(2, 1, 0)
        limits, numbers = self.split(others)
        return float(np.maximum(limits, last).sum() + numbers.sum())


@dataclass(frozen=True, slots=True)
class NMGoal(Goal):
    """Keep the best few of each group in each row, as N:M does.

    Attributes:
        keep: N.
        group: M.

    Examples:
        >>> NMGoal(2, 4).measure(np.array([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]))
        7.0
    """

    keep: int
    group: int

    def split(self, others: Sequence[Floats]) -> tuple[Floats, Floats]:
        """See `Goal.split`: the limit is the N-th best of the others, and the number is the sum of the better ones."""
        best = list(others)
        for place in range(self.keep):  # a sorting network, as np.sort is slow along short axes
            for right in range(len(best) - 1, place, -1):
                left = right - 1
                best[left], best[right] = np.maximum(best[left], best[right]), np.minimum(best[left], best[right])
        numbers = np.zeros(best[0].shape[:-1], dtype=best[0].dtype)
        for better in best[: self.keep - 1]:
            numbers += better.sum(axis=-1)
        return best[self.keep - 1], numbers


@dataclass(frozen=True, slots=True, eq=False)
class BlockGoal(Goal):
    """Keep the blocks whose score is above a threshold, which are the best ones of a layer.

    Attributes:
        group: Number of channels that a block spans.
        thresholds: The threshold of each row, of shape (R,).

    Examples:
        Relative to the threshold, which pruned blocks count too:

        >>> BlockGoal(2, np.array([3.0])).measure(np.array([[4.0, 1.0, 1.0, 0.0]]))
        8.0
    """

    group: int
    thresholds: Floats

    def split(self, others: Sequence[Floats]) -> tuple[Floats, Floats]:
        """See `Goal.split`: a block counts with its score or the threshold, whichever is higher."""
        total = np.sum(others, axis=0)
        return self.thresholds - total, total.sum(axis=-1)


def search_permutation(
    scores_RC: npt.ArrayLike, goal: Goal, *, sweeps: int | None = None, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Find an order of channels in which groups keep a higher sum of scores than in the given one.

    The gain of each exchange of two channels is known exactly at any time, because an exchange only changes two groups.
    Few channels are exchanged by simulated annealing at first, and then as long as any exchange has a gain. Many
    channels are divided at random, whole groups at a time, and each part is searched; this is repeated. Unlike the
    search of the paper, the time does not depend on the number of ways to fill groups.

    Args:
        scores_RC: Scores, ≥ 0, of shape (rows, channels); higher ones are kept.
        goal: What a group of channels keeps.
        sweeps: How often the annealing visits each channel, ≥ 0. ``None``: 1,000, or 0 if that would take more than
            about two seconds.
        seed: Seed of the random numbers. Equal arguments give equal results.

    Returns:
        The channel at each position. Channels ascend in each group, and so do the first channels of the groups. If no
        order is better, the given one.

    Raises:
        ConfigError: The scores cannot be divided into groups, or are not finite.

    Source:
        Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021.

    Examples:
        >>> scores = np.array([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
        >>> order = search_permutation(scores, NMGoal(keep=2, group=4))
        >>> NMGoal(keep=2, group=4).measure(scores[:, order])
        10.0
    """
    scores = np.asarray(scores_RC, dtype=np.float32)
    if scores.ndim != 2 or scores.shape[1] % goal.group or not np.isfinite(scores).all():
        raise ConfigError(
            f"scores must be finite, of shape (rows, channels) with a multiple of {goal.group} channels, found shape "
            f"{scores.shape}."
        )
    rows, channels = scores.shape
    scores_CR = np.ascontiguousarray(scores.T)
    size = max(MAX_SUBSET // goal.group, 2)
    if sweeps is None:
        sweeps = SWEEPS if max(rows, MIN_ROWS) * channels**2 <= MAX_ANNEALED else 0
    groups_GM = np.arange(channels).reshape(-1, goal.group)
    generator = np.random.default_rng(seed)
    for _ in range(ROUNDS if len(groups_GM) > size else 1):
        shuffled = generator.permutation(len(groups_GM))
        for chosen in np.array_split(shuffled, -(-len(shuffled) // size)):
            part = groups_GM[chosen].reshape(-1)
            groups_GM[chosen] = part[_search_groups(scores_CR[part], goal, sweeps, generator)]
    order = np.sort(groups_GM, axis=1)
    order = order[order[:, 0].argsort()].reshape(-1)
    return order if goal.measure(scores[:, order]) > goal.measure(scores) else np.arange(channels)


def _search_groups(scores_CR: Floats, goal: Goal, sweeps: int, generator: np.random.Generator) -> Indices:
    """Return the channels of each group, of shape (G, M)."""
    exchange = _ChannelExchange(scores_CR, goal)
    if len(exchange.groups_GM) > 1 and (scale := exchange.measure_scale()) > 0:
        exchange.anneal(sweeps, scale, generator)
        exchange.climb()
    return exchange.groups_GM


class _ChannelExchange:
    """The groups of channels, and what each keeps with another channel in place of one of its own.

    Attributes:
        groups_GM: The channels of each group.
        kept_CC: For each channel (row), what its group keeps with each other channel (column) in its place.
    """

    def __init__(self, scores_CR: Floats, goal: Goal) -> None:
        self.goal = goal
        self.scores_CR = scores_CR
        channels, rows = scores_CR.shape
        self.groups_GM = np.arange(channels).reshape(-1, goal.group)
        self.owner_C, self.slot_C = np.divmod(np.arange(channels), goal.group)
        self.others_PO = np.array([np.delete(np.arange(goal.group), slot) for slot in range(goal.group)])
        self.kept_CC = np.empty((channels, channels), dtype=np.float32)
        self.kept_G = np.empty(len(self.groups_GM), dtype=np.float32)
        self.ones_R = np.ones(rows, dtype=np.float32)
        for start in range(len(self.groups_GM)):
            self._update(np.array([start]))

    def _update(self, groups_N: Indices) -> None:
        """Compute what some groups keep, with all channels."""
        channels_NM = self.groups_GM[groups_N]
        scores_NPOR = self.scores_CR[channels_NM][:, self.others_PO]
        limits, numbers = self.goal.split(list(np.moveaxis(scores_NPOR, 2, 0)))
        limit_NR = limits.reshape(-1, len(self.ones_R))
        chosen = channels_NM.reshape(-1)
        step = max(1, CHUNK // limit_NR.size)
        for start in range(0, len(self.scores_CR), step):
            columns = slice(start, start + step)
            # A product with ones adds faster than a sum does.
            self.kept_CC[chosen, columns] = np.maximum(limit_NR[:, None], self.scores_CR[columns]) @ self.ones_R
        self.kept_CC[chosen] += numbers.reshape(-1, 1)
        self.kept_G[groups_N] = self.kept_CC[channels_NM[:, 0], channels_NM[:, 0]]

    def find_gains(self, channel: int) -> Floats:
        """Return what the exchange of a channel with each other one gains; 0 within its group."""
        owner = self.owner_C[channel]
        gain_C: Floats = self.kept_CC[channel] + self.kept_CC[:, channel]
        gain_C -= self.kept_G[owner] + self.kept_G[self.owner_C]
        gain_C[self.groups_GM[owner]] = 0
        return gain_C

    def measure_scale(self) -> float:
        """Return the standard deviation of what exchanges gain."""
        channels = range(0, len(self.scores_CR), self.goal.group)
        return float(np.std([self.find_gains(channel) for channel in channels]))

    def anneal(self, sweeps: int, scale: float, generator: np.random.Generator) -> None:
        """Draw exchanges at a falling temperature, so that fewer and fewer have a loss."""
        channels, ratio = len(self.scores_CR), LAST_TEMPERATURE / FIRST_TEMPERATURE
        for sweep in range(sweeps):
            temperature = scale * FIRST_TEMPERATURE * ratio ** (sweep / sweeps)
            noise_CC = generator.gumbel(scale=temperature, size=(channels, channels)).astype(np.float32)
            for channel, noise_C in zip(generator.integers(channels, size=channels).tolist(), noise_CC, strict=True):
                self._exchange(channel, int((self.find_gains(channel) + noise_C).argmax()))

    def climb(self) -> None:
        """Exchange channels as long as that gains more than rounding errors."""
        has_changed = True
        while has_changed:
            has_changed = False
            for channel in range(len(self.scores_CR)):
                gain_C = self.find_gains(channel)
                other = int(gain_C.argmax())
                if gain_C[other] > 1e-5 * abs(self.kept_G[self.owner_C[channel]] + self.kept_G[self.owner_C[other]]):
                    self._exchange(channel, other)
                    has_changed = True

    def _exchange(self, first: int, second: int) -> None:
        """Exchange two channels of different groups; nothing happens within one group."""
        owners_N, slots_N = self.owner_C[[first, second]], self.slot_C[[first, second]]
        if owners_N[0] == owners_N[1]:
            return
        self.groups_GM[owners_N, slots_N] = second, first
        self.owner_C[[second, first]], self.slot_C[[second, first]] = owners_N, slots_N
        self._update(owners_N)
