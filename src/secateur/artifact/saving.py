"""Save models as artifacts, and load them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from secateur._packages import require_keras, require_packages
from secateur.artifact.manifest import explain_invalid
from secateur.artifact.reader import Artifact
from secateur.artifact.report import ArtifactReport, report_on_artifact
from secateur.artifact.source import Source
from secateur.artifact.writer import SHARD_BYTES, write
from secateur.errors import ArtifactError
from secateur.frameworks import import_leaf
from secateur.results import PruningReport

__all__ = ["load", "save", "save_over"]


def save(
    model: Any,
    path: str | Path,
    *,
    report: PruningReport | None = None,
    tokenizer: Any = None,
    dense: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> ArtifactReport:
    """Save a model as an artifact: a folder in which every tensor is packed as small as its zeros allow.

    The folder is replaced completely or not at all: if the process is killed, either the old or the new folder remains.

    Args:
        model: A torch module, a transformers model, or a Keras model.
        path: The folder to write: new, empty, or an artifact, which is replaced.
        report: The report of the pruning run. The manifest then states the pattern of every pruned layer, which is
            verified now and by every call of `verify`. ``None``: the manifest states the strictest pattern of each
            weight.
        tokenizer: A tokenizer or a processor to save beside a transformers model.
        dense: Store every tensor dense, in files that ``AutoModel.from_pretrained`` can read.
        shard_bytes: Maximum bytes of tensors in one shard.

    Returns:
        The report of the artifact: how each tensor was packed.

    Raises:
        ArtifactError: `path` is something else or cannot be written, or the weights do not match the report.
        StateError: The report belongs to another model.
        UnsupportedModelError: The model has a tensor that is not a plain dense tensor.

    Examples:
        >>> import secateur, tempfile, torch
        >>> model = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
        >>> folder = tempfile.mkdtemp()
        >>> saved = save(model, folder, report=secateur.prune(model, {"pattern": "2:4"}))
        >>> saved.tensors[0].packing
        '2:4'
        >>> loaded = load(folder, torch.nn.Linear(64, 64, dtype=torch.bfloat16))
        >>> torch.equal(loaded.weight, model.weight)
        True
    """
    with explain_invalid("the model"):
        source: Source = import_leaf("secateur.artifact", model).make_source(model, tokenizer)
    manifest = write(source.add_report(report), path, dense=dense, shard_bytes=shard_bytes)
    return report_on_artifact(str(path), manifest)


def save_over(model: Any, checkpoint: Source, path: str | Path, *, report: PruningReport) -> ArtifactReport:
    """Save a transformers model over its checkpoint, so that only what pruning changed is different.

    Args:
        model: The pruned model.
        checkpoint: The checkpoint that it was loaded from, opened before pruning.
        path: See `save`.
        report: See `save`.

    Raises:
        ArtifactError: See `save`; or the checkpoint has changed since it was opened.
        StateError: The report belongs to another model.
    """
    with explain_invalid("the model"):
        source = import_leaf("secateur.artifact", model).make_carried_source(model, checkpoint)
    manifest = write(source.add_report(report), path)
    return report_on_artifact(str(path), manifest)


def load(path: str | Path, model: Any = None) -> Any:
    """Load an artifact bit for bit.

    Tensors are read, unpacked and verified one by one.

    Args:
        path: The folder of the artifact.
        model: The model to load the weights into. ``None``: build the transformers or Keras model in the artifact.

    Returns:
        The model.

    Raises:
        ArtifactError: The artifact is damaged or does not belong to the model, which does not change, or only code can
            build the model and none was passed.
        UnsupportedModelError: The type of the model is not supported.
        ModelLoadError: The model cannot be built.
    """
    artifact = Artifact(path)
    if model is not None:
        return import_leaf("secateur.artifact", model).load_weights(model, artifact)
    builder = artifact.manifest.model
    if builder is None or builder.kind == "code":
        name = "a model" if builder is None else repr(builder.name)
        raise ArtifactError(
            f"{artifact.path}: has the tensors of {name}, which only your code can build. Pass the model: "
            f"secateur.load(path, model)."
        )
    if builder.framework == "keras":
        require_keras()
    else:
        require_packages("torch", "transformers", extra="transformers")
    return import_module(f"secateur.artifact.{builder.framework}").build_model(artifact)
