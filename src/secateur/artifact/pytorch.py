"""Save torch modules, including transformers models, as artifacts, and load them back."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur._huggingface.config import check_config, read_config
from secateur._huggingface.folders import CONFIG_FILE
from secateur._huggingface.pytorch import build_empty_model, explain_failures, find_model_class, load_config
from secateur._json import parse_json
from secateur._model_limits import LIMITS_WITHOUT_WEIGHTS, ModelLimits
from secateur._wording import format_list, format_value, suggest_name
from secateur.artifact.dtypes import DTYPES, Bits
from secateur.artifact.manifest import Builder
from secateur.artifact.reader import Artifact, RawTensor
from secateur.artifact.source import Source, SourceTensor, guess_view
from secateur.errors import ArtifactError, ConfigError, ModelLoadError, UnsupportedModelError
from secateur.frameworks import WeightView
from secateur.frameworks.pytorch import get_view, get_weight_name, unwrap_model
from secateur.planning.layers import Candidate
from secateur.planning.output_layer import stays_dense_as_output
from secateur.planning.pytorch import find_candidates

__all__ = ["build_model", "describe_layers", "load_weights", "make_source", "to_torch"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number → the type of integer that NumPy knows too."""

TYPES = {name: getattr(torch, dtype.name) for name, dtype in DTYPES.items() if hasattr(torch, dtype.name)}
"""Name in a file → torch's type."""

NAMES = {dtype: name for name, dtype in TYPES.items()}


def make_source(model: nn.Module, tokenizer: Any = None) -> Source:
    """A model's parameters and saved buffers, and for one of transformers what else its folder holds.

    Args:
        model: The model.
        tokenizer: What is saved beside it; anything with ``save_pretrained``.

    Raises:
        UnsupportedModelError: The model has a tensor that is not plain and dense.
    """
    model = unwrap_model(model)
    tensors, aliases = _find_aliases(_get_state(model))
    layers = _find_layers(model)
    layers |= {name: layers[alias] for alias, name in aliases.items() if alias in layers and name not in layers}
    pretrained = model if _is_pretrained(model) else None
    return Source(
        tensors={
            name: SourceTensor(
                dtype=NAMES[tensor.dtype],
                shape=tuple(tensor.shape),
                read=partial(_get_bits, tensor),
                view=get_view(layers[name].module) if name in layers else guess_view(tuple(tensor.shape)),
                layer=layers[name].name if name in layers else None,
                is_prunable=name in layers and not stays_dense_as_output(layers[name], [*layers.values()]),
            )
            for name, tensor in tensors.items()
        },
        aliases=aliases,
        model=Builder(
            framework="pytorch", kind="code" if pretrained is None else "transformers", name=type(model).__qualname__
        ),
        write_files=partial(_write_files, pretrained, tokenizer),
    )


def load_weights(model: nn.Module, artifact: Artifact) -> nn.Module:
    """Load the tensors of an artifact into a model.

    Parameters keep their identity, except those on the meta device, which are replaced.

    Raises:
        ArtifactError: Names, shapes or types differ, or a tensor is damaged. The model is unchanged then.
    """
    own = _get_state(unwrap_model(model))
    _check_names(own, artifact)
    for name in artifact:
        _check_fit(name, own[name], artifact)
    for name in artifact.manifest.tensors:
        artifact[name]  # verify all tensors before anything changes
    _assign_tensors(unwrap_model(model), artifact)
    return model


def build_model(artifact: Artifact) -> nn.Module:
    """The model of transformers in an artifact.

    It is built on the meta device first, and only then for real: a description that asks for another model than the
    stored tensors are of takes no memory.

    Raises:
        ModelLoadError: transformers cannot build it.
        ArtifactError: A tensor is damaged, or the model is another than the one that was saved.
    """
    artifact.check_files()
    description = artifact.path / CONFIG_FILE
    check_config(parse_json(artifact.read_file(CONFIG_FILE), description), description)
    entries = artifact.manifest.tensors.values()
    limits = ModelLimits.from_stored(len(entries), sum(entry.count for entry in entries))
    with artifact.extract(CONFIG_FILE) as folder:
        declared = _build_on_meta(folder, artifact.path, limits)
        if declared is not None and set(artifact) <= set(declared):
            _check_names(declared, artifact)
            for name in artifact:
                _check_fit(name, declared[name], artifact)
        model = _build_empty(folder, artifact.path, limits)
    own = _get_state(model)
    if not set(artifact) <= set(own):
        return _from_checkpoint(type(model), artifact)
    _check_names(own, artifact)
    _assign_tensors(model, artifact)
    return model.eval()


