"""Read artifacts tensor by tensor, and verify each tensor with its digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from secateur._deprecated import warn_deprecated
from secateur._files import MAX_OPEN_FILES, as_path, read_small_file
from secateur._folders import lock_for_reading
from secateur._huggingface.companions import Companion
from secateur._huggingface.folders import is_weight_index
from secateur._manifest_file import MANIFEST, MAX_MANIFEST_BYTES, is_artifact
from secateur._memory import explain_out_of_memory
from secateur._wording import format_list, format_value, suggest_name
from secateur.artifact.dtypes import Bits, digest_bits
from secateur.artifact.manifest import Manifest, TensorEntry
from secateur.artifact.packing import Packing
from secateur.artifact.safetensors_file import TensorFile
from secateur.artifact.source import Source, SourceTensor
from secateur.errors import ArtifactError, UnknownNameError
from secateur.frameworks.view import WeightView

__all__ = ["Artifact", "PackedTensor", "RawTensor", "is_artifact_folder"]

MAX_FILE_BYTES = 100_000_000
"""Maximum size of a companion file that is read into memory."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A dense tensor of any type, without a framework.

    Attributes:
        dtype: The data type, a key of `DTYPES`: ``"F32"``, ``"BF16"`` …
        bits: The bit patterns as unsigned integers, in the shape of the tensor.
    """

    dtype: str
    bits: Bits

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return self.bits.shape


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A packed tensor as it is stored.

    Attributes:
        dtype: The data type, a key of `DTYPES`.
        view: The dense shape, and what its axes are.
        packing: How to interpret the index.
        values: The bit patterns of the stored numbers, of shape (blocks, weights per block).
        index: Which blocks are stored, padded with zeros.
    """

    dtype: str
    view: WeightView
    packing: Packing
    values: Bits
    index: npt.NDArray[np.uint8]

    def dense(self) -> Bits:
        """Unpack the bit patterns of the dense tensor.

        Raises:
            ArtifactError: The index does not match the stored numbers.
        """
        return self.packing.unpack(self.values, self.index, self.view)


