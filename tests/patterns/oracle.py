"""What the patterns mean, once more, in the plainest NumPy and at any cost.

A weight here is an (O, K, I) array; a layer's *labels* give the unit of each of its weights (of an N:M pattern: the
group of each).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]


def parse_counts(spec: str) -> tuple[int, int]:
    """N and M."""
    keep, group = spec.removesuffix("-transposable").split(":")
    return int(keep), int(group)


def labels(spec: str, shape: tuple[int, int, int], groups: int = 1) -> Labels:
    """The unit of each weight, numbered in order of first appearance along rows, positions, columns of blocks."""
    if ":" in spec:
        columns, whole = parse_counts(spec)[1], False
        rows = columns if spec.endswith("transposable") else 1
    else:
        left, right = spec.split("x")
        whole = "channel" in (left, right)
        rows = shape[0] // groups if left == "channel" else int(left)
        columns = shape[2] if right == "channel" else int(right)
    found: dict[tuple[int, int, int], int] = {}
    unit_of = np.zeros(shape, dtype=np.int64)
    places = sorted(np.ndindex(*shape), key=lambda at: (at[0] // rows, 0 if whole else at[1], at[2] // columns))
    for row, position, column in places:
        unit = (row // rows, 0 if whole else position, column // columns)
        unit_of[row, position, column] = found.setdefault(unit, len(found))
    return unit_of


def reduced(values: Floats, reduction: str) -> np.float32:
    """The score of a unit; exact for small whole numbers, so that the order of additions does not show."""
    if reduction == "max":
        return np.float32(values.max())
    if reduction == "l2":
        return np.float32((values**2).sum())
    total = np.float32(values.sum())
    return total * np.float32(1.0 / values.size) if reduction == "mean" else total


def unit_scores(scores: Floats, unit_of: Labels, reduction: str) -> list[float]:
    return [float(reduced(scores[unit_of == unit], reduction)) for unit in range(unit_of.max() + 1)]


def counts_to_prune(
    scores: Sequence[Sequence[float]],
    alive: Sequence[Sequence[bool]],
    total: int,
    bounds: Sequence[tuple[int, int]],
) -> list[int]:
    """Take units one by one from the bottom of one ranking until the counts within bounds add up to `total`."""
    ranking = sorted(
        (living, score, -layer, -index)
        for layer, (layer_scores, layer_alive) in enumerate(zip(scores, alive, strict=True))
        for index, (score, living) in enumerate(zip(layer_scores, layer_alive, strict=True))
    )
    bounds = [(max(low, list(layer).count(False)), high) for (low, high), layer in zip(bounds, alive, strict=True)]
    bounds = [(low, max(low, high)) for low, high in bounds]
    taken = [0] * len(scores)
    for _, _, minus_layer, _ in [*ranking, (True, 0.0, 0, 0)]:
        counts = [min(max(count, low), high) for count, (low, high) in zip(taken, bounds, strict=True)]
        if sum(counts) >= total:
            break
        taken[-minus_layer] += 1
    return counts


def keep_best(scores: Sequence[float], alive: Sequence[bool], pruned: int) -> Bools:
    """All but the lowest `pruned` of one layer; what was pruned before goes first, of equals the higher index."""
    ranking = sorted(range(len(scores)), key=lambda index: (alive[index], scores[index], -index))
    keep = np.ones(len(scores), dtype=bool)
    keep[ranking[: max(pruned, list(alive).count(False))]] = False
    return keep


def block_masks(
    scores: Mapping[str, Floats],
    unit_of: Mapping[str, Labels],
    totals: int | Mapping[str, int],
    bounds: Mapping[str, tuple[int, int]],
    *,
    reduction: str = "mean",
    previous: Mapping[str, Bools] | None = None,
) -> dict[str, Bools]:
    """The masks of a block pattern; `totals` is one number for a global ranking, one per layer for local ones."""
    names = list(scores)
    by_unit = {name: unit_scores(scores[name], unit_of[name], reduction) for name in names}
    alive = {name: [True] * len(by_unit[name]) for name in names}
    if previous is not None:
        alive = {
            name: [bool(previous[name][unit_of[name] == unit].any()) for unit in range(len(by_unit[name]))]
            for name in names
        }
    if isinstance(totals, int):
        ranked, living = [by_unit[name] for name in names], [alive[name] for name in names]
        found = counts_to_prune(ranked, living, totals, [bounds[name] for name in names])
        totals = dict(zip(names, found, strict=True))
    return {name: keep_best(by_unit[name], alive[name], totals[name])[unit_of[name]] for name in names}


def best_of_group(scores: Floats, keep: int, alive: Bools) -> Bools:
    """The best `keep` of one group; of equals, the lower index."""
    ranking = sorted(range(scores.size), key=lambda index: (not alive[index], -scores[index], index))
    best = np.zeros(scores.size, dtype=bool)
    best[ranking[:keep]] = True
    return best & alive


def group_masks(
    scores: Mapping[str, Floats],
    spec: str,
    total: int,
    *,
    previous: Mapping[str, Bools] | None = None,
) -> dict[str, Bools]:
    """The masks of an N:M pattern with `total` groups pruned, by the sum of what each would lose."""
    keep, size = (int(number) for number in spec.split(":"))
    values = {name: array.reshape(-1, size) for name, array in scores.items()}
    alive = {
        name: np.ones(array.shape, dtype=bool) if previous is None else previous[name].reshape(-1, size)
        for name, array in values.items()
    }
    best = {
        name: np.array([best_of_group(*pair) for pair in zip(array, [keep] * len(array), alive[name], strict=True)])
        for name, array in values.items()
    }
    losses = {name: (array * (alive[name] & ~best[name])).sum(axis=1).tolist() for name, array in values.items()}
    dense = {name: (living.sum(axis=1) > keep).tolist() for name, living in alive.items()}
    everything = [(0, len(losses[name])) for name in losses]
    counts = counts_to_prune(list(losses.values()), list(dense.values()), total, everything)
    masks = {}
    for (name, loss), count in zip(losses.items(), counts, strict=True):
        stay = keep_best(loss, dense[name], count)[:, None]
        masks[name] = np.where(stay, alive[name], best[name]).reshape(scores[name].shape)
    return masks
