"""Materialize parts of a model on the meta device from files, and release them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from secateur._wording import format_list, suggest_name
from secateur.errors import ModelLoadError
from secateur.oneshot.pytorch.batches import MODEL_ERRORS
from secateur.oneshot.pytorch.weight_files import WeightFiles

__all__ = ["Materializer", "get_saved_state"]

PRUNABLE_DTYPES = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights that can be pruned, as safetensors names them."""


class Materializer:
    """Materializes parts of a model with the values in files, in the files' dtypes.

    The parameters are replaced within a context and restored afterwards. Tied parameters stay tied.

    Args:
        model: The model.
        files: Values of its parameters and of its persistent buffers.

    Raises:
        ModelLoadError: The files lack a parameter, or have it in another shape or in a dtype that cannot be pruned.
    """

    def __init__(self, model: nn.Module, files: WeightFiles) -> None:
        self._model = model
        self._files = files
        self._state = get_saved_state(model)  # kept alive, so that their ids stay unique
        self._sources = {id(held): name for name, held in reversed(self._state.items()) if name in files}
        self._check()

    @contextmanager
    def materialize(self, parts: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
        """Materialize the tensors of modules, not those of their submodules, within this context."""
        fresh: dict[int, torch.Tensor] = {}
        with ExitStack() as restored:
            for part in parts:
                holders: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
                for holder in holders:
                    for key, before in holder.items():
                        if before is not None:
                            restored.callback(holder.__setitem__, key, before)
                            if id(before) not in fresh:
                                fresh[id(before)] = self._value(before, device)
                            holder[key] = fresh[id(before)]
            yield

    @contextmanager
    def materialize_buffers(self) -> Iterator[None]:
        """Materialize the buffers on the meta device that are in no file, within this context.

        Transformers models compute them in the same way as after loading.

        Raises:
            ModelLoadError: A buffer cannot be computed.
        """
        with ExitStack() as restored:
            for name, part in self._model.named_modules():
                missing = {
                    key: held
                    for key, held in part._buffers.items()
                    if held is not None and held.is_meta and id(held) not in self._sources
                }
                for key, held in missing.items():
                    restored.callback(part._buffers.__setitem__, key, held)
                    part._buffers[key] = _unset(held)
                if missing:
                    self._make(name, part)
                if left := [key for key in missing if _is_unset(part._buffers[key])]:
                    raise ModelLoadError(
                        f"buffer {f'{name}.{left[0]}'.lstrip('.')!r} is on the meta device, and its values are neither "
                        f"in {str(self._files.path)!r} nor known otherwise. Build the model under "
                        f"accelerate.init_empty_weights(include_buffers=False), which gives buffers their values."
                    )
            yield

    def _value(self, before: torch.Tensor, device: torch.device) -> torch.Tensor:
        name = self._sources.get(id(before))
        if name is None:
            return before.to(device)
        value = self._files[name].to(device)
        return nn.Parameter(value, before.requires_grad) if isinstance(before, nn.Parameter) else value

    def _make(self, name: str, part: nn.Module) -> None:
        """Let the innermost enclosing model initialize a module, whose parameters are still on the meta device."""
        path = name.split(".") if name else []
        enclosing = [self._model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1)]
        makers = (maker for module in enclosing if callable(maker := getattr(module, "_init_weights", None)))
        if (maker := next(makers, None)) is not None:
            with suppress(*MODEL_ERRORS), torch.no_grad():
                maker(part)

    def _check(self) -> None:
        own, files = dict(self._model.named_parameters(remove_duplicate=False)), self._files
        if missing := [name for name, held in own.items() if id(held) not in self._sources]:
            raise ModelLoadError(
                f"{str(files.path)!r} lacks {format_list(map(repr, missing))} of the "
                f"model.{suggest_name(missing[0], files)} Names must be those of the model's own parameters. One that "
                "is tied to another may be missing, but accelerate.init_empty_weights unties them: call "
                "model.tie_weights() after it."
            )
        for name, held in own.items():
            if name in files and files.shapes[name] != tuple(held.shape):
                raise ModelLoadError(
                    f"{name!r} has shape {list(files.shapes[name])} in {str(files.path)!r}, and {list(held.shape)} in "
                    f"the model. Build the model from the configuration that belongs to the files."
                )
            if name in files and held.is_floating_point() and files.types[name] not in PRUNABLE_DTYPES:
                raise ModelLoadError(
                    f"{name!r} is stored as {files.types[name]} in {str(files.path)!r}; pruning needs one of "
                    f"{', '.join(PRUNABLE_DTYPES)}. Give the weights as they were before they were quantized."
                )


def get_saved_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name → current parameter or persistent buffer, including every name of tied ones."""
    return {name: held for name, held in model.state_dict(keep_vars=True).items() if isinstance(held, torch.Tensor)}


def _unset(held: torch.Tensor) -> torch.Tensor:
    """Return a tensor of values that no model sets."""
    if held.is_floating_point() or held.is_complex():
        return torch.full_like(held, torch.nan, device="cpu")
    return torch.full_like(held, _largest(held), device="cpu")


def _is_unset(held: torch.Tensor | None) -> bool:
    """Whether a tensor still has such a value."""
    assert held is not None
    if held.is_floating_point() or held.is_complex():
        return bool(held.isnan().any())
    return bool((held == _largest(held)).any())


def _largest(held: torch.Tensor) -> int:
    return 1 if held.dtype == torch.bool else torch.iinfo(held.dtype).max
