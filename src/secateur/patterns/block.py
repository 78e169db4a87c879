"""Block patterns, from single weights (``1x1``) to whole channels, which prune any set of blocks."""

from __future__ import annotations

import re

from secateur.errors import ConfigError, LayerError
from secateur.frameworks.view import WeightView
from secateur.patterns.base import BasePattern, register_pattern
from secateur.patterns.tiling import BlockTiling, OutputsLastTiling, Tiling

__all__ = ["BlockPattern", "explain_misfit"]

SPECIFICATION = re.compile(r"([1-9]\d*|channel)x([1-9]\d*|channel)")


@register_pattern("NxM")
class BlockPattern(BasePattern):
    """Prune blocks of N output channels × M input channels.

    ``channel`` stands for all channels: ``1xchannel`` is a whole output channel, which spans all input channels, and
    ``channelx1`` a whole input channel. In a convolution, a block is at one kernel position, and a channel spans all
    positions.

    Examples:
        >>> import torch
        >>> from secateur.patterns import get_pattern
        >>> pattern = get_pattern({"pattern": "1xchannel"}, {"fc": torch.nn.Linear(6, 8)})
        >>> pattern.units["fc"].count, pattern.units["fc"].unit_size
        (8, 6)
    """

    @classmethod
    def serves(cls, specification: str) -> bool:
        """Whether the specification has the form ``NxM``, with a number or ``channel`` on either side, but not both."""
        return SPECIFICATION.fullmatch(specification) is not None and specification != "channelxchannel"

    def tile(self, view: WeightView) -> Tiling:
        """Tile into equal blocks; see `BasePattern.tile`."""
        rows, columns = self._parse_specification()
        if rows == columns == "1" and view.outputs_last:
            return OutputsLastTiling(view.canonical_shape)
        outputs, positions, inputs = view.canonical_shape
        group = outputs // view.groups
        if rows != "channel" and group % int(rows):
            channels = "output channels" if view.groups == 1 else f"output channels in each of {view.groups} groups"
            raise LayerError(explain_misfit(group, channels, "N", int(rows), self.pattern, view))
        if columns != "channel" and inputs % int(columns):
            raise LayerError(explain_misfit(inputs, "input channels", "M", int(columns), self.pattern, view))
        whole = "channel" in (rows, columns)
        return BlockTiling(
            (outputs, positions, inputs),
            (
                group if rows == "channel" else int(rows),
                positions if whole else 1,
                inputs if columns == "channel" else int(columns),
            ),
            is_outputs_last=view.outputs_last,
        )

    def _parse_specification(self) -> tuple[str, str]:
        if not self.serves(self.pattern):
            raise ConfigError(f"pattern {self.pattern!r} is a pattern type, not a specification. Use 4x1, for example.")
        rows, columns = self.pattern.split("x")
        return rows, columns


def explain_misfit(length: int, channels: str, letter: str, step: int, pattern: str, view: WeightView) -> str:
    """Explain why a number of channels does not fit a pattern, and suggest what would fit."""
    fitting = [str(number) for number in range(2, min(length, 64) + 1) if length % number == 0]
    advice = f"pick {letter} from {', '.join(fitting)}" if fitting else "pick another pattern"
    shape = "x".join(str(size) for size in view.shape)
    return (
        f"{length} {channels} are not a multiple of {letter}={step} in {pattern!r} (weight {shape}). "
        f"Exclude the layer or {advice}."
    )
