"""Weights of a model that code builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from secateur._wording import listed, nearest
from secateur.errors import ModelLoadError

__all__ = ["fill"]

NESTED = ("state_dict", "model_state_dict", "model")
"""Where a checkpoint of a training run has the model's state."""


def fill(model: nn.Module, file: Path) -> None:
    """Put a file's weights into a model.

    Args:
        model: The model.
        file: A safetensors file, or what ``torch.save`` wrote of a state dict, alone or as part of a checkpoint; of it
            nothing but tensors and plain values is read.

    Raises:
        ModelLoadError: It cannot be read, or its tensors are not those of the model. The model is as it was then.
    """
    state, own = _state(file), model.state_dict(keep_vars=True)
    present = {id(own[name]) for name in state if name in own}
    missing = [name for name, held in own.items() if name not in state and id(held) not in present]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        told = [f"lacks {listed(map(repr, missing))} of the model"] if missing else []
        told += [f"holds {listed(map(repr, unknown))}, which the model has not"] if unknown else []
        hint = nearest(missing[0], unknown) if missing else ""
        raise ModelLoadError(f"{str(file)!r} {' and '.join(told)}.{hint}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ModelLoadError(
                f"{name!r} has shape {list(tensor.shape)} in {str(file)!r}, and {list(own[name].shape)} in the model."
            )
    model.load_state_dict(state, strict=False, assign=any(held.is_meta for held in own.values()))


def _state(file: Path) -> dict[str, torch.Tensor]:
    found: Any = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise ModelLoadError(
            f"{str(file)!r} must hold a state dict, names with their tensors, found {type(found).__name__}. "
            f"torch.save(model.state_dict(), …) writes one."
        )
    return dict(found)


def _read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{str(file)!r} cannot be read ({error}). Is it complete?") from error


def _read_pickle(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    # Zip files, pickles and whatever they hold: each with its own errors.
    except Exception as error:
        raise ModelLoadError(
            f"{str(file)!r} cannot be read as a state dict ({type(error).__name__}): it is damaged, or it holds more "
            f"than tensors, which may be harmful code. torch.save(model.state_dict(), …) writes what can be read."
        ) from error
