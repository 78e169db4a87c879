"""Materialize parts of a model on the meta device from files, and release them again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from secateur._huggingface.pytorch import compute_buffers
from secateur._wording import format_list, suggest_name
from secateur.errors import ModelLoadError
from secateur.oneshot.pytorch.calibration.batches import MODEL_ERRORS
from secateur.oneshot.pytorch.storage.weight_files import WeightFiles

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
        self._sources = {id(tensor): name for name, tensor in reversed(self._state.items()) if name in files}
        self._check()

    @contextmanager
    def materialize(self, modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
        """Materialize the tensors of modules, not those of their submodules, within this context."""
        materialized: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for module in modules:
                registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
                for registry in registries:
                    for key, original in registry.items():
                        if original is not None:
                            stack.callback(registry.__setitem__, key, original)
                            if id(original) not in materialized:
                                materialized[id(original)] = self._load_value(original, device)
                            registry[key] = materialized[id(original)]
            yield

    @contextmanager
    def materialize_buffers(self) -> Iterator[None]:
        """Materialize the buffers on the meta device that no file contains, within this context.

        Transformers models compute them in the same way as after loading.

        Raises:
            ModelLoadError: A buffer cannot be computed.
        """
        computed: dict[str, torch.Tensor] | None = None
        with ExitStack() as stack:
            for name, module in self._model.named_modules():
                missing = {
                    key: tensor
                    for key, tensor in module._buffers.items()
                    if tensor is not None and tensor.is_meta and id(tensor) not in self._sources
                }
                for key, tensor in missing.items():
                    stack.callback(module._buffers.__setitem__, key, tensor)
                    module._buffers[key] = _create_sentinel(tensor)
                if missing:
                    self._initialize(name, module)
                if uninitialized := [key for key in missing if _has_sentinel(module._buffers[key])]:
                    computed = self._compute_buffers() if computed is None else computed
                    for key in uninitialized:
                        module._buffers[key] = self._get_buffer(f"{name}.{key}".lstrip("."), computed)
            yield

    def _load_value(self, original: torch.Tensor, device: torch.device) -> torch.Tensor:
        name = self._sources.get(id(original))
        if name is None:
            return original.to(device)
        value = self._files[name].to(device)
        return nn.Parameter(value, original.requires_grad) if isinstance(original, nn.Parameter) else value

    def _initialize(self, name: str, module: nn.Module) -> None:
        """Let the innermost enclosing model initialize a module whose parameters are still on the meta device."""
        path = name.split(".") if name else []
        enclosing = [self._model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1)]
        initializers = (init for parent in enclosing if callable(init := getattr(parent, "_init_weights", None)))
        if (initialize := next(initializers, None)) is not None:
            with suppress(*MODEL_ERRORS), torch.no_grad():
                initialize(module)

    def _compute_buffers(self) -> dict[str, torch.Tensor]:
        with suppress(*MODEL_ERRORS, ModelLoadError):
            return compute_buffers(self._model)
        return {}

    def _get_buffer(self, name: str, computed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if name not in computed or computed[name].is_meta:
            raise ModelLoadError(
                f"buffer {name!r} is on the meta device, and {str(self._files.path)!r} does not have its values. Build "
                f"the model under accelerate.init_empty_weights(include_buffers=False), which gives buffers values."
            )
        return computed[name]

    def _check(self) -> None:
        parameters, files = dict(self._model.named_parameters(remove_duplicate=False)), self._files
        if missing := [name for name, tensor in parameters.items() if id(tensor) not in self._sources]:
            raise ModelLoadError(
                f"{str(files.path)!r} lacks {format_list(map(repr, missing))} of the "
                f"model.{suggest_name(missing[0], files)} The names must be those of the model's parameters. "
                "If transformers converts the model on loading, as it does with mixtures of experts, load the whole "
                "model (leave out weights or --low-memory), or save it once with "
                "model.save_pretrained(folder, save_original_format=False) and prune that folder. "
                "A tied parameter may be missing, but accelerate.init_empty_weights unties parameters: call "
                "model.tie_weights() after it."
            )
        for name, tensor in parameters.items():
            if name in files and files.shapes[name] != tuple(tensor.shape):
                raise ModelLoadError(
                    f"{name!r} has shape {list(files.shapes[name])} in {str(files.path)!r}, and {list(tensor.shape)} "
                    f"in the model. Build the model with the configuration of the files."
                )
            if name in files and tensor.is_floating_point() and files.types[name] not in PRUNABLE_DTYPES:
                raise ModelLoadError(
                    f"{name!r} is stored as {files.types[name]} in {str(files.path)!r}; pruning needs one of "
                    f"{', '.join(PRUNABLE_DTYPES)}. Provide the weights before quantization."
                )


def get_saved_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return name → current parameter or persistent buffer, including every name of tied ones."""
    return {
        name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, torch.Tensor)
    }


def _create_sentinel(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of values that no model sets, to detect whether a buffer was initialized."""
    if tensor.is_floating_point() or tensor.is_complex():
        return torch.full_like(tensor, torch.nan, device="cpu")
    return torch.full_like(tensor, _get_max_value(tensor), device="cpu")


def _has_sentinel(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor still has such a value."""
    assert tensor is not None
    if tensor.is_floating_point() or tensor.is_complex():
        return bool(tensor.isnan().any())
    return bool((tensor == _get_max_value(tensor)).any())


def _get_max_value(tensor: torch.Tensor) -> int:
    return 1 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
