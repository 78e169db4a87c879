"""What a run leaves on disk: dense weights to go back to, and finished stages to go on from."""

from __future__ import annotations

import hashlib
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
from secateur.oneshot.pytorch.tensor_files import AGAIN, checksum, read_tensors, write_tensors, write_text, writing
from secateur.oneshot.run_folder import RUN

__all__ = ["OTHER_WEIGHTS", "RunRecord", "set_seed"]

OWN = re.compile(r"(\d{5}\.done|model-\d{5}-of-\d{5})\.(safetensors|state)(\.part)?")
"""Files of a run; whatever else lies in the folder is let be."""

SEED = 0

OTHER_WEIGHTS = "other weights"
"""What stands for the weights that are not pruned, in what is said of a run."""


class RunRecord:
    """A folder that says what a run has done so far.

    Args:
        folder: Where; made if need be. ``None``: a temporary one, from which nothing can be resumed.
        described: What tells this run from others, as plain values.

    Raises:
        StateError: The folder holds another run, or something else, or another run works in it.
        StorageError: It cannot be written.
    """

    def __init__(self, folder: str | Path | None, described: Mapping[str, Any]) -> None:
        self.is_resumable = folder is not None
        self.folder = _made_folder(folder)
        self.described = dict(described)
        self.counts: dict[str, int] | None = None
        self._dense_sums: dict[int, str] = {}
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
        """Note how much of each layer is to go."""
        self.counts = dict(counts)
        write_text(self.folder / RUN, _sealed({"described": self.described, "counts": self.counts}))

    def back_up(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        """Save parameters as they are before a stage changes them."""
        if self.is_resumable:
            self._dense_sums[stage] = checksum(parameters)
        self._save_dense(stage, parameters)

    def commit(self, stage: int, parameters: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> None:
        """Save what a stage made of its parameters, and what there is to report."""
        if self.is_resumable:
            metadata = {"found": json.dumps(found), "dense": self._dense_sums[stage]}
            seal = checksum(parameters, metadata["found"] + metadata["dense"])
            self._write_done(stage, parameters, metadata | {"checksum": seal})

    def is_done(self, stage: int) -> bool:
        """Whether a stage is finished, as far as the names of files tell."""
        return self._done(stage).is_file()

    def resume(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> Any | None:
        """Put a finished stage's parameters into the model; returns what `commit` was given, or ``None``: unfinished.

        Raises:
            StateError: The stage was finished with other dense weights, or its file is damaged.
        """
        if not self.is_done(stage):
            return None
        self.back_up(stage, parameters)
        metadata, tensors = self._read_done(stage)
        found, dense = metadata.get("found", ""), metadata.get("dense", "")
        if metadata.get("checksum") != checksum(tensors, found + dense):
            raise StateError(f"{self._done(stage)} cannot be read (it was changed since it was written). {AGAIN}")
        if dense != self._dense_sums[stage]:
            raise self._other_weights()
        for name, tensor in parameters.items():
            tensor.copy_(tensors[name])
        return json.loads(found)

    def complete(self) -> None:
        """Write what the result consists of besides the finished stages; here it is the model itself."""

    def undo(self, model: nn.Module) -> None:
        """Give the model its dense weights back.

        Raises:
            StateError: That fails; the message says where they are.
        """
        self._dense.restore(model)

    def close(self, *, finished: bool) -> None:
        """Remove what is not needed any more.

        Args:
            finished: Whether nobody wants to go on from here: no finished stage stays.
        """
        with suppress(OSError):  # what cannot be removed does no harm: the same call goes on from it
            self._dense.remove()
            self._remove("part", *(["done"] if finished else []))
            if finished:
                (self.folder / RUN).unlink(missing_ok=True)
        self._release()
        if not self.is_resumable:
            shutil.rmtree(self.folder, ignore_errors=True)

    def abandon(self) -> None:
        """Leave everything where it is, because the dense weights could not be put back."""
        self._release()

    def count_finished(self) -> int:
        """How many stages can be resumed from."""
        return len(list(self._own("done")))

    def _open(self) -> None:
        found = self._read()
        if found is not None and found["described"] != self.described:
            keys = {**self.described, **found["described"]}
            differs = [key for key in keys if found["described"].get(key) != self.described.get(key)]
            if not (named := [key for key in differs if key != OTHER_WEIGHTS]):
                raise self._other_weights()
            raise StateError(
                f"The folder {str(self.folder)!r} holds an unfinished run of another kind (it differs in "
                f"{', '.join(named)}). Call with the same arguments to go on with it, or empty the folder."
            )
        self.counts = None if found is None else found["counts"]
        with writing(self.folder):  # what a process that was killed left: this model's own are saved again
            self._dense.remove()
            self._remove("part")

    def _other_weights(self) -> StateError:
        return StateError(
            f"The folder {str(self.folder)!r} holds an unfinished run of a model with other weights. Load the same "
            f"dense model again, or empty the folder."
        )

    def _release(self) -> None:
        self._lock.close()

    def _save_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        self._dense.save(stage, parameters)

    def _write_done(self, stage: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        write_tensors(self._done(stage), tensors, metadata)

    def _read_done(self, stage: int) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
        return read_tensors(self._done(stage))

    def _read(self) -> dict[str, Any] | None:
        path = self.folder / RUN
        if not path.exists():
            if strangers := [entry.name for entry in self.folder.iterdir() if entry.suffix == ".safetensors"]:
                raise StateError(
                    f"The folder {str(self.folder)!r} holds files that are not of a run, such as {strangers[0]!r}. "
                    f"Choose an empty folder."
                )
            return None
        try:
            return _unsealed(path.read_text("utf-8"))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise StateError(f"{path} cannot be read ({error}). Empty the folder to start anew.") from error

    def _own(self, *kinds: str) -> Iterator[Path]:
        """Files of a run that are of one of these kinds."""
        files = [entry for entry in self.folder.iterdir() if OWN.fullmatch(entry.name)]
        return (entry for entry in files if not set(kinds).isdisjoint(entry.name.split(".")))

    def _remove(self, *kinds: str) -> None:
        for path in self._own(*kinds):
            path.unlink()

    def _done(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.done.safetensors"


@contextmanager
def _lock_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder."""
    with try_lock_folder(folder) as is_locked:
        if is_locked is False:
            raise StateError(
                f"Another run works in the folder {str(folder)!r}. Wait for its end, or choose another folder."
            )
        yield


def _made_folder(folder: str | Path | None) -> Path:
    """The folder, or a new temporary one."""
    if folder is None:
        with writing(Path("A temporary folder")):
            return Path(mkdtemp(prefix="secateur-"))
    made = Path(folder)
    try:
        made.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise StateError(f"The folder {str(folder)!r} cannot be made ({error}). Choose another.") from error
    return made


def _sealed(values: Mapping[str, Any]) -> str:
    """Values as JSON, with a checksum."""
    text = json.dumps(values)
    return json.dumps({"checksum": hashlib.sha256(text.encode()).hexdigest(), "values": text})


def _unsealed(text: str) -> dict[str, Any]:
    """The inverse of `_sealed`.

    Raises:
        ValueError: The text was changed.
    """
    found = json.loads(text)
    if hashlib.sha256(found["values"].encode()).hexdigest() != found["checksum"]:
        raise ValueError("it was changed since it was written")
    return dict(json.loads(found["values"]))


def set_seed() -> None:
    """Seed all random generators, so that code which builds a model gives it the same weights when a run is resumed."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
