"""The record of one layer that plans, reports of pruning and slimming, artifacts and benchmarks have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

from secateur.results.records import Record

__all__ = ["LayerRecord", "join_layers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord(Record):
    """What is known about one layer; ``None``: unknown.

    Attributes:
        name: Name of the layer in the model.
        kind: Its type.
        shape: Shape of its weight as stored.
        pattern: Pattern specification, or the recognized pattern of its zeros.
        weights: Number of its weights.
        target_sparsity: Share of units that a plan prunes, in [0, 1].
        sparsity: Share of weights that are pruned, in [0, 1].
        units: Number of units with slices in its weight.
        pruned_units: Units of which every weight in this layer is pruned.
        error: Share of its output energy that was lost on the calibration data.
        dense_reason: Why it stays dense.
        note: Anything else that is special about it.
        attributes: Its attributes that slimming changed, such as ``out_features``, and their new values.
        dtype: Data type of its stored weight, such as ``"BF16"``.
        dense_bytes: Bytes of its weight when dense.
        stored_bytes: Bytes of its weight as stored.
        packing: How its weight is packed, or ``"dense"``.
        sha256: Digest of the bytes of its dense weight.
        rows: Number of rows that it multiplies in one call.
        call_bytes: Bytes of its dense weight, inputs and outputs, the minimum that one call moves.
        dense_seconds: Time of one call when dense.
        sparse_seconds: Time of one call with the fastest sparse kernel.
        kernel: The kernel that was chosen, or ``"dense"``.
        kernel_reason: Why it was chosen.

    Examples:
        >>> layer = LayerRecord(name="fc", dense_seconds=3e-3, sparse_seconds=2e-3)
        >>> round(layer.speedup, 6)
        1.5
    """

    computed: ClassVar[tuple[str, ...]] = ("speedup",)

    name: str
    kind: str | None = None
    shape: tuple[int, ...] | None = None
    pattern: str | None = None
    weights: int | None = None
    target_sparsity: float | None = None
    sparsity: float | None = None
    units: int | None = None
    pruned_units: int | None = None
    error: float | None = None
    dense_reason: str | None = None
    note: str | None = None
    attributes: dict[str, int | tuple[int, ...]] | None = None
    dtype: str | None = None
    dense_bytes: int | None = None
    stored_bytes: int | None = None
    packing: str | None = None
    sha256: str | None = None
    rows: int | None = None
    call_bytes: int | None = None
    dense_seconds: float | None = None
    sparse_seconds: float | None = None
    kernel: str | None = None
    kernel_reason: str | None = None

    @property
    def speedup(self) -> float | None:
        """Dense time divided by sparse time; ``None`` if one of them is unknown."""
        return self.dense_seconds / self.sparse_seconds if self.dense_seconds and self.sparse_seconds else None

    def fill(self, other: LayerRecord) -> Self:
        """Return the record with unknown values taken from another one."""
        unknown = [field.name for field in fields(self) if getattr(self, field.name) is None]
        return replace(self, **{name: getattr(other, name) for name in unknown})


def join_layers(*parts: Iterable[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Join records of the same layers from several sources; where they disagree, the first one wins.

    Examples:
        >>> pruned = LayerRecord(name="fc", sparsity=0.5)
        >>> timed = LayerRecord(name="fc", sparsity=0.4, kernel="2:4")
        >>> joined = join_layers([pruned], [timed, LayerRecord(name="out")])
        >>> [(layer.name, layer.sparsity, layer.kernel) for layer in joined]
        [('fc', 0.5, '2:4'), ('out', None, None)]
    """
    joined: dict[str, LayerRecord] = {}
    for part in parts:
        for record in part:
            joined[record.name] = joined[record.name].fill(record) if record.name in joined else record
    return tuple(joined.values())
