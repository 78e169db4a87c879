"""Save torch modules, including transformers models, as artifacts, and load them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from functools import partial, reduce
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
from secateur.frameworks.pytorch import get_parameter_name, get_view, unwrap_model
from secateur.planning.layers import Candidate
from secateur.planning.output_layer import stays_dense_as_output
from secateur.planning.pytorch import find_candidates

__all__ = ["build_model", "describe_layers", "load_weights", "make_source", "to_torch"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number → integer data type that NumPy supports too."""

TYPES = {name: getattr(torch, dtype.name) for name, dtype in DTYPES.items() if hasattr(torch, dtype.name)}
"""Name in a file → torch data type."""

NAMES = {dtype: name for name, dtype in TYPES.items()}


def make_source(model: nn.Module, tokenizer: Any = None) -> Source:
    """Collect the parameters and persistent buffers of a model, and for transformers models the companion files.

    Args:
        model: The model.
        tokenizer: The tokenizer or processor to save with it; any object with ``save_pretrained``.

    Raises:
        UnsupportedModelError: The model has a tensor that is not a plain dense tensor.
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
        ArtifactError: Names, shapes or data types differ, or a tensor is damaged. The model does not change.
    """
    state = _get_state(unwrap_model(model))
    _check_names(state, artifact)
    for name in artifact:
        _check_fit(name, state[name], artifact)
    for name in artifact.manifest.tensors:
        artifact[name]  # verify all tensors before anything changes
    _assign_tensors(unwrap_model(model), artifact)
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
        meta_state = _build_meta_state(folder, artifact.path, limits)
        if meta_state is not None and set(artifact) <= set(meta_state):
            _check_names(meta_state, artifact)
            for name in artifact:
                _check_fit(name, meta_state[name], artifact)
        model = _build_empty(folder, artifact.path, limits)
    state = _get_state(model)
    if not set(artifact) <= set(state):
        return _load_checkpoint(type(model), artifact)
    _check_names(state, artifact)
    _assign_tensors(model, artifact)
    return model.eval()


def to_torch(tensor: RawTensor) -> torch.Tensor:
    """Convert a tensor to a torch tensor that shares its memory.

    Raises:
        ArtifactError: This version of torch does not have the data type.
    """
    if tensor.dtype not in TYPES:
        raise ArtifactError(f"torch {torch.__version__} does not support {tensor.dtype}. Install a newer version.")
    bits = np.ascontiguousarray(tensor.bits).view(f"i{tensor.bits.itemsize}" if tensor.bits.itemsize > 1 else "u1")
    return torch.from_numpy(bits.reshape(tensor.shape)).view(TYPES[tensor.dtype])


def describe_layers(folder: Path) -> dict[str, tuple[WeightView, str, bool] | None]:
    """Describe the model of a folder: parameter → its view, its layer, and whether a plan would prune the layer.

    ``None`` marks parameters that patterns do not prune. Each name is listed with and without the base model's prefix.

    Raises:
        ModelLoadError: transformers cannot build the model.
        ArtifactError: The configuration has an impossible number of layers, heads or the like.
    """
    with explain_failures(folder):
        config = read_config(folder / CONFIG_FILE)
    check_config(config, folder / CONFIG_FILE)
    with torch.device("meta"):
        model: Any = _build_empty(folder, folder, LIMITS_WITHOUT_WEIGHTS)
    layers = _find_layers(model)
    described = dict.fromkeys(_get_state(model)) | {
        name: (get_view(layer.module), layer.name, not layer.is_output) for name, layer in layers.items()
    }
    prefix = f"{model.base_model_prefix}."
    return (
        {prefix + name: layer for name, layer in described.items()}
        | {name.removeprefix(prefix): layer for name, layer in described.items()}
        | described
    )