class Artifact(Mapping[str, RawTensor]):
    """Maps the names of a saved model to dense tensors, which are read, unpacked and verified on every access.

    Opening an artifact reads its manifest and the headers of its shards, but no tensors. All files are opened while no
    other process can replace the folder, and stay open, so they always belong together.

    Args:
        path: The folder of the artifact.

    Attributes:
        path: The folder.
        manifest: The manifest.
        disk_bytes: Bytes of all files.

    Raises:
        ArtifactError: The folder is not an artifact, is damaged, or its files do not match the manifest.

    Examples:
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
                raise ArtifactError(f"{self.path}: is not an artifact, because it has no file {MANIFEST!r}.")
            text = read_small_file(self.path / MANIFEST, MAX_MANIFEST_BYTES)
            self.manifest = Manifest.parse(text, self.path / MANIFEST)
            shards, files = self.manifest.shards, self.manifest.files
            keep_open = len(shards) + len(files) <= MAX_OPEN_FILES
            self._shards = {name: self._open_shard(name, size, keep_open=keep_open) for name, size in shards.items()}
            self._companions = {
                name: Companion(self.path / name, entry.digest, keep_open=keep_open) for name, entry in files.items()
            }
        self.disk_bytes = self.manifest.count_disk_bytes(len(text))
        self._check_shards()

    def __getitem__(self, name: str) -> RawTensor:
        entry = self.entry(name)
        is_dense = entry.packer is None
        bits = (
            self._get_shard(entry).read(self._resolve(name))
            if is_dense
            else self._unpack(name, self._read_arrays(name))
        )
        self._verify(name, entry, bits)
        return RawTensor(entry.dtype, bits)

    def __iter__(self) -> Iterator[str]:
        return iter([*self.manifest.tensors, *self.manifest.aliases])

    def __len__(self) -> int:
        return len(self.manifest.tensors) + len(self.manifest.aliases)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.tensors or name in self.manifest.aliases

    def entry(self, name: str) -> TensorEntry:
        """Return what the manifest says about a tensor.

        Raises:
            UnknownNameError: The artifact has no tensor of that name.
        """
        if name not in self:
            raise UnknownNameError(f"{self.path}: has no tensor {name!r}.{suggest_name(name, self)}")
        return self.manifest.tensors[self._resolve(name)]

    def read_packed(self, name: str) -> PackedTensor:
        """Read a packed tensor without unpacking it, and verify it.

        Raises:
            ArtifactError: The tensor is stored dense, or is damaged.
        """
        entry = self.entry(name)
        tensor = self._read_arrays(name)
        self._verify(name, entry, self._unpack(name, tensor))
        return tensor

    def packed(self, name: str) -> PackedTensor:
        """Deprecated: use `read_packed`."""
        warn_deprecated("Artifact.packed", "Artifact.read_packed")
        return self.read_packed(name)

    def check_files(self) -> None:
        """Read all companion files and verify their digests.

        Raises:
            ArtifactError: A file is missing or has changed.
        """
        for file in self._companions.values():
            file.read()

    def read_file(self, name: str) -> bytes:
        """Read and verify a companion file.

        Raises:
            ArtifactError: The manifest does not list the file, or it is missing, has changed or is too large.
        """
        return self._get_companion(name).read_bytes(MAX_FILE_BYTES)

    def copy_files(self, folder: Path) -> None:
        """Copy and verify the companion files, except the index of dense shards.

        Raises:
            ArtifactError: A file is missing or has changed, or a copy cannot be written.
        """
        for name, file in self._companions.items():
            if not is_weight_index(name):
                file.copy(folder / name)

    @contextmanager
    def extract(self, *names: str) -> Iterator[Path]:
        """Copy and verify companion files in a temporary folder, for code that reads files by path.

        Raises:
            ArtifactError: See `read_file`.
        """
        files = {name: self._get_companion(name) for name in names}
        with TemporaryDirectory(prefix="secateur-") as folder:
            for name, file in files.items():
                file.copy(Path(folder, name))
            yield Path(folder)

    def read_bits(self, name: str) -> Bits:
        """Read and verify the bit patterns of a tensor."""
        return self[name].bits

    def make_source(self) -> Source:
        """Return the tensors and everything else that is needed to write the artifact again."""
        entries = self.manifest.tensors
        return Source(
            tensors={
                name: SourceTensor(
                    dtype=entry.dtype,
                    shape=entry.shape,
                    read=partial(self.read_bits, name),
                    view=entry.view,
                    layer=entry.layer,
                    is_prunable=entry.layer is not None,
                )
                for name, entry in entries.items()
            },
            aliases=self.manifest.aliases,
            sizes=self.manifest.sizes,
            branches=self.manifest.branches,
            blocks=self.manifest.blocks,
            model=self.manifest.model,
            claims={
                entry.layer: entry.pruned
                for entry in entries.values()
                if entry.layer is not None and entry.pruned is not None
            },
            configs=self.manifest.configs,
            write_files=self.copy_files,
        )

    def _get_companion(self, name: str) -> Companion:
        if name not in self._companions:
            raise ArtifactError(
                f"{self.path / MANIFEST}: does not list the file {name!r}, from which the model is built."
            )
        return self._companions[name]

    def _unpack(self, name: str, tensor: PackedTensor) -> Bits:
        entry = self.entry(name)
        with explain_out_of_memory(f"{self.path}: tensor {format_value(name)} cannot be unpacked", entry.dense_bytes):
            try:
                return tensor.dense()
            except ArtifactError as error:
                raise ArtifactError(f"{self.path}: tensor {format_value(name)}: {error}.") from error

    def _read_arrays(self, name: str) -> PackedTensor:
        entry, stored_name = self.entry(name), self._resolve(name)
        packing, view = entry.packer, entry.view
        if packing is None or view is None:
            raise ArtifactError(f"{self.path}: tensor {name!r} is stored dense, not packed.")
        values, index = (self._get_shard(entry).read(part) for part in entry.describe_arrays(stored_name))
        return PackedTensor(entry.dtype, view, packing, values, index.astype(np.uint8, copy=False))

    def _verify(self, name: str, entry: TensorEntry, bits: Bits) -> None:
        if digest_bits(bits) != entry.sha256:
            raise ArtifactError(f"{self.path / entry.file}: tensor {name!r} is damaged (its sha256 does not match).")

    def _resolve(self, name: str) -> str:
        """Return the name under which a tensor is stored, given this name or an alias."""
        return self.manifest.aliases.get(name, name)

    def _get_shard(self, entry: TensorEntry) -> TensorFile:
        return self._shards[entry.file]

    def _open_shard(self, name: str, size: int, *, keep_open: bool) -> TensorFile:
        file = TensorFile(self.path / name, keep_open=keep_open)
        if file.size != size:
            raise ArtifactError(f"{file.path}: must have {size:,} bytes, found {file.size:,}.")
        return file

    def _check_shards(self) -> None:
        """Check that every array belongs to one tensor of the manifest, and has its data type and shape."""
        unclaimed = {(file, name) for file, tensors in self._shards.items() for name in tensors}
        for name, entry in self.manifest.tensors.items():
            file = self._get_shard(entry)
            for part, (dtype, shape) in entry.describe_arrays(name).items():
                header = file.get(part)
                if header is None or (header.dtype, header.shape) != (dtype, shape):
                    kind = "nothing" if header is None else f"{header.dtype} {list(header.shape)}"
                    raise ArtifactError(f"{file.path}: tensor {part!r} must be {dtype} {list(shape)}, found {kind}.")
                if (entry.file, part) not in unclaimed:
                    raise ArtifactError(f"{file.path}: tensor {part!r} belongs to two tensors of the manifest.")
                unclaimed.remove((entry.file, part))
        if unclaimed:
            raise ArtifactError(
                f"{self.path}: {format_list(repr(name) for _, name in sorted(unclaimed))} do not belong to any tensor "
                f"of the manifest."
            )


def is_artifact_folder(path: Path) -> bool:
    """Whether a folder is an artifact, even while another process replaces it."""
    with lock_for_reading(path):
        return is_artifact(path)
