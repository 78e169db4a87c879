"""The scale of the demo: a quick tour by default, or everything."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.demo.digits import PruningSetting

__all__ = ["FULL", "QUICK", "Scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The scale of the demo.

    Attributes:
        seeds: Default number of seeds per row of a table.
        torch_settings: Settings for the small torch networks; ``None``: all.
        keras_settings: Settings for the small Keras network; ``None``: all.
        solvers: Solvers for the language model.
        calibration_windows: Windows of calibration text.
        held_out_windows: Windows of text to measure perplexity on; ``None``: all.
    """

    seeds: int
    torch_settings: tuple[PruningSetting, ...] | None
    keras_settings: tuple[PruningSetting, ...] | None
    solvers: tuple[str, ...]
    calibration_windows: int
    held_out_windows: int | None


FULL = Scale(
    seeds=3,
    torch_settings=None,
    keras_settings=None,
    solvers=("magnitude", "wanda", "sparsegpt", "alps"),
    calibration_windows=16,
    held_out_windows=None,
)

QUICK = Scale(
    seeds=1,
    torch_settings=(
        PruningSetting("1x1", 0.9),
        PruningSetting("4x1", 0.9),
        PruningSetting("2:4", 0.5),
        PruningSetting("1xchannel", 0.5),
    ),
    keras_settings=(PruningSetting("4x1", 0.9),),
    solvers=("magnitude", "sparsegpt"),
    calibration_windows=8,
    held_out_windows=4,
)
