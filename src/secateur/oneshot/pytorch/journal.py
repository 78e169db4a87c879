"""What a run leaves on disk: dense weights to go back to, and finished stages to go on from."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from secateur.errors import StateError

__all__ = ["AGAIN", "RUN", "Journal", "read_tensors", "write_tensors", "write_text"]

RUN = "run.json"
"""What tells a run that is not finished from others."""

OWN = re.compile(r"(\d{5}\.(dense|done)|model-\d{5}-of-\d{5})\.(safetensors|json)(\.part)?")
"""Files of a run; whatever else lies in the folder is let be."""

AGAIN = "Delete it to have this part pruned again."
"""What to do about a finished stage that cannot be read."""


class Journal:
    """A folder that says what a run has done so far.

    Args:
        folder: Where; made if need be. ``None``: a temporary one, from which nothing can be resumed.
        described: What tells this run from others, as plain values.

    Raises:
        StateError: The folder holds another run, or something else.
    """

    def __init__(self, folder: str | Path | None, described: Mapping[str, Any]) -> None:
        self._temporary = TemporaryDirectory(prefix="secateur-") if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else str(folder))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"The folder {str(self.folder)!r} cannot be made ({error}). Choose another.") from error
        self.is_resumable = folder is not None
        self.described = dict(described)
        self._dense_sums: dict[int, str] = {}
        found = self._read()
        if found is not None and found["described"] != self.described:
            differs = [key for key in self.described if found["described"].get(key) != self.described[key]]
            raise StateError(
                f"The folder {str(self.folder)!r} holds an unfinished run of another kind (it differs in "
                f"{', '.join(differs)}). Call with the same arguments to go on with it, or empty the folder."
            )
        self.counts: dict[str, int] | None = None if found is None else found["counts"]
        self._remove("dense", "part")  # of a process that was killed: this model's own are saved again

    def begin(self, counts: Mapping[str, int]) -> None:
        """Note how much of each layer is to go."""
        self.counts = dict(counts)
        write_text(self.folder / RUN, json.dumps({"described": self.described, "counts": self.counts}))

    def keep_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        """Save parameters as they are before a stage changes them."""
        if self.is_resumable:
            self._dense_sums[stage] = _checksum(parameters)
        self._save_dense(stage, parameters)

    def commit(self, stage: int, parameters: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> None:
        """Save what a stage made of its parameters, and what there is to report."""
        if self.is_resumable:
            metadata = {"found": json.dumps(found), "dense": self._dense_sums[stage]}
            self._write_done(stage, parameters, metadata | {"checksum": _checksum(parameters)})

    def resume(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> Any | None:
        """Put a finished stage's parameters into the model; returns what `commit` was given, or ``None``: unfinished.

        Raises:
            StateError: The stage was finished with other dense weights, or its file is damaged.
        """
        if not self._is_done(stage):
            return None
        self.keep_dense(stage, parameters)
        metadata, tensors = self._read_done(stage)
        if metadata.get("checksum") != _checksum(tensors):
            raise StateError(f"{self._done(stage)} cannot be read (it was changed since it was written). {AGAIN}")
        if metadata["dense"] != self._dense_sums[stage]:
            raise StateError(
                f"The folder {str(self.folder)!r} holds an unfinished run of a model with other weights. Load the same "
                f"dense model again, or empty the folder."
            )
        for name, tensor in parameters.items():
            tensor.copy_(tensors[name])
        return json.loads(metadata["found"])

    def complete(self) -> None:
        """Write what the result consists of besides the finished stages; here it is the model itself."""

    def undo(self, model: nn.Module) -> None:
        """Give the model its dense weights back."""
        own = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for path in sorted(self._own("dense"), reverse=True):
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        own[name].copy_(file.get_tensor(name))

    def close(self, *, finished: bool) -> None:
        """Remove what is not needed any more: everything, or the dense weights of a run that may be resumed."""
        self._remove("dense", "part", *(["done"] if finished else []))
        if finished:
            (self.folder / RUN).unlink(missing_ok=True)
        if self._temporary:
            self._temporary.cleanup()

    def stages_done(self) -> int:
        """How many stages can be resumed from."""
        return len(list(self._own("done")))

    def _save_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        write_tensors(self._dense(stage), parameters, {})

    def _is_done(self, stage: int) -> bool:
        return self._done(stage).exists()

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
            found = json.loads(path.read_text("utf-8"))
            return {"described": dict(found["described"]), "counts": dict(found["counts"])}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise StateError(f"{path} cannot be read ({error}). Empty the folder to start anew.") from error

    def _own(self, *kinds: str) -> Iterator[Path]:
        """Files of a run that are of one of these kinds."""
        files = [entry for entry in self.folder.iterdir() if OWN.fullmatch(entry.name)]
        return (entry for entry in files if not set(kinds).isdisjoint(entry.name.split(".")))

    def _remove(self, *kinds: str) -> None:
        for path in self._own(*kinds):
            path.unlink()

    def _dense(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.dense.safetensors"

    def _done(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.done.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write all or nothing, whenever the process ends."""
    unfinished = path.with_name(path.name + ".part")
    save_file(_apart(tensors), unfinished, {"format": "pt", **metadata})
    os.replace(unfinished, path)


def write_text(path: Path, text: str) -> None:
    """Write all or nothing, whenever the process ends."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, copied only where several share their memory, which safetensors refuses."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().contiguous()
        memory = held.untyped_storage()
        is_alone = memory.nbytes() == held.nbytes and memory.data_ptr() not in seen
        seen.add(memory.data_ptr())
        found[name] = held if is_alone else held.clone()
    return found


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a finished stage.

    Raises:
        StateError: The file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise StateError(f"{path} cannot be read ({error}). {AGAIN}") from error
    return metadata, tensors


def _checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
