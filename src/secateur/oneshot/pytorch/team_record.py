"""Record a run of several ranks: rank 0 uses the folder, and the others follow it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.distributed.pytorch.team import Team
from secateur.oneshot.pytorch.checkpoint import CheckpointRecord
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.pytorch.storage.weight_storage import FileStorage

__all__ = ["TeamCheckpointRecord", "TeamRecord"]


class TeamRecord(RunRecord):
    """A record that only rank 0 writes and reads. Every rank backs up the dense weights of its own model.

    Args:
        team: The ranks.
        folder: The folder of rank 0.
        description: Plain values that identify the run.
    """

    def __init__(self, team: Team, folder: str | Path | None, description: Mapping[str, Any]) -> None:
        self.team = team
        super().__init__(folder if team.is_leader else None, description)

    def is_done(self, stage: int) -> bool:
        """See `RunRecord.is_done`."""
        return self.team.share(super().is_done(stage))

    def _open(self) -> None:
        super()._open()
        try:
            self.counts, self.orders = self.team.share((self.counts, self.orders))
        except BaseException:
            if not self.is_resumable:
                shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _load(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> Any:
        results: Any = None
        if self.team.is_leader:
            results = super()._load(stage, parameters)
        else:
            self.back_up(stage, parameters)
        results = self.team.share(results)
        self.team.copy(list(parameters.values()))
        return results


class TeamCheckpointRecord(TeamRecord, CheckpointRecord):
    """A record of several ranks whose finished stages are the shards of a checkpoint; see `CheckpointRecord`.

    Args:
        team: The ranks.
        folder: The folder of rank 0.
        description: Plain values that identify the run.
        storage: The storage with the blocks.
    """

    def __init__(
        self, team: Team, folder: str | Path | None, description: Mapping[str, Any], storage: FileStorage
    ) -> None:
        self.team = team
        CheckpointRecord.__init__(self, folder if team.is_leader else None, description, storage)

    def complete(self) -> None:
        """See `RunRecord.complete`."""
        if self.team.is_leader:
            super().complete()
