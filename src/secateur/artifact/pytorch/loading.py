"""Load artifacts into torch modules, and build transformers models from them."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._huggingface.config import check_config
from secateur._huggingface.folders import CONFIG_FILE
from secateur._huggingface.pytorch import (
    build_empty_model,
    explain_failures,
    find_model_class,
    is_pretrained,
    load_config,
)
from secateur._json import parse_json
from secateur._model_limits import ModelLimits
from secateur._wording import format_list, format_value, suggest_name
from secateur.artifact.dtypes import DTYPES
from secateur.artifact.pytorch.published import PublishedTensor, list_published
from secateur.artifact.pytorch.sentence_encoders import find_encoder
from secateur.artifact.pytorch.slimmed import check_sizes, find_resized, remove_modules, resize_modules
from secateur.artifact.pytorch.tensors import NAMES, TYPES, get_state, to_torch
from secateur.artifact.reader import Artifact
from secateur.errors import ArtifactError, ModelLoadError
from secateur.frameworks.pytorch import unwrap_model

__all__ = ["build_configured", "build_model", "load_weights"]

logger = logging.getLogger(__name__)


def load_weights(model: nn.Module, artifact: Artifact) -> nn.Module:
    """Load the tensors of an artifact into a model.

    Parameters keep their identity, except those on the meta device, which are replaced.

    Raises:
        ArtifactError: Names, shapes or data types differ, or a tensor is damaged. The model does not change.
    """
    module = unwrap_model(model)
    if (encoder := find_encoder(module)) is not None and _get_kind(artifact) == "transformers":
        load_weights(encoder.transformer, artifact)
        encoder.load_modules(artifact)
        return model
    state = get_state(module)
    if _is_published(module, artifact):
        _copy_published(module, state, artifact)
        return model
    with remove_modules(module, artifact):
        check_sizes(module, artifact)
        state = get_state(module)
        unknown = [name for name in artifact if name not in state] if is_pretrained(module) else []
        _check_names(state, artifact, unknown)
        _check_tensors(module, state, artifact)
        for name in artifact.manifest.tensors:
            artifact[name]  # verify all tensors before anything changes
    _warn_of_unknown(unknown, module, artifact)
    _assign_tensors(module, artifact)
    resize_modules(module, artifact)
    return model


def build_model(artifact: Artifact) -> nn.Module:
    """Build the transformers model in an artifact, in evaluation mode.

    The model is first built on the meta device, so that a configuration of another, larger model takes no memory.

    Raises:
        ModelLoadError: transformers cannot build the model.
        ArtifactError: A tensor is damaged, or the configuration belongs to another model.
    """
    artifact.check_files()
    config_path = artifact.path / CONFIG_FILE
    check_config(parse_json(artifact.read_file(CONFIG_FILE), config_path), config_path)
    entries = artifact.manifest.tensors.values()
    limits = ModelLimits.from_stored(len(entries), sum(entry.count for entry in entries))
    with artifact.extract(CONFIG_FILE) as folder:
        meta_model = _build_on_meta(folder, artifact, limits)
        if meta_model is not None and not _is_published(meta_model, artifact):
            with remove_modules(meta_model, artifact):
                meta_state = get_state(meta_model)
            if {*artifact} <= {*meta_state}:
                _check_names(meta_state, artifact)
            _check_tensors(meta_model, meta_state, artifact)
            check_sizes(meta_model, artifact)
        model = build_configured(folder, artifact.path, limits, _get_class_name(artifact))
    with remove_modules(model, artifact):
        is_complete = _has_all_names(model, artifact)
    if not is_complete:
        return _load_checkpoint(type(model), artifact)
    _warn_of_unknown([name for name in artifact if name not in get_state(model)], model, artifact)
    check_sizes(model, artifact)
    _assign_tensors(model, artifact)
    resize_modules(model, artifact)
    return model.eval()


def _check_names(state: Mapping[str, torch.Tensor], artifact: Artifact, allowed: Sequence[str] = ()) -> None:
    present = {id(tensor) for name, tensor in state.items() if name in artifact}
    missing = [name for name, tensor in state.items() if id(tensor) not in present]
    unknown = [name for name in artifact if name not in state and name not in allowed]
    if missing or unknown:
        name, others = (missing[0], unknown) if missing else (unknown[0], missing or list(state))
        lacks = f"lacks {format_list(map(repr, missing))} of the model" if missing else ""
        has = f"has {format_list(map(repr, unknown))}, which the model does not have" if unknown else ""
        raise ArtifactError(
            f"{artifact.path}: {' and '.join(filter(None, (lacks, has)))}.{suggest_name(name, others)} Build the model "
            f"as it was when it was saved."
        )


def _check_tensors(model: nn.Module, state: Mapping[str, torch.Tensor], artifact: Artifact) -> None:
    """Check shapes and data types of the tensors that a model and an artifact share, in the order of the model."""
    resized = find_resized(model, artifact)
    for name, tensor in state.items():
        if name not in artifact:
            continue
        entry = artifact.entry(name)
        is_resized = id(tensor) in resized and len(entry.shape) == tensor.dim()
        if tuple(tensor.shape) != entry.shape and not is_resized:
            raise ArtifactError(
                f"{artifact.path}: tensor {name!r} has shape {list(entry.shape)}, but {list(tensor.shape)} in the "
                f"model. Build the model as it was when it was saved."
            )
        if not tensor.is_meta and NAMES.get(tensor.dtype) != entry.dtype:
            dtype = DTYPES[entry.dtype].name
            raise ArtifactError(
                f"{artifact.path}: tensor {name!r} is {dtype}, but {tensor.dtype} in the model. Call "
                f"model.to(torch.{dtype}) first, and convert after loading."
            )


@torch.no_grad()
def _assign_tensors(model: nn.Module, artifact: Artifact) -> None:
    """Fill every parameter and persistent buffer; tied tensors stay tied."""
    loaded: dict[int, torch.Tensor] = {}
    for name, tensor in get_state(model).items():
        if id(tensor) not in loaded and name in artifact:
            loaded[id(tensor)] = _fill_tensor(tensor, to_torch(artifact[name]))
    _replace_tensors(model, loaded)


def _replace_tensors(model: nn.Module, values: Mapping[int, torch.Tensor]) -> None:
    """Replace parameters and buffers, by the id of the current ones."""
    for module in model.modules():
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for registry in registries:
            registry.update({key: values[id(value)] for key, value in registry.items() if id(value) in values})


def _fill_tensor(tensor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Copy the values into a tensor, or return a new one if it has no memory, another data type or another shape."""
    if tensor.is_meta or tensor.dtype != value.dtype or tensor.shape != value.shape:
        return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    return tensor.copy_(value)


