"""What a run leaves on disk: dense weights to go back to, and finished stages to go on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from secateur.errors import StateError

__all__ = ["Journal", "digest"]

RUN = "run.json"


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
        self.folder.mkdir(parents=True, exist_ok=True)
        self.is_resumable = folder is not None
        self.described = dict(described)
        found = self._read()
        if found is not None and found["described"] != self.described:
            differs = [key for key in self.described if found["described"].get(key) != self.described[key]]
            raise StateError(
                f"The folder {str(self.folder)!r} holds an unfinished run of another kind (it differs in "
                f"{', '.join(differs)}). Call with the same arguments to go on with it, or empty the folder."
            )
        self.counts: dict[str, int] | None = None if found is None else found["counts"]

    def begin(self, counts: Mapping[str, int]) -> None:
        """Note how much of each layer is to go."""
        self.counts = dict(counts)
        _write_text(self.folder / RUN, json.dumps({"described": self.described, "counts": self.counts}))

    def keep_dense(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        """Save parameters as they are before a stage changes them."""
        _write_tensors(self._dense(stage), parameters, {})

    def commit(self, stage: int, parameters: Mapping[str, torch.Tensor], found: Mapping[str, Any]) -> None:
        """Save what a stage made of its parameters, and what there is to report."""
        if self.is_resumable:
            before = digest(self._dense(stage))
            _write_tensors(self._done(stage), parameters, {"found": json.dumps(found), "dense": before})

    def resume(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> Any | None:
        """Put a finished stage's parameters into the model; returns what `commit` was given, or ``None``: unfinished.

        Raises:
            StateError: The stage was finished with other dense weights, or its file is damaged.
        """
        path = self._done(stage)
        if not path.exists():
            return None
        self.keep_dense(stage, parameters)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                if metadata["dense"] != digest(self._dense(stage)):
                    raise StateError(
                        f"The folder {str(self.folder)!r} holds an unfinished run of a model with other weights. Load "
                        f"the same dense model again, or empty the folder."
                    )
                for name, tensor in parameters.items():
                    tensor.copy_(file.get_tensor(name))
        except SafetensorError as error:
            raise StateError(f"{path} cannot be read ({error}). Delete it to have this part pruned again.") from error
        return json.loads(metadata["found"])

    def undo(self, model: nn.Module) -> None:
        """Give the model its dense weights back."""
        own = dict(model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for path in sorted(self.folder.glob("*.dense.safetensors"), reverse=True):
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        own[name].copy_(file.get_tensor(name))

    def close(self, *, finished: bool) -> None:
        """Remove what is not needed any more: everything, or the dense weights of a run that may be resumed."""
        for path in self.folder.glob("*.safetensors"):
            if finished or path.name.endswith(".dense.safetensors"):
                path.unlink()
        if finished:
            (self.folder / RUN).unlink(missing_ok=True)
        if self._temporary:
            self._temporary.cleanup()

    def stages_done(self) -> int:
        """How many stages can be resumed from."""
        return len(list(self.folder.glob("*.done.safetensors")))

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

    def _dense(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.dense.safetensors"

    def _done(self, stage: int) -> Path:
        return self.folder / f"{stage:05d}.done.safetensors"


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write all or nothing, whenever the process ends."""
    unfinished = path.with_name(path.name + ".part")
    save_file(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, unfinished, metadata
    )
    os.replace(unfinished, path)


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
