"""Record the sparsity of a run after each update that changes it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["UpdateHistory", "merge_histories"]


class UpdateHistory:
    """The share of units pruned after each update of a run that changed it.

    Progressive runs prune the weights of units in parts; a unit counts once all of them are pruned. The history is not
    saved: it starts over when a state is loaded.

    Attributes:
        shares: Step → share of units pruned after it, in [0, 1].
        before: The share before the first of these steps.

    Examples:
        >>> history = UpdateHistory()
        >>> history.record(10, before=0.0, after=0.25)
        >>> history.record(20, before=0.25, after=0.5)
        >>> history.find_share(15), history.find_share(5)
        (0.25, 0.0)
        >>> history.record(60, before=0.75, after=0.8)  # another state was loaded
        >>> history.shares
        {60: 0.8}
    """

    def __init__(self) -> None:
        self.shares: dict[int, float] = {}
        self.before: float | None = None

    def start(self, step: int, share: float) -> None:
        """Record the share at the start of a run."""
        self.shares, self.before = {step: share}, share

    def record(self, step: int, *, before: float, after: float) -> None:
        """Record the share after an update. If `before` is not the last recorded share, clear the history first."""
        self.shares = {past: share for past, share in self.shares.items() if past < step}
        if not self.shares or next(reversed(self.shares.values())) != before:
            self.shares, self.before = {}, before
        if not self.shares or after != before:
            self.shares[step] = after

    def find_share(self, step: int) -> float | None:
        """Return the share after a step; ``None``: it is unknown."""
        past = [share for recorded, share in self.shares.items() if recorded <= step]
        return past[-1] if past else self.before


def merge_histories(
    histories: Sequence[UpdateHistory], units: Sequence[int], last: int
) -> tuple[tuple[int, float], ...]:
    """Return the share of the units of all runs that are pruned after each step at which one of them changes.

    Args:
        histories: One history per run.
        units: Number of units of each run.
        last: Last step to include.

    Examples:
        >>> first, second = UpdateHistory(), UpdateHistory()
        >>> first.start(0, 0.0)
        >>> second.start(0, 0.0)
        >>> first.record(10, before=0.0, after=0.5)
        >>> merge_histories([first, second], [300, 100], last=10)
        ((0, 0.0), (10, 0.375))
    """
    merged = []
    for step in sorted({step for history in histories for step in history.shares if step <= last}):
        shares = [history.find_share(step) for history in histories]
        known = [(share, count) for share, count in zip(shares, units, strict=True) if share is not None]
        if len(known) == len(histories):
            merged.append((step, sum(share * count for share, count in known) / sum(units)))
    return tuple(merged)
