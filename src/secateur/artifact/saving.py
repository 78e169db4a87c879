"""Models into artifacts and back."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from secateur._packages import require_keras, require_packages
from secateur.artifact.claims import claims_of, configs_of
from secateur.artifact.manifest import explain_invalid
from secateur.artifact.reader import Artifact
from secateur.artifact.report import ArtifactReport
from secateur.artifact.rows import report_on_written
from secateur.artifact.source import Source
from secateur.artifact.writer import SHARD_BYTES, write
from secateur.errors import ArtifactError
from secateur.frameworks import import_leaf
from secateur.results import PruningReport

__all__ = ["load", "save"]


def save(
    model: Any,
    path: str | Path,
    *,
    report: PruningReport | None = None,
    tokenizer: Any = None,
    dense: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> ArtifactReport:
    """Write a model as an artifact: a folder in which every tensor is packed as small as its zeros allow.

    The folder changes as a whole: killed at any moment, it is what it was, or the new artifact.

    Args:
        model: A torch module, a model of transformers, or a Keras model.
        path: The folder; new, empty, or an artifact, which is replaced.
        report: What pruning returned. The artifact then says for each layer what pattern it was pruned to, which is
            proved now and by every `verify`. Left out, the strictest pattern that a weight has is noted.
        tokenizer: What belongs to a model of transformers and is saved beside it: a tokenizer or a processor.
        dense: Store every tensor as it is, in files of transformers' names: ``AutoModel.from_pretrained`` reads them.
        shard_bytes: Bytes of tensors in one file.

    Returns:
        What was stored, and how each tensor was packed.

    Raises:
        ArtifactError: `path` is something else or cannot be written, or the weights are not what the report says.
        StateError: The report is of another model.
        UnsupportedModelError: The model holds something that is no plain dense tensor.

    Example:
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
        source: Source = import_leaf("secateur.artifact", model).source(model, tokenizer)
    manifest = write(
        source,
        path,
        claims={} if report is None else claims_of(report, source),
        configs=[] if report is None else configs_of(report),
        dense=dense,
        shard_bytes=shard_bytes,
    )
    return report_on_written(str(path), manifest)


def load(path: str | Path, model: Any = None) -> Any:
    """Read an artifact back, every bit as it was.

    Tensors are read, unpacked and proved one by one.

    Args:
        path: The folder.
        model: The model to fill; for one of transformers or a Keras model, ``None`` builds it too.

    Returns:
        The model.

    Raises:
        ArtifactError: The artifact is damaged or does not belong to the model, which is as it was then.
        UnsupportedModelError: There is no model, and nothing that builds one.
        ModelLoadError: The model cannot be built.
    """
    artifact = Artifact(path)
    if model is not None:
        return import_leaf("secateur.artifact", model).fill(model, artifact)
    builder = artifact.manifest.model
    if builder is None or builder.kind == "code":
        name = "a model" if builder is None else repr(builder.name)
        raise ArtifactError(
            f"{artifact.path}: holds the tensors of {name}, and only your code can build it. Pass it: "
            f"secateur.load(path, model)."
        )
    if builder.framework == "keras":
        require_keras()
    else:
        require_packages("torch", "transformers", extra="transformers")
    return import_module(f"secateur.artifact.{builder.framework}").build(artifact)