def to_torch(tensor: RawTensor) -> torch.Tensor:
    """A stored tensor as torch's, of the same memory.

    Raises:
        ArtifactError: torch has no such type.
    """
    if tensor.dtype not in TYPES:
        raise ArtifactError(f"torch {torch.__version__} has no type for {tensor.dtype}.")
    bits = np.ascontiguousarray(tensor.bits).view(f"i{tensor.bits.itemsize}" if tensor.bits.itemsize > 1 else "u1")
    return torch.from_numpy(bits.reshape(tensor.shape)).view(TYPES[tensor.dtype])


def describe_layers(folder: Path) -> dict[str, tuple[WeightView, str, bool] | None]:
    """Describe the model of a folder: parameter → its view, its layer, and whether that is not an output layer.

    ``None`` stands for what patterns do not prune. Names with and without the prefix of the inner model both count.

    Raises:
        ModelLoadError: transformers cannot build it.
        ArtifactError: The description counts more layers or the like than any model has.
    """
    with explain_failures(folder):
        config = read_config(folder / CONFIG_FILE)
    check_config(config, folder / CONFIG_FILE)
    with torch.device("meta"):
        model: Any = _build_empty(folder, folder, LIMITS_WITHOUT_WEIGHTS)
    layers = _find_layers(model)
    found = dict.fromkeys(_get_state(model)) | {
        name: (get_view(one.module), one.name, not one.is_output) for name, one in layers.items()
    }
    prefix = f"{model.base_model_prefix}."
    return (
        {prefix + name: one for name, one in found.items()}
        | {name.removeprefix(prefix): one for name, one in found.items()}
        | found
    )


