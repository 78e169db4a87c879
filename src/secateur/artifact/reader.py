"""An artifact that is read tensor by tensor, none of which is believed before its digest is right."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from secateur._wording import listed, nearest
from secateur.artifact.dtypes import Bits
from secateur.artifact.files import sized_digest
from secateur.artifact.folder import settled
from secateur.artifact.manifest import MANIFEST, Manifest, TensorEntry
from secateur.artifact.packing import Packing
from secateur.artifact.safetensors_file import TensorFile
from secateur.artifact.writer import digest
from secateur.errors import ArtifactError, UnknownNameError
from secateur.patterns.view import WeightView

__all__ = ["Artifact", "PackedTensor", "RawTensor"]

MOST_HELD = 200
"""Shards of an artifact that are all held open; of more, each is opened when a tensor of it is read."""


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

    Opening reads the manifest and the shards' headers, and no tensor.

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
        self.path = Path(path)
        with settled(self.path):
            if not os.path.isfile(self.path / MANIFEST):
                raise ArtifactError(f"{self.path}: no artifact: there is no file {MANIFEST!r} in it.")
            self.manifest = Manifest.read(self.path)
            is_held = len(self.manifest.shards) <= MOST_HELD
            self._files = {name: self._opened(name, size, is_held) for name, size in self.manifest.shards.items()}
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
            raise UnknownNameError(f"{self.path}: has no tensor {name!r}.{nearest(name, self)}")
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
        for name, entry in self.manifest.files.items():
            path = self.path / name
            if sized_digest(path) != (entry.size, entry.sha256):
                raise ArtifactError(f"{path}: was changed since it was written.")

    def _dense(self, name: str, packed: PackedTensor) -> Bits:
        try:
            return packed.dense()
        except (ArtifactError, MemoryError) as error:
            raise ArtifactError(f"{self.path}: tensor {name!r}: {error}.") from error

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
        return self._files[entry.file]

    def _opened(self, name: str, size: int, is_held: bool) -> TensorFile:
        file = TensorFile(self.path / name, is_held=is_held)
        if file.bytes != size:
            raise ArtifactError(f"{file.path}: must have {size:,} bytes, found {file.bytes:,}.")
        return file

    def _check_places(self) -> None:
        """Every stored tensor belongs to one entry, and is of its type and shape."""
        left = {(file, name) for file, tensors in self._files.items() for name in tensors}
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
            raise ArtifactError(f"{self.path}: {listed(repr(name) for _, name in sorted(left))} belong to no tensor.")
