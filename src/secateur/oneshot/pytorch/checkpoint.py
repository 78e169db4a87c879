"""Write the pruned model as a checkpoint, one block after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from secateur._huggingface.companions import CODE_SUFFIXES, COMPANION_SUFFIXES, CompanionFiles
from secateur._huggingface.folders import INDEX_FILE, format_index, name_shard
from secateur.errors import StateError
from secateur.oneshot.pytorch.resume import RunRecord
from secateur.oneshot.pytorch.tensor_files import DELETE_ADVICE, read_header, read_tensors, write_tensors, write_text
from secateur.oneshot.pytorch.weight_files import read_weight_header
from secateur.oneshot.pytorch.weight_storage import FileStorage
from secateur.oneshot.run_folder import RUN

__all__ = ["CheckpointRecord"]


class CheckpointRecord(RunRecord):
    """A record of a run whose finished stages are the shards of a checkpoint in the format of transformers.

    The dense weights are in files already, so they are not backed up.

    Args:
        folder: The folder; empty, or with an unfinished run of the same kind.
        described: Plain values that identify the run.
        storage: The storage with the blocks. Each block is a shard, and everything else is the last shard.
    """

    def __init__(self, folder: str | Path, described: Mapping[str, Any], storage: FileStorage) -> None:
        source = storage.files.path
        # Opened before anything is pruned, so that a file that must not be copied is reported early.
        self._companions = (
            CompanionFiles(source, COMPANION_SUFFIXES | CODE_SUFFIXES, {RUN}) if source.is_dir() else None
        )
        self.storage = storage
        super().__init__(folder, described)

    def commit(self, stage: int, parameters: Mapping[str, torch.Tensor], results: Mapping[str, Any]) -> None:
        """See `RunRecord.commit`; the other tensors of the block are written too."""
        super().commit(
            stage, dict(parameters) | self.storage.collect_tensors(list(self.storage.blocks)[stage]), results
        )

    def complete(self) -> None:
        """Write the blocks without pruned layers, everything outside of blocks, the index and companion files."""
        for number, (name, block) in enumerate(self.storage.blocks.items()):
            # Without a note the block is not finished: an existing shard may be of another model.
            if not self._note(number).is_file():
                with self.storage.load(block):
                    write_tensors(self._done(number), self.storage.collect_tensors(name), {})
        shards = [self._done(number) for number in range(len(self.storage.blocks) + 1)]
        write_tensors(shards[-1], self.storage.collect_tensors(None), {})
        if self._companions is not None:
            self._companions.copy(self.folder)
        places = {name: path.name for path in shards for name in read_weight_header(path)}
        write_text(self.folder / INDEX_FILE, format_index(places, sum(map(_data_bytes, shards))))

    def is_done(self, stage: int) -> bool:
        """See `RunRecord.is_done`."""
        return self._note(stage).is_file() and self._done(stage).is_file()

    def _save_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        pass

    def _write_done(self, stage: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        # In a file of its own, because shards contain only weights. Written last, because it marks the stage as done.
        write_tensors(self._done(stage), tensors, {})
        write_text(self._note(stage), json.dumps(metadata))

    def _read_done(self, stage: int) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        _, tensors = read_tensors(self._done(stage))
        try:
            return dict(json.loads(self._note(stage).read_text("utf-8"))), tensors
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StateError(f"{self._note(stage)} cannot be read ({error}). {DELETE_ADVICE}") from error

    def _note(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.done.state"

    def _done(self, stage: int) -> Path:
        return self.folder / name_shard(stage + 1, len(self.storage.blocks) + 1)


def _data_bytes(path: Path) -> int:
    """Return the number of bytes of the tensors in a file, as an index counts them."""
    _, start = read_header(path)
    return path.stat().st_size - start
