"""Whether a result by which a target is distributed is about the layers to prune."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from secateur._wording import format_list
from secateur.errors import ConfigError
from secateur.patterns import BasePattern

__all__ = ["KnownLayers"]


class _KnownLayer(Protocol):
    """What identifies a layer."""

    @property
    def shape(self) -> tuple[int, ...] | None: ...

    @property
    def sha256(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLayers:
    """The layers of a result by which a target is distributed.

    Attributes:
        subject: The result, as a phrase.
        verb: What it has done with the patterns, as a participle.
        advice: How to get a result that fits, as a sentence.
        layers: Layer → its shape, and the digest of its dense weight.
        patterns: Layer → the patterns that were applied to it.
        dense: Layer that was left out → the reason.
    """

    subject: str
    verb: str
    advice: str
    layers: Mapping[str, _KnownLayer]
    patterns: Mapping[str, Collection[str]]
    dense: Mapping[str, str] = field(default_factory=dict)

    def refuse_other_model(self, pattern: BasePattern, digest: Callable[[str], str]) -> None:
        """Raise `ConfigError` if the result is of another model, other weights or other patterns.

        Args:
            pattern: The pattern, bound to layers that share one target.
            digest: Returns the digest of the weight of a layer.
        """
        self._refuse_missing(pattern)
        for name in pattern.budget.units:
            shape, found = tuple(pattern.views[name].shape), self.layers[name].shape
            if found != shape:
                raise ConfigError(
                    f"{self.subject} is of another model: layer {name!r} has a weight of shape {found} there, and "
                    f"{shape} here. {self.advice}"
                )
            if pattern.pattern not in self.patterns[name]:
                raise ConfigError(
                    f"{self.subject} must have {self.verb} {pattern.pattern!r} in layer {name!r}, found "
                    f"{format_list(map(repr, self.patterns[name]))} only. {self.advice}"
                )
        if changed := [name for name in pattern.budget.units if self.layers[name].sha256 != digest(name)]:
            raise ConfigError(
                f"{self.subject} is of a model with other weights in {format_list(map(repr, changed), limit=4)}. "
                f"{self.advice}"
            )

    def _refuse_missing(self, pattern: BasePattern) -> None:
        if missing := [name for name in pattern.budget.units if name not in self.layers]:
            reasons = {repr(self.dense[name]) for name in missing if name in self.dense}
            raise ConfigError(
                f"{self.subject} must cover every layer to prune, and it lacks "
                f"{format_list(map(repr, missing))}{f' ({format_list(sorted(reasons))})' if reasons else ''}. "
                f"{self.advice}"
            )