def _is_published(model: nn.Module, artifact: Artifact) -> bool:
    """Whether the tensors of an artifact have a published form that is not that of the model."""
    if not is_pretrained(model) or artifact.manifest.is_slimmed:
        return False
    state = get_state(model)
    published = list_published(model, state)
    if all(tensor.is_renamed and tensor.sources == (name,) for name, tensor in published.items()):
        return False
    return not {*artifact.manifest.tensors} <= {*state} or {*artifact.manifest.tensors} <= {*published}


def _has_all_names(model: nn.Module, artifact: Artifact) -> bool:
    """Whether the artifact has every tensor of a model, as the model itself has it."""
    state = get_state(model)
    present = {id(tensor) for name, tensor in state.items() if name in artifact}
    return all(id(tensor) in present for tensor in state.values()) and not _is_published(model, artifact)


def _warn_of_unknown(names: list[str], model: nn.Module, artifact: Artifact) -> None:
    """Log a warning about tensors that the class of the model does not know, such as those of extra heads."""
    if names:
        logger.warning(
            "%s: %s are not used by %s and are not loaded. They stay in the folder.",
            artifact.path,
            format_list(map(repr, names)),
            type(model).__name__,
        )


def _get_kind(artifact: Artifact) -> str | None:
    return None if artifact.manifest.model is None else artifact.manifest.model.kind


def _get_class_name(artifact: Artifact) -> str | None:
    return None if artifact.manifest.model is None else artifact.manifest.model.name


