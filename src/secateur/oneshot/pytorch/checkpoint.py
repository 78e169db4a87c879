"""Write the pruned model as a checkpoint, block by block."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from secateur._huggingface.companions import CompanionFiles
from secateur._huggingface.folders import INDEX_FILE, format_index, name_shard
from secateur.errors import StateError
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.pytorch.storage.weight_files import read_weight_header
from secateur.oneshot.pytorch.storage.weight_storage import FileStorage
from secateur.oneshot.pytorch.tensor_files import DELETE_ADVICE, read_header, read_tensors, write_tensors, write_text

__all__ = ["CheckpointRecord"]


class CheckpointRecord(RunRecord):
    """A record of a run whose finished stages are the shards of a checkpoint in the format of transformers.

    The dense weights are in files already, so they are not backed up.

    Args:
        folder: The folder; empty, or with an unfinished run of the same kind. ``None``: nothing is written but by
            `complete`.
        description: Plain values that identify the run.
        storage: The storage with the blocks. Each block is a shard, and everything else is the last shard.
    """

    def __init__(self, folder: str | Path | None, description: Mapping[str, Any], storage: FileStorage) -> None:
        source = storage.files.path
        # Opened before anything is pruned, so that a file that must not be copied is reported early.
        self._companions = CompanionFiles(source) if source.is_dir() else None
        self.storage = storage
        super().__init__(folder, description)

    def commit(self, stage: int, parameters: Mapping[str, torch.Tensor], results: Mapping[str, Any]) -> None:
        """See `RunRecord.commit`; the other tensors of the block are written too."""
        super().commit(
            stage, dict(parameters) | self.storage.collect_tensors(list(self.storage.blocks)[stage]), results
        )

    def complete(self) -> None:
        """Write the blocks without pruned layers, everything outside of blocks, the index and the companion files."""
        for number, (name, block) in enumerate(self.storage.blocks.items()):
            # Without a state file the block is not finished: an existing shard may belong to another model.
            if not self._get_state_path(number).is_file():
                with self.storage.load(block):
                    write_tensors(self._get_done_path(number), self.storage.collect_tensors(name), {})
        shards = [self._get_done_path(number) for number in range(len(self.storage.blocks) + 1)]
        write_tensors(shards[-1], self.storage.collect_tensors(None), {})
        if self._companions is not None:
            self._companions.copy(self.folder)
        shard_names = {name: path.name for path in shards for name in read_weight_header(path)}
        write_text(self.folder / INDEX_FILE, format_index(shard_names, sum(map(_count_tensor_bytes, shards))))

    def is_done(self, stage: int) -> bool:
        """See `RunRecord.is_done`."""
        return self._get_state_path(stage).is_file() and self._get_done_path(stage).is_file()

    def _save_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        pass

    def _write_done(self, stage: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        # In a separate file, because shards contain only weights. Written last, because it marks the stage as done.
        write_tensors(self._get_done_path(stage), tensors, {})
        write_text(self._get_state_path(stage), json.dumps(metadata))

    def _read_done(self, stage: int) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        _, tensors = read_tensors(self._get_done_path(stage))
        try:
            return dict(json.loads(self._get_state_path(stage).read_text("utf-8"))), tensors
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StateError(f"{self._get_state_path(stage)} cannot be read ({error}). {DELETE_ADVICE}") from error

    def _get_state_path(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.done.state"

    def _get_done_path(self, stage: int) -> Path:
        return self.folder / name_shard(stage + 1, len(self.storage.blocks) + 1)


def _count_tensor_bytes(path: Path) -> int:
    """Return the number of bytes of the tensors in a file, as an index counts them."""
    _, start = read_header(path)
    return path.stat().st_size - start