def _get_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → parameter or saved buffer, in the state dict."""
    state = model.state_dict(keep_vars=True)
    for name, held in state.items():
        is_plain = isinstance(held, torch.Tensor) and held.layout == torch.strided and not held.is_quantized
        if not is_plain or type(held) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            kind = type(held).__name__ if not isinstance(held, torch.Tensor) else f"{type(held).__name__}, {held.dtype}"
            raise UnsupportedModelError(
                f"{name!r} must be a plain dense tensor, found {kind}. Save the model before it is quantized, and "
                f"sparse tensors as to_dense()."
            )
        if held.dtype not in NAMES:
            raise UnsupportedModelError(f"{name!r} has dtype {held.dtype}, which safetensors has no name for.")
    return dict(state)


def _find_aliases(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each tensor once, and the other names of those that have several."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise UnsupportedModelError(f"{name!r} is on the meta device and has no values. Load the model's weights.")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = seen.setdefault(place if tensor.numel() else name, name)
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def _find_layers(model: nn.Module) -> dict[str, Candidate]:
    """Parameter → the layer that patterns can prune it in."""
    return {
        f"{one.name}.{get_weight_name(one.module)}".lstrip("."): one
        for one in find_candidates(model, prune_frozen=True)
        if one.reason is None
    }


def _get_bits(tensor: torch.Tensor) -> Bits:
    held = tensor.detach().cpu().contiguous()
    integers: Bits = held.view(INTEGERS[held.element_size()]).numpy()
    return integers.view(DTYPES[NAMES[held.dtype]].bits)


def _is_pretrained(model: nn.Module) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _write_files(model: Any, tokenizer: Any, folder: Path) -> None:
    """What a folder of transformers holds besides the weights."""
    if tokenizer is not None:
        if not hasattr(tokenizer, "save_pretrained"):
            raise ConfigError(f"tokenizer must have a method save_pretrained, found {type(tokenizer).__name__}.")
        tokenizer.save_pretrained(folder)
    if model is None:
        return
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", model.dtype)
    if getattr(model, "hf_quantizer", None) is None and hasattr(config, "quantization_config"):
        del config.quantization_config  # of a file that was read into plain tensors, as from GGUF
    config.save_pretrained(folder)
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def _check_names(own: Mapping[str, torch.Tensor], artifact: Artifact) -> None:
    stored = {id(tensor) for name, tensor in own.items() if name in artifact}
    missing = [name for name, tensor in own.items() if id(tensor) not in stored]
    unknown = [name for name in artifact if name not in own]
    if missing or unknown:
        name, others = (missing[0], unknown) if missing else (unknown[0], missing or list(own))
        lacks = f"lacks {format_list(map(repr, missing))} of the model" if missing else ""
        has = f"has {format_list(map(repr, unknown))}, which the model does not have" if unknown else ""
        raise ArtifactError(
            f"{artifact.path}: {' and '.join(filter(None, (lacks, has)))}.{suggest_name(name, others)} Build the model "
            f"as it was when it was saved."
        )


def _check_fit(name: str, tensor: torch.Tensor, artifact: Artifact) -> None:
    entry = artifact.entry(name)
    if tuple(tensor.shape) != entry.shape:
        raise ArtifactError(
            f"{artifact.path}: tensor {name!r} has shape {list(entry.shape)}, and {list(tensor.shape)} in the model. "
            f"Build the model as it was when it was saved."
        )
    if not tensor.is_meta and NAMES.get(tensor.dtype) != entry.dtype:
        stored = DTYPES[entry.dtype].name
        raise ArtifactError(
            f"{artifact.path}: tensor {name!r} is {stored}, and {tensor.dtype} in the model. Call "
            f"model.to(torch.{stored}) first, and convert after loading."
        )


@torch.no_grad()
def _assign_tensors(model: nn.Module, artifact: Artifact) -> None:
    """Fill every parameter and saved buffer; one that stands in several places stays one."""
    made: dict[int, torch.Tensor] = {}
    for name, before in _get_state(model).items():
        if id(before) not in made and name in artifact:
            made[id(before)] = _fill_tensor(before, artifact, name)
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for holder in holders:
            holder.update({key: made[id(held)] for key, held in holder.items() if id(held) in made})


def _fill_tensor(before: torch.Tensor, artifact: Artifact, name: str) -> torch.Tensor:
    """The tensor with its new values, or another in its place if it has not the type for them."""
    value = to_torch(artifact[name])
    if before.is_meta or before.dtype != value.dtype or before.shape != value.shape:
        return nn.Parameter(value, before.requires_grad) if isinstance(before, nn.Parameter) else value
    return before.copy_(value)


def _from_checkpoint(architecture: Any, artifact: Artifact) -> nn.Module:
    """A model whose tensors have the names that checkpoints give them, which transformers turns into its own."""
    tensors = {name: to_torch(artifact[name]) for name in artifact}
    model: nn.Module
    with artifact.extract(CONFIG_FILE) as folder, explain_failures(artifact.path):
        model, found = architecture.from_pretrained(
            None, config=load_config(folder), state_dict=tensors, dtype="auto", output_loading_info=True
        )
    if wrong := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in found[kind]]:
        raise ArtifactError(
            f"{artifact.path}: {format_list(map(repr, wrong))} are not tensors of both it and the model."
        )
    return model.eval()


def _build_on_meta(folder: Path, shown: Path, limits: ModelLimits) -> dict[str, torch.Tensor] | None:
    """Names and shapes of the model that a folder describes; ``None``: it cannot be built on the meta device.

    Raises:
        ModelLoadError: The model is larger than its limits.
    """
    try:
        with torch.device("meta"):
            return _get_state(_build_empty(folder, shown, limits))
    except ModelLoadError as error:
        if isinstance(error.__cause__, ArtifactError):
            raise
        return None


def _build_empty(folder: Path, shown: Path, limits: ModelLimits) -> nn.Module:
    """The model that a folder's configuration describes; its saved tensors have no values yet.

    Args:
        folder: Holds the configuration.
        shown: The folder that errors name.
        limits: What the model may have.
    """
    with explain_failures(shown):
        config = load_config(folder)
        model_class = find_model_class(config)
        if model_class is None:
            name = (config.architectures or (None,))[0]
            raise ArtifactError(f"{format_value(name)} is not a model of transformers")
        return build_empty_model(model_class, config, limits, shown / CONFIG_FILE)
