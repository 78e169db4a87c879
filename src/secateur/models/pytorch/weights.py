"""Load weights from a file into a torch model."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from secateur._files import open_file
from secateur._third_party import translate_errors
from secateur._wording import format_list, format_value, suggest_name
from secateur.artifact.pytorch import to_torch
from secateur.artifact.reader import RawTensor
from secateur.artifact.safetensors_file import TensorFile
from secateur.errors import ModelLoadError
from secateur.models.archives import check_zip

__all__ = ["load_weights", "read_state"]

NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training checkpoints have the state dict of the model."""

EXTRA_STATE = "_extra_state"
"""Suffix of the names of extra state that a module saves besides its tensors."""


def load_weights(model: nn.Module, file: Path) -> None:
    """Load weights from a file into a model.

    Numbers may be rounded to another data type of the same kind. They are never converted to another kind: from
    floating point to integers, from complex to real, or from 8-bit floating point, which may be scaled, to any other.

    Args:
        model: The model.
        file: A safetensors file, or a state dict that ``torch.save`` wrote, alone or in a checkpoint. It is read with
            ``weights_only=True``.

    Raises:
        ModelLoadError: The file cannot be read, or its tensors do not belong to the model, which does not change.
    """
    state, model_state = read_state(file), model.state_dict(keep_vars=True)
    _check_names(state, model_state, file)
    with translate_errors(ModelLoadError, f"{str(file)!r} cannot be loaded into the model"):
        values = {name: _convert(name, tensor, model_state[name], file) for name, tensor in state.items()}
        _check_ties(values, model_state, file)
        is_on_meta = any(isinstance(target, torch.Tensor) and target.is_meta for target in model_state.values())
        model.load_state_dict(
            _keep_ties(values, model_state) if is_on_meta else values, strict=False, assign=is_on_meta
        )


def _check_names(state: Mapping[str, Any], model_state: Mapping[str, Any], file: Path) -> None:
    present = {id(model_state[name]) for name in state if name in model_state}
    missing = [name for name, target in model_state.items() if name not in state and id(target) not in present]
    unknown = [name for name in state if name not in model_state]
    if missing or unknown:
        problems = [f"lacks {format_list(map(format_value, missing))} of the model"] if missing else []
        problems += [f"has {format_list(map(format_value, unknown))}, which the model does not have"] if unknown else []
        hint = suggest_name(missing[0], unknown) if missing else ""
        raise ModelLoadError(f"{str(file)!r} {' and '.join(problems)}.{hint}")


def _convert(name: str, tensor: Any, target: Any, file: Path) -> Any:
    """Convert a tensor to the data type of the model's tensor.

    Raises:
        ModelLoadError: The shapes differ, or the numbers would change by more than rounding.
    """
    if not isinstance(tensor, torch.Tensor) or not isinstance(target, torch.Tensor) or is_lazy(target):
        return tensor
    if tensor.shape != target.shape:
        raise ModelLoadError(
            f"{format_value(name)} has shape {format_value(list(tensor.shape))} in {str(file)!r}, but "
            f"{list(target.shape)} in the model."
        )
    if tensor.dtype == target.dtype:
        return tensor
    if (_get_kind(tensor.dtype), _get_kind(target.dtype)) in {("floating", "floating"), ("complex", "complex")}:
        if target.is_meta:
            return tensor
        value = tensor.to(target.dtype)
        is_same = bool((torch.isfinite(value) | ~torch.isfinite(tensor)).all())
    elif _get_kind(tensor.dtype) == _get_kind(target.dtype) == "integer":
        value = tensor.to(target.dtype)
        is_same = torch.equal(value.to(tensor.dtype), tensor) and torch.equal(value < 0, tensor < 0)
    else:
        is_same = False
    if not is_same:
        raise ModelLoadError(
            f"{format_value(name)} is {tensor.dtype} in {str(file)!r}, but {target.dtype} in the model, which cannot "
            "represent its values. Convert the weights or the model first."
        )
    return value


def _get_kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "floating" if dtype.itemsize > 1 else str(dtype)
    return "bool" if dtype == torch.bool else "integer"


def _check_ties(values: Mapping[str, Any], model_state: Mapping[str, Any], file: Path) -> None:
    """Raise `ModelLoadError` if two names of the same tensor have different values."""
    first: dict[int, str] = {}
    for name, value in values.items():
        other = first.setdefault(id(model_state[name]), name)
        if other == name or not isinstance(value, torch.Tensor):
            continue
        if not torch.equal(value, values[other]) and not torch.allclose(value, values[other], 0, 0, equal_nan=True):
            raise ModelLoadError(
                f"{format_value(other)} and {format_value(name)} are tied in the model, but have different "
                f"values in {str(file)!r}."
            )


def _keep_ties(values: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, Any]:
    """Create one parameter, with a copy of the values, for all names of a tied parameter."""
    converted = {
        id(model_state[name]): nn.Parameter(value.clone(), model_state[name].requires_grad)
        if isinstance(model_state[name], nn.Parameter)
        else value
        for name, value in values.items()
    }
    return {name: converted[id(target)] for name, target in model_state.items() if id(target) in converted}


def read_state(file: Path) -> dict[str, Any]:
    """Read the state dict in a safetensors file, or in a file that ``torch.save`` wrote.

    Raises:
        ModelLoadError: The file cannot be read, or has something else.
    """
    with translate_errors(ModelLoadError, f"{str(file)!r} cannot be read", "Check that it is complete."):
        content: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    unexpected = (
        [name for name, value in content.items() if not _is_entry(name, value)] if isinstance(content, Mapping) else []
    )
    if not isinstance(content, Mapping) or unexpected:
        what = (
            f"{format_value(unexpected[0])}, which is {_describe(content[unexpected[0]])}"
            if unexpected
            else type(content).__name__
        )
        raise ModelLoadError(
            f"{str(file)!r} must have a state dict that maps names to tensors, found {what}. "
            f"Write one with torch.save(model.state_dict(), …)."
        )
    return dict(content)


def _is_entry(name: Any, value: Any) -> bool:
    if not isinstance(name, str):
        return False
    if not isinstance(value, torch.Tensor):
        return name.endswith(EXTRA_STATE)
    is_plain = value.layout == torch.strided and not value.is_quantized and not value.is_nested and not value.is_meta
    return is_plain and type(value) in (torch.Tensor, nn.Parameter, nn.Buffer)


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"of type {type(value).__name__}"
    kind = "nested" if value.is_nested else "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
    return f"not a plain dense tensor but {type(value).__name__} ({kind}, {value.dtype})"


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    tensors = TensorFile(file)
    return {name: to_torch(RawTensor(tensors[name].dtype, tensors.read(name))) for name in tensors}


def _read_pickle(file: Path) -> Any:
    with open_file(file) as binary:
        if zipfile.is_zipfile(binary):
            check_zip(binary, file)
        binary.seek(0)
        try:
            return torch.load(binary, map_location="cpu", weights_only=True)
        # torch.load raises different exceptions for damaged zip files, pickles and tensors.
        except Exception as error:
            raise ModelLoadError(
                f"{str(file)!r} cannot be read as a state dict ({type(error).__name__}): it is damaged, or it "
                f"has objects other than tensors, which may be harmful code. Write it with "
                f"torch.save(model.state_dict(), …)."
            ) from error
