"""Record a run on disk, so that it can be undone or resumed: dense weights and finished stages."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._locks import try_lock_folder
from secateur.errors import StateError
from secateur.oneshot.pytorch.backup import WeightBackup
from secateur.oneshot.pytorch.tensor_files import (
    DELETE_ADVICE,
    compute_checksum,
    explain_write_errors,
    read_tensors,
    write_tensors,
    write_text,
)
from secateur.oneshot.run_folder import RUN, seal_values, unseal_values

__all__ = ["OTHER_WEIGHTS", "RunRecord", "set_seed"]

RUN_FILE_NAME = re.compile(r"(\d{5}\.done|model-\d{5}-of-\d{5})\.(safetensors|state)(\.part)?")
"""Names of the files of a run. Other files in the folder are not touched."""

SEED = 0
"""Seed of all random generators in `set_seed`."""

OTHER_WEIGHTS = "other weights"
"""Key of the weights that are not pruned, in the description of a run."""


class RunRecord:
    """Records the progress of a run in a folder.

    Args:
        folder: The folder, created if necessary. ``None``: a temporary one, from which runs cannot be resumed.
        description: Plain values that identify the run.

    Attributes:
        counts: How many units of each layer to prune; ``None``: not known yet.
        orders: The orders of channels and what they gain, as plain values; ``None``: unknown, or not reordered.

    Raises:
        StateError: The folder contains another run or other files, or is in use by another run.
        StorageError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path | None, description: Mapping[str, Any]) -> None:
        self.is_resumable = folder is not None
        self.folder = _create_folder(folder)
        self.description = dict(description)
        self.counts: dict[str, int] | None = None
        self.orders: dict[str, Any] | None = None
        self._dense_checksums: dict[int, str] = {}
        self._dense = WeightBackup(self.folder)
        self._lock = ExitStack()
        try:
            if self.is_resumable:
                self._lock.enter_context(_lock_run(self.folder))
            self._open()
        except BaseException:
            self._release()
            raise

    def begin(self, counts: Mapping[str, int]) -> None:
        """Record how many units of each layer to prune, and in which orders channels are."""
        self.counts = dict(counts)
        values = {"described": self.description, "counts": self.counts, "orders": self.orders}
        write_text(self.folder / RUN, seal_values(values))

    def back_up(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        """Save parameters before a stage changes them."""
        if self.is_resumable:
            self._dense_checksums[stage] = compute_checksum(parameters)
        self._save_dense(stage, parameters)

    def commit(self, stage: int, parameters: Mapping[str, torch.Tensor], results: Mapping[str, Any]) -> None:
        """Save the parameters and the results of a finished stage."""
        if self.is_resumable:
            metadata = {"found": json.dumps(results), "dense": self._dense_checksums[stage]}
            seal = compute_checksum(parameters, metadata["found"] + metadata["dense"])
            self._write_done(stage, parameters, metadata | {"checksum": seal})

    def is_done(self, stage: int) -> bool:
        """Whether the file of a finished stage exists."""
        return self._get_done_path(stage).is_file()

    def resume(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> Any | None:
        """Load the parameters of a finished stage into the model.

        Returns:
            The results that `commit` saved; ``None`` if the stage is unfinished.

        Raises:
            StateError: The stage was finished with other dense weights, or its file is damaged.
        """
        return self._load(stage, parameters) if self.is_done(stage) else None

    def complete(self) -> None:
        """Write everything else that the result needs. Nothing here, because the result is the model in memory."""

    def undo(self, model: nn.Module) -> None:
        """Restore the model's dense weights.

        Raises:
            StateError: Restoring fails; the message says where the weights are.
        """
        self._dense.restore(model)

    def close(self, *, finished: bool) -> None:
        """Remove files that are no longer needed.

        Args:
            finished: Whether to remove finished stages too, because the run will not be resumed.
        """
        with suppress(OSError):  # files that cannot be removed are harmless: the same call resumes from them
            self._dense.remove()
            self._remove("part", *(["done"] if finished else []))
            if finished:
                (self.folder / RUN).unlink(missing_ok=True)
        self._release()
        if not self.is_resumable:
            shutil.rmtree(self.folder, ignore_errors=True)

    def abandon(self) -> None:
        """Keep all files, because the dense weights could not be restored."""
        self._release()

    def count_finished(self) -> int:
        """Return the number of finished stages."""
        return len(list(self._list_files("done")))

    def _open(self) -> None:
        saved = self._read()
        if saved is not None and saved["described"] != self.description:
            keys = {**self.description, **saved["described"]}
            differences = [key for key in keys if saved["described"].get(key) != self.description.get(key)]
            if not (named := [key for key in differences if key != OTHER_WEIGHTS]):
                raise self._create_other_weights_error()
            raise StateError(
                f"The folder {str(self.folder)!r} contains a different unfinished run (it differs in "
                f"{', '.join(named)}). Call with the same arguments to resume it, or empty the folder."
            )
        self.counts = None if saved is None else saved["counts"]
        self.orders = None if saved is None else saved.get("orders")  # files of earlier versions lack it
        with explain_write_errors(self.folder):  # left by a killed process; dense weights are saved again
            self._dense.remove()
            self._remove("part")

    def _load(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> Any:
        """Load a finished stage; see `resume`."""
        self.back_up(stage, parameters)
        metadata, tensors = self._read_done(stage)
        results, dense = metadata.get("found", ""), metadata.get("dense", "")
        if metadata.get("checksum") != compute_checksum(tensors, results + dense):
            raise StateError(f"{self._get_done_path(stage)} cannot be read (its checksum is wrong). {DELETE_ADVICE}")
        if dense != self._dense_checksums[stage]:
            raise self._create_other_weights_error()
        for name, tensor in parameters.items():
            tensor.copy_(tensors[name])
        return json.loads(results)

    def _create_other_weights_error(self) -> StateError:
        return StateError(
            f"The folder {str(self.folder)!r} contains an unfinished run of a model with other weights. Load the same "
            f"dense model, or empty the folder."
        )

    def _release(self) -> None:
        self._lock.close()

    def _save_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        self._dense.save(stage, parameters)

    def _write_done(self, stage: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        write_tensors(self._get_done_path(stage), tensors, metadata)

    def _read_done(self, stage: int) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        return read_tensors(self._get_done_path(stage))

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / RUN
        if not path.exists():
            if unrelated := [entry.name for entry in self.folder.iterdir() if entry.suffix == ".safetensors"]:
                raise StateError(
                    f"The folder {str(self.folder)!r} contains files that do not belong to a run, such as "
                    f"{unrelated[0]!r}. Choose an empty folder."
                )
            return None
        try:
            return unseal_values(path.read_text("utf-8"))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StateError(f"{path} cannot be read ({error}). Empty the folder to start over.") from error

    def _list_files(self, *kinds: str) -> Iterator[Path]:
        """Return the files of a run of the given kinds."""
        files = [entry for entry in self.folder.iterdir() if RUN_FILE_NAME.fullmatch(entry.name)]
        return (entry for entry in files if not set(kinds).isdisjoint(entry.name.split(".")))

    def _remove(self, *kinds: str) -> None:
        for path in self._list_files(*kinds):
            path.unlink()

    def _get_done_path(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.done.safetensors"


@contextmanager
def _lock_run(folder: Path) -> Iterator[None]:
    """Lock a folder against other runs within this context."""
    with try_lock_folder(folder) as is_locked:
        if is_locked is False:
            raise StateError(
                f"Another run is using the folder {str(folder)!r}. Wait until it ends, or choose another folder."
            )
        yield


def _create_folder(folder: str | Path | None) -> Path:
    """Create the folder, or a temporary one."""
    if folder is None:
        with explain_write_errors(Path("A temporary folder")):
            return Path(mkdtemp(prefix="secateur-"))
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise StateError(f"The folder {str(folder)!r} cannot be created ({error}). Choose another.") from error
    return path


def set_seed() -> None:
    """Seed all random generators, so that a resumed run builds its model with the same random weights."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
