"""Find an order of input channels for which N:M keeps higher scores.

Legend: R rows of scores, C channels, G groups, M channels of a group; N some of the channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secateur.errors import ConfigError

__all__ = ["compute_kept_score", "search_permutation"]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

FIRST_TEMPERATURE, LAST_TEMPERATURE = 0.35, 0.08
"""Temperatures of the annealing, relative to the standard deviation of what exchanges gain at first."""

CHUNK = 1 << 18
"""Scores compared at a time, few enough to fit in the cache of a core."""


def compute_kept_score(scores_RC: npt.ArrayLike, keep: int, group: int) -> float:
    """Return the sum of the `keep` best scores of each `group` consecutive channels, over all rows."""
    scores = np.asarray(scores_RC)
    grouped = scores.reshape(len(scores), -1, group)
    return float(np.sort(grouped, axis=2)[:, :, group - keep :].sum(dtype=np.float64))


def search_permutation(
    scores_RC: npt.ArrayLike, keep: int, group: int, *, sweeps: int = 400, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Find an order of channels in which N:M keeps a higher sum of scores than in the given one.

    The gain of each exchange of two channels is known exactly at any time: an exchange only changes two groups, and a
    channel x in place of another one adds ``Σ max(t, x)`` to the N - 1 best of the others, whose N-th best is t.
    Simulated annealing draws exchanges at random, and then they are made as long as any has a gain. Unlike the search
    of the paper, the time does not depend on the number of ways to fill groups.

    Args:
        scores_RC: Scores, ≥ 0, of shape (rows, channels); higher ones are kept.
        keep: N, the channels kept in each group in each row.
        group: M, the length of a group, which divides the number of channels.
        sweeps: How often the annealing visits each channel, ≥ 0.
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
        >>> order = search_permutation(scores, keep=2, group=4)
        >>> compute_kept_score(scores, 2, 4), compute_kept_score(scores[:, order], 2, 4)
        (7.0, 10.0)
    """
    scores = np.asarray(scores_RC, dtype=np.float32)
    if scores.ndim != 2 or scores.shape[1] % group or not 0 < keep < group or not np.isfinite(scores).all():
        raise ConfigError(
            f"scores must be finite, of shape (rows, channels) with a multiple of {group} channels, and keep between 1 "
            f"and {group - 1}, found shape {scores.shape} and keep={keep}."
        )
    exchange = _ChannelExchange(scores, keep, group)
    channels = scores.shape[1]
    if channels > group and (scale := exchange.measure_scale()) > 0:
        exchange.anneal(sweeps * channels, scale, np.random.default_rng(seed))
        exchange.climb()
    order = np.sort(exchange.groups_GM, axis=1)
    order = order[order[:, 0].argsort()].reshape(-1)
    is_better = compute_kept_score(scores[:, order], keep, group) > compute_kept_score(scores, keep, group)
    return order if is_better else np.arange(channels)


class _ChannelExchange:
    """The groups of channels, and what each keeps with another channel in place of one of its own.

    Attributes:
        groups_GM: The channels of each group.
        kept_CC: For each channel (row), what its group keeps with each other channel (column) in its place.
    """

    def __init__(self, scores_RC: Floats, keep: int, group: int) -> None:
        self.keep, self.group = keep, group
        self.scores_CR = np.ascontiguousarray(scores_RC.T)
        channels = len(self.scores_CR)
        self.groups_GM = np.arange(channels).reshape(-1, group)
        self.owner_C, self.slot_C = np.divmod(np.arange(channels), group)
        self.others_MO = np.array([np.delete(np.arange(group), slot) for slot in range(group)])
        self.kept_CC = np.empty((channels, channels), dtype=np.float32)
        self.kept_G = np.empty(len(self.groups_GM), dtype=np.float32)
        for start in range(len(self.groups_GM)):
            self._update(np.array([start]))

    def _update(self, groups_N: Indices) -> None:
        """Compute what some groups keep, with all channels."""
        channels_NM = self.groups_GM[groups_N]
        others_NMOR = np.sort(self.scores_CR[channels_NM][:, self.others_MO], axis=2)
        limit_NR = others_NMOR[:, :, -self.keep].reshape(-1, self.scores_CR.shape[1])
        better_N = others_NMOR[:, :, self.group - self.keep :].sum(axis=(2, 3)).reshape(-1)
        step = max(1, CHUNK // limit_NR.size)
        flat_N = channels_NM.reshape(-1)
        for start in range(0, len(self.scores_CR), step):
            columns = slice(start, start + step)
            self.kept_CC[flat_N, columns] = np.maximum(limit_NR[:, None], self.scores_CR[columns]).sum(axis=2)
        self.kept_CC[flat_N] += better_N[:, None]
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
        channels = range(0, len(self.scores_CR), self.group)
        return float(np.std([self.find_gains(channel) for channel in channels]))

    def anneal(self, steps: int, scale: float, generator: np.random.Generator) -> None:
        """Draw exchanges at a falling temperature, so that fewer and fewer have a loss."""
        ratio = LAST_TEMPERATURE / FIRST_TEMPERATURE
        for step in range(steps):
            temperature = scale * FIRST_TEMPERATURE * ratio ** (step / steps)
            channel = int(generator.integers(len(self.scores_CR)))
            noise_C = generator.gumbel(size=len(self.scores_CR))
            self._exchange(channel, int((self.find_gains(channel) / temperature + noise_C).argmax()))

    def climb(self) -> None:
        """Exchange channels as long as that gains more than rounding errors."""
        has_changed = True
        while has_changed:
            has_changed = False
            for channel in range(len(self.scores_CR)):
                gain_C = self.find_gains(channel)
                other = int(gain_C.argmax())
                if gain_C[other] > 1e-5 * (self.kept_G[self.owner_C[channel]] + self.kept_G[self.owner_C[other]]):
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
