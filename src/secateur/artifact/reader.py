"""An artifact that is read tensor by tensor, none of which is believed before its digest is right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from secateur._files import MAX_OPEN_FILES, as_path, read_small_file
from secateur._folders import lock_for_reading
from secateur._huggingface.companions import Companion
from secateur._huggingface.folders import INDEX_SUFFIX
from secateur._manifest_file import MANIFEST, MAX_MANIFEST_BYTES, is_artifact
from secateur._memory import explain_out_of_memory
from secateur._wording import format_list, format_value, suggest_name
from secateur.artifact.dtypes import Bits
from secateur.artifact.manifest import Manifest, TensorEntry
from secateur.artifact.packing import Packing
from secateur.artifact.rows import disk_bytes
from secateur.artifact.safetensors_file import TensorFile
from secateur.artifact.writer import digest
from secateur.errors import ArtifactError, UnknownNameError
from secateur.frameworks.view import WeightView

__all__ = ["Artifact", "PackedTensor", "RawTensor"]

MAX_FILE_BYTES = 100_000_000
"""Of a file that is read into memory as a whole."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A dense tensor of any type, without a framework.

    Attributes:
        dtype: Its type, as in `DTYPES`: ``"F32"``, ``"BF16"`` …
        bits: Its numbers' bit patterns as unsigned integers, in its shape.
    """

    dtype: str
    bits: Bits

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.bits.shape


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor as it is stored.

    Attributes:
        dtype: Type of its numbers, as in `DTYPES`.
        view: Its dense shape, and where its channels lie.
        packing: What the index means.
        values: The stored numbers' bit patterns, blocks × weights of a block.
        index: Which blocks they are, padded with zeros.
    """

    dtype: str
    view: WeightView
    packing: Packing
    values: Bits
    index: npt.NDArray[np.uint8]

    def dense(self) -> Bits:
        """The dense tensor's bit patterns.

        Raises:
            ArtifactError: The index does not fit the stored numbers.
        """
        return self.packing.unpack(self.values, self.index, self.view)


