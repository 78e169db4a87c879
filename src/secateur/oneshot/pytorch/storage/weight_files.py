"""The weights of a model in safetensors files, read one tensor at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from secateur._huggingface.folders import INDEX_FILE, SAFETENSORS_SUFFIX, find_weight_files
from secateur._wording import format_list
from secateur.errors import ArtifactError, ModelLoadError

__all__ = ["FilteredTensors", "WeightFiles", "read_weight_header"]


class WeightFiles(Mapping[str, torch.Tensor]):
    """A mapping of name → tensor. Each tensor is read from its file on access.

    Args:
        path: A safetensors file, or a folder: the files named by an index, else ``model.safetensors``, else all files.

    Attributes:
        path: The file or folder.
        shapes: Name → shape, from the files' headers.
        types: Name → dtype as safetensors names it, such as ``"BF16"``.

    Raises:
        ModelLoadError: There is no such file, a file is damaged, or a name is in several files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, str] = {}
        self._files: dict[str, Path] = {}
        names: Counter[str] = Counter()
        for file in _find_files(self.path):
            for name, (shape, kind) in read_weight_header(file).items():
                names[name] += 1
                self._files[name], self.shapes[name], self.types[name] = file, shape, kind
        if twice := [name for name, count in names.items() if count > 1]:
            raise ModelLoadError(
                f"{format_list(map(repr, twice))} are in several files of {str(self.path)!r}. Keep one of each, or "
                f"add {INDEX_FILE!r}, which names the files to use."
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        path = self._files[name]
        try:
            with safe_open(path, "pt") as file:
                # Copy into memory that torch aligns, because the last bits of matrix products depend on the alignment.
                tensor: torch.Tensor = file.get_tensor(name).clone()
        except (OSError, SafetensorError) as error:
            raise _create_read_error(path, error) from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class FilteredTensors(Mapping[str, torch.Tensor]):
    """A view of a mapping of tensors without some names.

    Args:
        tensors: Name → tensor.
        excluded: Names to leave out.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], excluded: Collection[str]) -> None:
        self._tensors = tensors
        self._names = dict.fromkeys(name for name in tensors if name not in excluded)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _find_files(path: Path) -> Collection[Path]:
    """Return the files that contain weights."""
    try:
        files, _ = find_weight_files(path)
    except ArtifactError as error:
        raise ModelLoadError(str(error)) from error
    if not files:
        raise ModelLoadError(
            f"weights must be a {SAFETENSORS_SUFFIX} file or a folder with such files, found {str(path)!r}."
        )
    return files


def read_weight_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return name → shape and dtype of all tensors in one file.

    Raises:
        ModelLoadError: The path is missing, not a file or damaged.
    """
    if not path.is_file():  # opening a pipe would block
        problem = "is not a file" if path.exists() else "does not exist"
        raise ModelLoadError(f"{path} must be a file with weights, but it {problem}.")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return {name: (tuple(tensor.get_shape()), str(tensor.get_dtype())) for name, tensor in tensors.items()}
    except (OSError, SafetensorError) as error:
        raise _create_read_error(path, error) from error


def _create_read_error(path: Path, error: Exception) -> ModelLoadError:
    return ModelLoadError(f"{path} cannot be read ({type(error).__name__}: {error}). Is it complete?")
