"""Where a stage's weights are while it is pruned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from secateur.oneshot.pytorch.stages import BlockStage, Stage

__all__ = ["onloaded"]


@contextmanager
def onloaded(stage: Stage) -> Iterator[None]:
    """A block on the device where it runs; afterwards it is back where it was."""
    if not isinstance(stage, BlockStage):
        yield
        return
    homes = {held.device for held in stage.module.parameters()}
    home = homes.pop() if len(homes) == 1 else None
    if home is None or home == stage.device:
        yield
        return
    try:
        stage.module.to(stage.device)
        yield
    finally:
        stage.module.to(home)
