"""Back up dense weights on disk, and restore them if a run fails."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from secateur.errors import StateError
from secateur.oneshot.pytorch.tensor_files import read_header, view_as_bytes, write_tensors

__all__ = ["WeightBackup"]

BACKUP_NAME = re.compile(r"\d{5}\.dense\.safetensors(\.part)?")
"""File names of backups."""


@dataclass(frozen=True)
class _Copy:
    """The location of a parameter's dense values.

    Attributes:
        name: The parameter's name in the model.
        path: The file.
        start: Offset of the first byte.
        size: Number of bytes.
    """

    name: str
    path: Path
    start: int
    size: int


class WeightBackup:
    """Dense weights in safetensors files.

    A run may fail because memory runs out, so values are read directly into the memory of the parameters.

    Args:
        folder: The folder of the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies: list[_Copy] = []

    def save(self, stage: int, parameters: Mapping[str, torch.Tensor]) -> None:
        """Save parameters before a stage changes them.

        Raises:
            StorageError: The disk is full, or fails.
        """
        path = self._folder / f"{stage:05d}.dense.safetensors"
        write_tensors(path, parameters, {})
        header, start = read_header(path)
        for name in parameters:
            first, last = header[name]["data_offsets"]
            self._copies.append(_Copy(name, path, start + first, last - first))

    def restore(self, model: nn.Module) -> None:
        """Restore the dense weights.

        Raises:
            StateError: Restoring fails. The files stay, under names that no run removes.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        try:
            with torch.no_grad():
                for copy in reversed(self._copies):  # if several stages changed a parameter, the first copy is dense
                    self._restore_parameter(copy, parameters[copy.name])
        except Exception as error:  # the weights must not be lost, whatever the error
            files = list(self._rescue())
            raise StateError(
                f"The model is only partly restored, because its dense weights cannot be read ({error}). They are in "
                f"{str(self._folder)!r}, in {len(files)} files named rescued-*.safetensors: load each of them with "
                f"safetensors.torch.load_file and model.load_state_dict(..., strict=False), the last one first."
            ) from error

    def remove(self) -> None:
        """Remove the files."""
        self._copies.clear()
        for path in self._folder.iterdir():
            if BACKUP_NAME.fullmatch(path.name):
                path.unlink()

    def _restore_parameter(self, copy: _Copy, parameter: torch.Tensor) -> None:
        """Read a parameter's values into its memory."""
        target = parameter.detach()
        with copy.path.open("rb", buffering=0) as file:
            file.seek(copy.start)
            if target.device.type == "cpu" and target.is_contiguous():
                _read_into(file, target)
            else:
                values = torch.empty(target.shape, dtype=target.dtype)
                _read_into(file, values)
                target.copy_(values)

    def _rescue(self) -> Iterator[Path]:
        """Rename the files, so that no other run in the folder removes them."""
        for path in sorted({copy.path for copy in self._copies}):
            rescued = path.with_name(f"rescued-{path.name}")
            with suppress(OSError):
                path.rename(rescued)
            yield rescued


def _read_into(file: BinaryIO, tensor: torch.Tensor) -> None:
    """Fill the memory of a contiguous tensor from the current position of a file.

    Raises:
        OSError: The file ends too early.
    """
    memory, done = view_as_bytes(tensor), 0
    while done < len(memory):
        count = file.readinto(memory[done:])  # type: ignore[attr-defined]
        if not count:
            raise OSError(f"{file.name} ends too early")
        done += count
