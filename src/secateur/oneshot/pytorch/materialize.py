"""Values for a model on the meta device, put in from files and taken out again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from secateur._wording import format_list, suggest_name
from secateur.errors import ModelLoadError
from secateur.oneshot.pytorch.batches import REFUSALS
from secateur.oneshot.pytorch.weight_files import WeightFiles

__all__ = ["Materializer", "get_saved_state"]

TYPES = ("F64", "F32", "F16", "BF16")
"""Names that safetensors gives the types of weights that can be pruned."""


class Materializer:
    """Fills parts of a model with the values of files, in the files' types.

    Other parameters stand in the model's places meanwhile, and its own again afterwards. One that stands in several
    places is one in between too.

    Args:
        model: The model.
        files: Values of its parameters and of those buffers that it saves.

    Raises:
        ModelLoadError: The files lack a parameter, or hold it in another shape or in a type that cannot be pruned.
    """

    def __init__(self, model: nn.Module, files: WeightFiles) -> None:
        self._model = model
        self._files = files
        self._own = get_saved_state(model)  # held, so that identities stay theirs
        self._sources = {id(held): name for name, held in reversed(self._own.items()) if name in files}
        self._check()

    @contextmanager
    def filled(self, parts: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
        """While this is open, modules have their values; what lies in them does not count."""
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
        """While this is open, the buffers on the meta device that no file holds have values.

        Models of transformers make them as they do after loading.

        Raises:
            ModelLoadError: One cannot be made.
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
        """Have the innermost model around a module initialize it: its parameters are on the meta device still."""
        path = name.split(".") if name else []
        around = [self._model.get_submodule(".".join(path[:depth])) for depth in range(len(path), -1, -1)]
        makers = (maker for one in around if callable(maker := getattr(one, "_init_weights", None)))
        if (maker := next(makers, None)) is not None:
            with suppress(*REFUSALS), torch.no_grad():
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
            if name in files and held.is_floating_point() and files.types[name] not in TYPES:
                raise ModelLoadError(
                    f"{name!r} is stored as {files.types[name]} in {str(files.path)!r}; pruning needs one of "
                    f"{', '.join(TYPES)}. Give the weights as they were before they were quantized."
                )


def get_saved_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every name → parameter or saved buffer, as it is now."""
    return {name: held for name, held in model.state_dict(keep_vars=True).items() if isinstance(held, torch.Tensor)}


def _unset(held: torch.Tensor) -> torch.Tensor:
    """Numbers that nobody would set."""
    if held.is_floating_point() or held.is_complex():
        return torch.full_like(held, torch.nan, device="cpu")
    return torch.full_like(held, _largest(held), device="cpu")


def _is_unset(held: torch.Tensor | None) -> bool:
    """Whether it holds any of them."""
    assert held is not None
    if held.is_floating_point() or held.is_complex():
        return bool(held.isnan().any())
    return bool((held == _largest(held)).any())


def _largest(held: torch.Tensor) -> int:
    return 1 if held.dtype == torch.bool else torch.iinfo(held.dtype).max
