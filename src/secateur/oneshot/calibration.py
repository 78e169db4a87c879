"""What a trained model is shown while it is pruned, and how that goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from secateur.errors import ConfigError

__all__ = ["Calibration", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a calibrated run stands, after each part of the model.

    Attributes:
        stage: What was done last, e.g. ``"model.layers.3"``.
        done: Parts done.
        total: Parts in all.
        seconds: Time so far.
        seconds_left: Estimate of what is left, from the parts done in this process; 0 at the end.
    """

    stage: str
    done: int
    total: int
    seconds: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration data, and where they and the model are held meanwhile.

    Attributes:
        batches: Batches as the model takes them: mappings of keyword arguments, as tokenizers return; tuples of
            positional ones; or single tensors. Tokens that ``attention_mask`` calls padding do not count. All are held
            in memory.
        device: Where each part of the model runs while it is pruned, e.g. ``"cuda"``; ``None``: where it is.
        offload: Where the inputs of the next part wait: ``"memory"`` of the host, or ``"disk"``.
        folder: Where finished parts are written, so that the same call goes on there after an interruption; empty again
            at the end, but for the pruned model if `weights` is set. ``None``: an interrupted run starts anew.
        progress: Called after each part.
        weights: Where the values of a model lie that is on the meta device: a safetensors file, or a folder with such
            files, under the names of the model's parameters. One block is in memory at a time. The model stays as it
            is, and `folder` becomes a checkpoint of the pruned one, in the files' types, for ``from_pretrained``.
        keep_parts: Whether finished parts stay in `folder` at the end too, so that the same call gives the same result
            again, without solving anything. Remove the folder once the model is saved.

    Raises:
        ConfigError: `offload` is neither, or there is no `folder` for `weights` or `keep_parts`.

    Example:
        >>> Calibration([], offload="disk").offload
        'disk'
    """

    batches: Iterable[Any]
    device: Any = None
    offload: Literal["memory", "disk"] = "memory"
    folder: str | Path | None = None
    progress: Callable[[Progress], object] | None = None
    weights: str | Path | None = None
    keep_parts: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.offload not in ("memory", "disk"):
            raise ConfigError(f"offload must be 'memory' or 'disk', found {self.offload!r}.")
        if self.weights is not None and self.folder is None:
            raise ConfigError("folder must be set where weights is: the pruned model is written there. Found None.")
        if self.keep_parts and self.folder is None:
            raise ConfigError("folder must be set where keep_parts is: the parts are kept there. Found None.")
