"""Store the activations between the parts of a model, one tensor per batch, in memory or on disk."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from secateur.oneshot.pytorch.tensor_files import explain_write_errors

__all__ = ["Activations"]


class Activations:
    """One tensor per batch, stored on the host.

    Args:
        offload: ``"memory"``, or ``"disk"``: in a temporary folder, created for the first tensor.
    """

    def __init__(self, offload: Literal["memory", "disk"] = "memory") -> None:
        self._tensors: dict[int, torch.Tensor] = {}
        self._offload = offload
        self._folder: TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(list(Path(self._folder.name).iterdir())) if self._folder else len(self._tensors)

    def __getitem__(self, number: int) -> torch.Tensor:
        # Copy, because a block may modify its input in place, and the last bits of a product depend on the alignment of
        # a matrix in memory.
        return (load_file(self._path(number))["input"] if self._folder else self._tensors[number]).clone()

    def __setitem__(self, number: int, tensor: torch.Tensor) -> None:
        tensor = tensor.detach().to("cpu")
        if self._offload == "disk":
            with explain_write_errors(Path("The inputs of a part of the model")):
                self._folder = self._folder or TemporaryDirectory(prefix="secateur-", ignore_cleanup_errors=True)
                save_file({"input": tensor.contiguous()}, self._path(number))
        else:
            self._tensors[number] = tensor

    def close(self) -> None:
        """Free memory and disk space."""
        self._tensors.clear()
        if self._folder:
            self._folder.cleanup()
            self._folder = None

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, f"{number}.safetensors")