def _copy_published(model: nn.Module, state: Mapping[str, torch.Tensor], artifact: Artifact) -> None:
    """Copy the tensors of an artifact in the published form into a transformers model."""
    loaded = get_state(_load_checkpoint(type(model), artifact, model.config))
    for name, tensor in state.items():
        value = loaded[name]
        if value.shape != tensor.shape or not (tensor.is_meta or tensor.dtype == value.dtype):
            raise ArtifactError(
                f"{artifact.path}: tensor {name!r} is {value.dtype} {list(value.shape)}, but {tensor.dtype} "
                f"{list(tensor.shape)} in the model. Build the model as it was when it was saved."
            )
    with torch.no_grad():
        _replace_tensors(model, {id(tensor): _fill_tensor(tensor, loaded[name]) for name, tensor in state.items()})


def _load_checkpoint(model_class: Any, artifact: Artifact, config: Any = None) -> nn.Module:
    """Load a model whose tensors have the names of a checkpoint, which transformers maps to those of the model."""
    tensors = {name: to_torch(artifact[name]) for name in artifact}
    model: nn.Module
    # Progress bars are not part of the library's output.
    with artifact.extract(CONFIG_FILE) as folder, explain_failures(artifact.path), redirect_stderr(io.StringIO()):
        model, info = model_class.from_pretrained(
            None,
            config=load_config(folder) if config is None else config,
            state_dict=tensors,
            dtype=_get_dtype(tensors),
            output_loading_info=True,
        )
    if wrong := [name for kind in ("missing_keys", "mismatched_keys") for name in info[kind]]:
        raise ArtifactError(
            f"{artifact.path}: does not belong to the model: {format_list(map(repr, wrong))} are missing or of another "
            f"shape."
        )
    _warn_of_unknown([*info["unexpected_keys"]], model, artifact)
    _restore_dtypes(model, list_published(model, get_state(model)), artifact)
    return model.eval()


def _restore_dtypes(model: nn.Module, published: Mapping[str, PublishedTensor], artifact: Artifact) -> None:
    """Convert every tensor to its stored data type; until now, all have a common type that can hold all values."""
    state = get_state(model)
    converted: dict[int, torch.Tensor] = {}
    for name, tensor in published.items():
        stored = TYPES.get(artifact.entry(name).dtype) if name in artifact else None
        for source in tensor.sources if stored is not None else ():
            value = state[source]
            if value.dtype != stored and value.is_floating_point() and id(value) not in converted:
                cast = value.detach().to(stored)
                is_parameter = isinstance(value, nn.Parameter)
                converted[id(value)] = nn.Parameter(cast, value.requires_grad) if is_parameter else cast
    _replace_tensors(model, converted)


def _get_dtype(tensors: Mapping[str, torch.Tensor]) -> torch.dtype | str:
    """Return the type that holds all stored values exactly; the configuration's could round them."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point() and tensor.itemsize > 1}
    return reduce(torch.promote_types, dtypes) if dtypes else "auto"


def _build_on_meta(folder: Path, artifact: Artifact, limits: ModelLimits) -> nn.Module | None:
    """Build a model on the meta device; ``None``: the model cannot be built there.

    Raises:
        ModelLoadError: The model exceeds its limits.
    """
    try:
        with torch.device("meta"):
            return build_configured(folder, artifact.path, limits, _get_class_name(artifact))
    except ModelLoadError as error:
        if isinstance(error.__cause__, ArtifactError):
            raise
        return None


def build_configured(folder: Path, shown: Path, limits: ModelLimits, class_name: str | None = None) -> nn.Module:
    """Build the model that the configuration in a folder describes, without values in its parameters and buffers.

    Args:
        folder: The folder with the configuration.
        shown: The folder to name in errors.
        limits: The largest model that may be built.
        class_name: The model class if the configuration names none.
    """
    with explain_failures(shown):
        config = load_config(folder)
        model_class = find_model_class(config, class_name)
        if model_class is None:
            name = (config.architectures or (class_name,))[0]
            raise ArtifactError(f"{format_value(name)} is not a transformers model")
        return build_empty_model(model_class, config, limits, shown / CONFIG_FILE)