def _get_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and persistent buffers by name, and check that each is a plain dense tensor."""
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        is_plain = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized
        if not is_plain or type(value) not in (torch.Tensor, nn.Parameter, nn.Buffer):
            kind = type(value).__name__ + (f", {value.dtype}" if isinstance(value, torch.Tensor) else "")
            raise UnsupportedModelError(
                f"{name!r} must be a plain dense tensor, found {kind}. Save the model before quantization, and "
                f"convert sparse tensors with to_dense()."
            )
        if value.dtype not in NAMES:
            raise UnsupportedModelError(f"{name!r} has dtype {value.dtype}, which safetensors does not support.")
    return dict(state)


def _find_aliases(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Separate tied tensors: return each tensor under its first name, and alternative name → first name."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, tensor in state.items():
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"{name!r} is on the meta device and has no values. Load the weights of the model first."
            )
        storage = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = seen.setdefault(storage if tensor.numel() else name, name)
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def _find_layers(model: nn.Module) -> dict[str, Candidate]:
    """Map each parameter that patterns can prune to its layer."""
    return {
        get_parameter_name(candidate.name, candidate.module): candidate
        for candidate in find_candidates(model, prune_frozen=True)
        if candidate.reason is None
    }


def _get_bits(tensor: torch.Tensor) -> Bits:
    values = tensor.detach().cpu().contiguous()
    integers: Bits = values.view(INTEGERS[values.element_size()]).numpy()
    return integers.view(DTYPES[NAMES[values.dtype]].bits)


def _is_pretrained(model: nn.Module) -> bool:
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def _write_files(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer and the configuration of a transformers model."""
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
        del config.quantization_config  # the weights were dequantized on loading, as from a GGUF file
    config.save_pretrained(folder)
    if model.can_generate() and getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def _check_names(state: Mapping[str, torch.Tensor], artifact: Artifact) -> None:
    present = {id(tensor) for name, tensor in state.items() if name in artifact}
    missing = [name for name, tensor in state.items() if id(tensor) not in present]
    unknown = [name for name in artifact if name not in state]
    if missing or unknown:
        name, others = (missing[0], unknown) if missing else (unknown[0], missing or list(state))
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
            f"{artifact.path}: tensor {name!r} has shape {list(entry.shape)}, but {list(tensor.shape)} in the model. "
            f"Build the model as it was when it was saved."
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
    for name, tensor in _get_state(model).items():
        if id(tensor) not in loaded and name in artifact:
            loaded[id(tensor)] = _fill_tensor(tensor, artifact, name)
    for module in model.modules():
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for registry in registries:
            registry.update({key: loaded[id(value)] for key, value in registry.items() if id(value) in loaded})


def _fill_tensor(tensor: torch.Tensor, artifact: Artifact, name: str) -> torch.Tensor:
    """Copy the values into a tensor, or return a new one if it has no memory, another data type or another shape."""
    value = to_torch(artifact[name])
    if tensor.is_meta or tensor.dtype != value.dtype or tensor.shape != value.shape:
        return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    return tensor.copy_(value)


def _load_checkpoint(model_class: Any, artifact: Artifact) -> nn.Module:
    """Load a model whose tensors have the names of a checkpoint, which transformers maps to those of the model."""
    tensors = {name: to_torch(artifact[name]) for name in artifact}
    model: nn.Module
    with artifact.extract(CONFIG_FILE) as folder, explain_failures(artifact.path):
        model, info = model_class.from_pretrained(
            None, config=load_config(folder), state_dict=tensors, dtype=_get_dtype(tensors), output_loading_info=True
        )
    if wrong := [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]:
        raise ArtifactError(
            f"{artifact.path}: does not belong to the model: {format_list(map(repr, wrong))} are missing, unknown or "
            f"of another shape."
        )
    return model.eval()


def _get_dtype(tensors: Mapping[str, torch.Tensor]) -> torch.dtype | str:
    """Return the type that holds all stored values exactly; the configuration's could round them."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point() and tensor.itemsize > 1}
    return reduce(torch.promote_types, dtypes) if dtypes else "auto"


def _build_meta_state(folder: Path, shown: Path, limits: ModelLimits) -> dict[str, torch.Tensor] | None:
    """Build the state of a model on the meta device; ``None``: the model cannot be built there.

    Raises:
        ModelLoadError: The model exceeds its limits.
    """
    try:
        with torch.device("meta"):
            return _get_state(_build_empty(folder, shown, limits))
    except ModelLoadError as error:
        if isinstance(error.__cause__, ArtifactError):
            raise
        return None


def _build_empty(folder: Path, shown: Path, limits: ModelLimits) -> nn.Module:
    """Build the model that the configuration in a folder describes, without values in its parameters and buffers.

    Args:
        folder: The folder with the configuration.
        shown: The folder to name in errors.
        limits: The largest model that may be built.
    """
    with explain_failures(shown):
        config = load_config(folder)
        model_class = find_model_class(config)
        if model_class is None:
            name = (config.architectures or (None,))[0]
            raise ArtifactError(f"{format_value(name)} is not a transformers model")
        return build_empty_model(model_class, config, limits, shown / CONFIG_FILE)