class Artifact(Mapping[str, RawTensor]):
    """A saved model: name → dense tensor, which is read, unpacked and proved whenever it is asked for.

    Opening reads the manifest and the shards' headers, and no tensor. All files are of one artifact and stay so: they
    are opened while nobody can replace the folder, and kept open.

    Args:
        path: The folder.

    Attributes:
        path: The same.
        manifest: What it holds.

    Raises:
        ArtifactError: There is no artifact, it is damaged, or its files are not those that its manifest names.

    Example:
        >>> import secateur, tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> report = secateur.save(torch.nn.Linear(8, 4), folder)
        >>> Artifact(folder)["bias"].shape
        (4,)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        with lock_for_reading(self.path):
            if not is_artifact(self.path):
                raise ArtifactError(f"{self.path}: no artifact: there is no file {MANIFEST!r} in it.")
            text = read_small_file(self.path / MANIFEST, MAX_MANIFEST_BYTES)
            self.manifest = Manifest.parse(text, self.path / MANIFEST)
            shards, files = self.manifest.shards, self.manifest.files
            keep_open = len(shards) + len(files) <= MAX_OPEN_FILES
            self._shards = {name: self._opened(name, size, keep_open=keep_open) for name, size in shards.items()}
            self._companions = {
                name: Companion(self.path / name, entry.digest, keep_open=keep_open) for name, entry in files.items()
            }
        self.disk_bytes = disk_bytes(self.manifest, len(text))
        self._check_places()

    def __getitem__(self, name: str) -> RawTensor:
        entry = self.entry(name)
        is_dense = entry.packer is None
        bits = self._file(entry).read(self._own(name)) if is_dense else self._dense(name, self._packed(name))
        self._prove(name, entry, bits)
        return RawTensor(entry.dtype, bits)

    def __iter__(self) -> Iterator[str]:
        return iter([*self.manifest.tensors, *self.manifest.aliases])

    def __len__(self) -> int:
        return len(self.manifest.tensors) + len(self.manifest.aliases)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.tensors or name in self.manifest.aliases

    def entry(self, name: str) -> TensorEntry:
        """What the manifest says of a tensor.

        Raises:
            UnknownNameError: There is none of that name.
        """
        if name not in self:
            raise UnknownNameError(f"{self.path}: has no tensor {name!r}.{suggest_name(name, self)}")
        return self.manifest.tensors[self._own(name)]

    def packed(self, name: str) -> PackedTensor:
        """A packed tensor as it is stored, proved to be the dense one; what is stored dense is an error.

        Raises:
            ArtifactError: It is stored dense, or damaged.
        """
        entry = self.entry(name)
        packed = self._packed(name)
        self._prove(name, entry, self._dense(name, packed))
        return packed

    def check_files(self) -> None:
        """Read every file beside the shards, and compare its digest.

        Raises:
            ArtifactError: One is missing or was changed.
        """
        for file in self._companions.values():
            file.read()

    def read_file(self, name: str) -> bytes:
        """The content of a file beside the shards, proved.

        Raises:
            ArtifactError: The manifest does not list it, or it is missing, was changed or is too large.
        """
        return self._companion(name).read_bytes(MAX_FILE_BYTES)

    def copy_files(self, folder: Path) -> None:
        """Copy the files beside the shards, proved, but for an index of dense shards.

        Raises:
            ArtifactError: One is missing or was changed, or a copy cannot be written.
        """
        for name, file in self._companions.items():
            if not name.endswith(INDEX_SUFFIX):
                file.copy(folder / name)

    @contextmanager
    def extract(self, *names: str) -> Iterator[Path]:
        """A temporary folder with copies of some of the files, proved, for code that reads files by their path.

        Raises:
            ArtifactError: See `read_file`.
        """
        files = {name: self._companion(name) for name in names}
        with TemporaryDirectory(prefix="secateur-") as folder:
            for name, file in files.items():
                file.copy(Path(folder, name))
            yield Path(folder)

    def _companion(self, name: str) -> Companion:
        if name not in self._companions:
            raise ArtifactError(f"{self.path / MANIFEST}: lists no file {name!r}, which the model is built from.")
        return self._companions[name]

    def _dense(self, name: str, packed: PackedTensor) -> Bits:
        entry = self.entry(name)
        with explain_out_of_memory(f"{self.path}: tensor {format_value(name)} cannot be unpacked", entry.dense_bytes):
            try:
                return packed.dense()
            except ArtifactError as error:
                raise ArtifactError(f"{self.path}: tensor {format_value(name)}: {error}.") from error

    def _packed(self, name: str) -> PackedTensor:
        entry, own = self.entry(name), self._own(name)
        packing, view = entry.packer, entry.view
        if packing is None or view is None:
            raise ArtifactError(f"{self.path}: tensor {name!r} is stored dense.")
        values, index = (self._file(entry).read(part) for part in entry.stored(own))
        return PackedTensor(entry.dtype, view, packing, values, index.astype(np.uint8, copy=False))

    def _prove(self, name: str, entry: TensorEntry, bits: Bits) -> None:
        if digest(bits) != entry.sha256:
            raise ArtifactError(f"{self.path / entry.file}: tensor {name!r} is damaged (its sha256 does not match).")

    def _own(self, name: str) -> str:
        """The name under which a tensor is stored."""
        return self.manifest.aliases.get(name, name)

    def _file(self, entry: TensorEntry) -> TensorFile:
        return self._shards[entry.file]

    def _opened(self, name: str, size: int, *, keep_open: bool) -> TensorFile:
        file = TensorFile(self.path / name, keep_open=keep_open)
        if file.size != size:
            raise ArtifactError(f"{file.path}: must have {size:,} bytes, found {file.size:,}.")
        return file

    def _check_places(self) -> None:
        """Every stored tensor belongs to one entry, and is of its type and shape."""
        left = {(file, name) for file, tensors in self._shards.items() for name in tensors}
        for name, entry in self.manifest.tensors.items():
            file = self._file(entry)
            for part, (dtype, shape) in entry.stored(name).items():
                found = file.get(part)
                if found is None or (found.dtype, found.shape) != (dtype, shape):
                    what = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                    raise ArtifactError(f"{file.path}: tensor {part!r} must be {dtype} {list(shape)}, found {what}.")
                if (entry.file, part) not in left:
                    raise ArtifactError(f"{file.path}: tensor {part!r} belongs to two tensors of the manifest.")
                left.remove((entry.file, part))
        if left:
            raise ArtifactError(
                f"{self.path}: {format_list(repr(name) for _, name in sorted(left))} belong to no tensor."
            )
