"""How much of each layer was pruned, as a model for how to distribute other targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from secateur.results.layer_record import LayerRecord
from secateur.results.records import Record

__all__ = ["LayerShares", "LayerSharesSource"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShares(Record):
    """How much of each layer was pruned.

    Attributes:
        origin: What pruned them, such as ``"trial 7 of the search"``.
        layers: The layers, each with its shape, its pattern, its units, how many of them were pruned, and the digest of
            its dense weight.
    """

    origin: str
    layers: tuple[LayerRecord, ...]


class LayerSharesSource(ABC):
    """Base class of results by which `secateur.prune` distributes a target: pass them as ``allocation``."""

    __slots__ = ()

    @abstractmethod
    def get_layer_shares(self) -> LayerShares:
        """Return how much of each layer was pruned.

        Raises:
            ConfigError: It is not known, or does not tell how to distribute a target.
        """
