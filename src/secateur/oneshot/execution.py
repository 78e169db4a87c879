"""Settings of a calibrated run: device, offloading, folder, weights and progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secateur.errors import ConfigError

__all__ = ["Execution", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a calibrated run, reported after each part of the model.

    Refining the whole model is the last part, and is also reported after each of its steps.

    Attributes:
        stage: The part that was just finished, e.g. ``"model.layers.3"``, or ``"the model, step 3 of 64"``.
        done: Parts finished.
        total: Parts in total.
        seconds: Elapsed time.
        seconds_left: Estimated remaining time, from the parts pruned in this process; 0 at the end.
        action: What was done to it: ``"Pruned"``, ``"Refined"`` for the whole model, or ``"Reordered"`` for a group of
            channels, which come first and are counted separately.
    """

    stage: str
    done: int
    total: int
    seconds: float
    seconds_left: float
    action: str = "Pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """Settings that control where and how a calibrated run executes.

    Attributes:
        device: The device on which each part of the model runs while it is pruned, e.g. ``"cuda"``; ``None``: the
            model's current device.
        offload: Where the inputs of the next part are stored: in ``"memory"`` on the host, or on ``"disk"``.
        folder: Where finished parts are written, so that the same call resumes an interrupted run. At the end the
            folder is empty, unless `weights` or `keep_parts` is set. ``None``: an interrupted run starts over.
        weights: The weights of a model on the meta device: a safetensors file, or a folder of such files, keyed by the
            names of the model's parameters. One block is in memory at a time. The model itself does not change;
            `folder` becomes a checkpoint of the pruned model, in the files' dtypes, for ``from_pretrained``.
        keep_parts: Whether finished parts also stay in `folder` at the end, so that the same call returns the same
            result again without solving anything. Delete the folder once the model is saved.
        progress: Called after each part, on rank 0 only if several processes prune together.
        processes: Which processes prune the model: ``"all"`` of ``torch.distributed`` if it is initialized, each of
            which calls `prune` with the same arguments; or ``"one"``, only this one.

        allow_int8: Whether the inputs of layers may be computed with 8-bit integers, on processors that are faster with
            them (VNNI). Only solvers of single layers, such as ``"wanda"`` and ``"sparsegpt"``, do so. The result is
            not rounded, and refiners of blocks and of the model compute as usual.

    Raises:
        ConfigError: `offload` or `processes` is invalid, or `weights` or `keep_parts` is set without a `folder`.

    Examples:
        >>> Execution(device="cpu", offload="disk").offload
        'disk'
    """

    device: Any = None
    offload: Literal["memory", "disk"] = "memory"
    folder: str | Path | None = None
    weights: str | Path | None = None
    keep_parts: bool = False
    progress: Callable[[Progress], object] | None = None
    processes: Literal["all", "one"] = "all"
    allow_int8: bool = True

    def __post_init__(self) -> None:
        if self.offload not in ("memory", "disk"):
            raise ConfigError(f"offload must be 'memory' or 'disk', found {self.offload!r}.")
        if self.processes not in ("all", "one"):
            raise ConfigError(f"processes must be 'all' or 'one', found {self.processes!r}.")
        if self.weights is not None and self.folder is None:
            raise ConfigError("weights needs a folder to write the pruned model to. Set folder.")
        if self.keep_parts and self.folder is None:
            raise ConfigError("keep_parts needs a folder to keep the finished parts in. Set folder.")
