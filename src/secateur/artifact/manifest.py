"""Models the manifest of an artifact: its tensors, how they are packed, and what was pruned."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from secateur._files import FileDigest, read_small_file
from secateur._manifest_file import (
    FORMAT_VERSION,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    format_manifest,
    is_file_name,
    parse_manifest,
)
from secateur._memory import explain_out_of_memory
from secateur._wording import format_value
from secateur.artifact.dtypes import DTYPES
from secateur.artifact.packing import BlockPacking, GroupPacking, Packing
from secateur.artifact.packing_choice import MAX_COMPRESSION
from secateur.errors import ArtifactError, LayerError
from secateur.frameworks.view import WeightView

__all__ = [
    "AxisLayout",
    "BranchEntry",
    "FileEntry",
    "Manifest",
    "TensorEntry",
    "describe_packing",
    "explain_invalid",
]

MAX_AXES = 64

MAX_DETAIL = 500
"""Maximum characters of each part of an error message, which may quote a file."""


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{format_value(text)} cannot be printed")
    return text


PRINTABLE = AfterValidator(_check_printable)
Text = Annotated[str, PRINTABLE]
Size = Annotated[int, Field(ge=0, lt=1 << 63)]
Positive = Annotated[int, Field(ge=1, lt=1 << 63)]
Axis = Annotated[int, Field(ge=0, lt=MAX_AXES)]
AttributeName = Annotated[str, Field(max_length=100, pattern=r"^(config\.)?[A-Za-z][A-Za-z0-9_]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _ManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class AxisLayout(_ManifestModel):
    """Says what the axes of a tensor are; see `WeightView`.

    Attributes:
        output_axes: Output channels, slowest first.
        kernel_axes: Kernel positions.
        input_axes: Input channels of one group.
        groups: Groups of a grouped convolution.
    """

    output_axes: tuple[Axis, ...]
    kernel_axes: tuple[Axis, ...] = ()
    input_axes: tuple[Axis, ...] = ()
    groups: Positive = 1

    @classmethod
    def from_view(cls, view: WeightView) -> Self:
        """Take the axes from a view."""
        return cls(
            output_axes=view.output_axes, kernel_axes=view.kernel_axes, input_axes=view.input_axes, groups=view.groups
        )

    def make_view(self, shape: tuple[int, ...]) -> WeightView:
        """Make the view of a tensor of the given shape."""
        return WeightView(
            shape=shape,
            output_axes=self.output_axes,
            kernel_axes=self.kernel_axes,
            input_axes=self.input_axes,
            groups=self.groups,
        )


class Dense(_ManifestModel):
    """The tensor is stored dense, under its own name."""

    kind: Literal["dense"] = "dense"


class Blocks(_ManifestModel):
    """The tensor is packed by `BlockPacking`.

    Attributes:
        block: Size of a block along output channels, kernel positions and input channels.
        kept: Number of stored blocks.
        index: How the index encodes which blocks are stored.
        label: The name in reports.
    """

    kind: Literal["blocks"] = "blocks"
    block: tuple[Positive, Positive, Positive]
    kept: Size
    index: Literal["bitmap", "list"]
    label: Annotated[str, Field(max_length=100), PRINTABLE]


class Groups(_ManifestModel):
    """The tensor is packed by `GroupPacking`.

    Attributes:
        count: N, the stored weights per group.
        group: M, the length of a group.
    """

    kind: Literal["groups"] = "groups"
    count: Positive
    group: Annotated[int, Field(ge=2, lt=1 << 31)]


class Claim(_ManifestModel):
    """The pruning of a tensor, according to its report.

    Attributes:
        pattern: Pattern specification.
        units: Number of units in the tensor.
        pruned_units: Number of pruned units.
        error: Relative error of the layer's outputs on the calibration data, ≥ 0; ``None``: it was not measured.
    """

    pattern: Annotated[str, Field(max_length=100), PRINTABLE]
    units: Size
    pruned_units: Size
    error: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class TensorEntry(_ManifestModel):
    """Describes one tensor.

    Attributes:
        file: The shard with the tensor.
        layer: The layer whose weight it is, if that layer was pruned or could be.
        dtype: The data type, a key of `DTYPES`.
        shape: The dense shape.
        layout: The roles of the axes; ``None``: it is not a weight that patterns apply to.
        packing: How it is stored.
        pattern: The pattern of its zeros: the requested one, or the strictest that was recognized; ``None``: there is
            no pattern.
        pruned: How it was pruned; ``None``: unknown, or nothing.
        zeros: Number of zeros.
        negative_zeros: Number of zeros that are ``-0.0``, which packings store like any other number.
        sha256: Digest of the bytes of the dense tensor, little-endian, in row-major order.
    """

    file: str
    layer: Text | None = None
    dtype: str
    shape: Annotated[tuple[Size, ...], Field(max_length=MAX_AXES)]
    layout: AxisLayout | None = None
    packing: Annotated[Dense | Blocks | Groups, Field(discriminator="kind")] = Dense()
    pattern: Annotated[str, Field(max_length=100), PRINTABLE] | None = None
    pruned: Claim | None = None
    zeros: Size
    negative_zeros: Size = 0
    sha256: Digest

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.count * DTYPES[self.dtype].size

    @property
    def sparsity(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.count if self.count else 0.0

    @property
    def view(self) -> WeightView | None:
        """The view of the dense tensor; ``None``: see `layout`."""
        return None if self.layout is None else self.layout.make_view(self.shape)

    @property
    def packer(self) -> Packing | None:
        """The packing as an object that packs and unpacks; ``None``: it is dense."""
        if isinstance(self.packing, Blocks):
            is_list = self.packing.index == "list"
            return BlockPacking(self.packing.block, self.packing.kept, is_list=is_list, label=self.packing.label)
        return GroupPacking(self.packing.count, self.packing.group) if isinstance(self.packing, Groups) else None

    @property
    def packing_name(self) -> str:
        """The name of the packing in reports."""
        return "dense" if self.packer is None else self.packer.name

    def describe_arrays(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Describe the arrays that the shard has for the tensor: name → data type and shape."""
        if self.packer is None:
            return {name: (self.dtype, self.shape)}
        assert self.view is not None
        return {
            f"{name}#values": (self.dtype, self.packer.compute_values_shape(self.view)),
            f"{name}#index": ("U8", (self.packer.count_index_bytes(self.view),)),
        }

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored arrays."""
        return sum(math.prod(shape) * DTYPES[dtype].size for dtype, shape in self.describe_arrays("").values())

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {format_value(dtype)}")
        return dtype

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.dense_bytes >= 1 << 63:
            raise ValueError(f"a tensor of shape {format_value(self.shape)} is too large")
        if not self.negative_zeros <= self.zeros <= self.count:
            raise ValueError(
                f"{self.zeros} zeros, {self.negative_zeros} of them negative, are impossible for {self.count} numbers"
            )
        if self.pruned is not None and self.pruned.pruned_units > self.pruned.units:
            raise ValueError(f"{self.pruned.pruned_units} of {self.pruned.units} units cannot be pruned")
        try:
            self._check_packing()
        except (ArtifactError, LayerError) as error:
            raise ValueError(str(error)) from error
        return self

    def _check_packing(self) -> None:
        if self.pruned is not None and self.pruned.pattern != self.pattern:
            raise ArtifactError(f"the pattern must be that of pruned, {self.pruned.pattern!r}, found {self.pattern!r}")
        if self.pattern is not None and self.layout is None:
            raise ArtifactError("a tensor with a pattern needs a layout")
        if self.layout is not None:
            axes = (*self.layout.output_axes, *self.layout.kernel_axes, *self.layout.input_axes)
            if sorted(axes) != list(range(len(self.shape))):
                raise ArtifactError(f"its layout must name each of its {len(self.shape)} axes once")
            if self.layout.make_view(self.shape).canonical_shape[0] % self.layout.groups:
                raise ArtifactError(f"its output channels are not a multiple of its {self.layout.groups} groups")
        packer, view = self.packer, self.view
        if packer is None:
            return
        if view is None:
            raise ArtifactError("a packed tensor needs a layout")
        packer.check_view(view)
        if packer.count_stored_blocks(view) > math.prod(packer.compute_grid(view)):
            raise ArtifactError("it stores more blocks than it has")
        if self.dense_bytes > self.stored_bytes * MAX_COMPRESSION:
            raise ArtifactError(f"it is stored in less than 1/{MAX_COMPRESSION} of its dense size")


class FileEntry(_ManifestModel):
    """Describes a companion file.

    Attributes:
        size: Size in bytes.
        sha256: Digest of the content.
    """

    size: Size
    sha256: Digest

    @property
    def digest(self) -> FileDigest:
        """The same as a `FileDigest`."""
        return FileDigest(self.size, self.sha256)


class Builder(_ManifestModel):
    """Says how to build the model of the tensors.

    Attributes:
        framework: The framework of the model.
        kind: The source of the model: ``"transformers"`` from ``config.json``, ``"keras"`` from ``keras.json``, or
            ``"code"`` of the user.
        name: The name of its class.
    """

    framework: Literal["pytorch", "keras"]
    kind: Literal["transformers", "keras", "code"]
    name: Annotated[str, Field(max_length=300), PRINTABLE]


class BranchEntry(_ManifestModel):
    """Says what a removed module returns: zeros, or a bias.

    Attributes:
        input: Name of the argument whose shape and type the output has.
        outputs: Length of the tuple that it returns, of which the output is the first, and the others are nothing;
            ``None``: it returns the output itself.
        axis: The axis along which the output has another size, counted from the end; ``None``: none.
        size: The size along that axis.
        bias: Name of the parameter of the module that it returns, which is then called ``bias``; ``None``: zeros.
    """

    input: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    outputs: Annotated[int, Field(ge=1, le=MAX_AXES)] | None = None
    axis: Annotated[int, Field(ge=-MAX_AXES, lt=0)] | None = None
    size: Annotated[int, Field(ge=0, lt=1 << 31)] | None = None
    bias: Text | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.axis is None) != (self.size is None):
            raise ValueError("axis and size need each other")
        return self


class Manifest(_ManifestModel):
    """Describes an artifact, except for the values of its tensors.

    Attributes:
        format: Always ``"secateur"``.
        format_version: Version of the format.
        written_by: Name and version of the program that wrote the artifact.
        model: How to build the model; ``None``: unknown.
        configs: The configurations of the pruning run, as `PruningConfig.to_dict` returns them.
        shards: Shard → its size in bytes.
        files: Companion file → its entry.
        tensors: Name → tensor.
        aliases: Alternative name → name of the tensor (tied weights).
        sizes: Slimmed module → its attributes that changed → their values; ``None``: the model was not slimmed, or its
            configuration has all sizes. The shapes of the tensors of these modules differ from those in the dense
            model.
        branches: Module that was removed → what is returned in its place.
        blocks: List of modules → the positions of those that were removed from it, in ascending order. All other names
            are those in the lists that are left.
    """

    format: Literal["secateur"] = "secateur"
    format_version: Literal[1] = FORMAT_VERSION
    written_by: Annotated[str, Field(max_length=100), PRINTABLE]
    model: Builder | None = None
    configs: tuple[dict[str, Any], ...] = ()
    shards: dict[str, Size]
    files: dict[str, FileEntry] = {}
    tensors: dict[Text, TensorEntry]
    aliases: dict[Text, str] = {}
    sizes: dict[Text, dict[AttributeName, Positive | tuple[Positive, ...]]] | None = None
    branches: dict[Text, BranchEntry] | None = None
    blocks: dict[Text, tuple[Size, ...]] | None = None

    @property
    def is_slimmed(self) -> bool:
        """Whether the model has other sizes or fewer modules than its code and configuration say."""
        return any(part is not None for part in (self.sizes, self.branches, self.blocks))

    def count_disk_bytes(self, manifest_bytes: int) -> int:
        """Count the bytes of all files, including `manifest_bytes` for the manifest itself."""
        return manifest_bytes + sum(self.shards.values()) + sum(file.size for file in self.files.values())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a folder.

        Raises:
            ArtifactError: There is no manifest, it is damaged, or its version is unknown.
        """
        path = folder / MANIFEST
        return cls.parse(read_small_file(path, MAX_MANIFEST_BYTES), path)

    @classmethod
    def parse(cls, text: bytes, path: Path) -> Self:
        """Parse the content of a manifest file.

        Raises:
            ArtifactError: The manifest is damaged, or its version is unknown.
        """
        data = parse_manifest(text, path)
        try:
            with explain_out_of_memory(f"{path}: cannot be read", len(text)):
                return cls.model_validate_json(json.dumps(data))
        except (ValidationError, RecursionError) as error:
            raise ArtifactError(f"{path}: {_explain(error)}") from error

    def to_text(self) -> str:
        """Return the content of the manifest file."""
        return format_manifest(json.loads(self.model_dump_json(exclude_none=True)))

    @field_validator("shards", "files")
    @classmethod
    def _check_names(cls, names: dict[str, Any]) -> dict[str, Any]:
        for name in names:
            if not is_file_name(name):
                raise ValueError(f"{format_value(name)} is not the name of a file in the folder")
        return names

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if duplicates := sorted(self.shards.keys() & self.files.keys()):
            raise ValueError(f"{duplicates[0]!r} is listed both as a shard and as another file")
        for name, tensor in self.tensors.items():
            if tensor.file not in self.shards:
                raise ValueError(f"tensor {format_value(name)} is in {format_value(tensor.file)}, which is not a shard")
        for alias, name in self.aliases.items():
            if alias in self.tensors or name not in self.tensors:
                raise ValueError(
                    f"alias {format_value(alias)} must not be a tensor itself, and {format_value(name)}, which it "
                    f"stands for, must be one"
                )
        return self


@contextmanager
def explain_invalid(what: str) -> Iterator[None]:
    """Raise `ArtifactError` instead of pydantic's `ValidationError` for a part of a manifest.

    Args:
        what: The part, for the message.
    """
    try:
        yield
    except ValidationError as error:
        raise ArtifactError(f"{what} cannot be written into a manifest: {_explain(error)}") from error


def describe_packing(packing: Packing | None) -> Dense | Blocks | Groups:
    """Describe a packing for the manifest."""
    if isinstance(packing, BlockPacking):
        index: Literal["bitmap", "list"] = "list" if packing.is_list else "bitmap"
        return Blocks(block=packing.block, kept=packing.stored_blocks, index=index, label=packing.label)
    return Groups(count=packing.count, group=packing.group) if isinstance(packing, GroupPacking) else Dense()


def _explain(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply"
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part) if str(part).isprintable() else format_value(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    more = f" ({len(others)} more problems)" if others else ""
    place = f"{where[:MAX_DETAIL]}: " if where else ""
    return f"{place}{what[:MAX_DETAIL] if what.isprintable() else format_value(what)}.{more}"
