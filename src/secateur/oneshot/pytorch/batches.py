"""Calibration batches as a model takes them, checked before anything else happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from secateur._third_party import is_out_of_memory
from secateur.errors import CalibrationError, SecateurError
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.tensor_files import byte_view

__all__ = [
    "Batch",
    "calibration_mode",
    "digest",
    "explain_model_errors",
    "move_to",
    "name_failing_batch",
    "read_batches",
    "version",
]

REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model raises that cannot work with a batch."""


INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One call of the model.

    Attributes:
        number: Its place among the batches, from 0.
        args: Positional arguments.
        kwargs: Keyword arguments.
        keep: Booleans of shape (batch, tokens), ``False`` = padding; ``None``: all tokens count.
    """

    number: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    keep: torch.Tensor | None = None

    def run(self, model: nn.Module, device: torch.device | None) -> Any:
        """What the model makes of it.

        Raises:
            CalibrationError: The model raises an error.
        """
        with name_failing_batch(self.number):
            return model(*move_to(self.args, device), **move_to(self.kwargs, device))

    def first_row(self) -> Batch:
        """The first of its rows, where all tensors agree on how many there are; else all of it."""
        given = (*self.args, *self.kwargs.values())
        tensors = [one for one in given if isinstance(one, torch.Tensor)]
        if len({one.shape[:1] for one in tensors}) != 1 or len(tensors[0].shape) == 0:
            return self

        def cut(value: Any) -> Any:
            return value[:1] if isinstance(value, torch.Tensor) else value

        kwargs = {key: cut(value) for key, value in self.kwargs.items()}
        return Batch(number=self.number, args=tuple(map(cut, self.args)), kwargs=kwargs)


def read_batches(model: nn.Module, given: Iterable[Any]) -> list[Batch]:
    """The batches in the form in which they are called.

    Raises:
        CalibrationError: There is none, one is of no kind that can be called, has nothing in it or but padding, or has
            tensors that are not dense; or its tokens are not in the vocabulary.
    """
    if isinstance(given, (torch.Tensor, Mapping, str)) or not isinstance(given, Iterable):
        raise CalibrationError(
            f"calibration must be batches, such as a list of them, found one {type(given).__name__}."
        )
    batches = [_batch(number, one) for number, one in enumerate(given)]
    if not batches:
        raise CalibrationError("calibration must hold at least one batch, found none.")
    vocabulary = _vocabulary(model)
    for batch in batches:
        _check_content(batch)
        tokens = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
        if vocabulary is not None and isinstance(tokens, torch.Tensor) and tokens.dtype in INTEGERS:
            _check_tokens(batch.number, tokens, vocabulary)
    return batches


def digest(batches: Iterable[Batch]) -> str:
    """SHA-256 of all that batches hold: tensors, plain values and names."""
    found = hashlib.sha256()
    for batch in batches:
        _hash(found, (batch.args, batch.kwargs))
    return found.hexdigest()


def move_to(value: Any, device: torch.device | None) -> Any:
    """The same nest of tuples, lists and mappings, with its tensors on a device; ``None``: where they are."""
    if device is None:
        return value
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move_to(one, device) for one in value))
    if type(value) in (tuple, list):
        return type(value)(move_to(one, device) for one in value)
    if type(value) is dict:
        return {key: move_to(one, device) for key, one in value.items()}
    return value


def name_failing_batch(number: int) -> AbstractContextManager[None]:
    """Raise a `CalibrationError` with the number of the batch if the model fails with it."""
    return explain_model_errors(f"calibration batch {number}")


@contextmanager
def explain_model_errors(inputs: str) -> Iterator[None]:
    """Raise a `CalibrationError` that names the inputs if the model fails with them."""
    try:
        with allow_interrupts():
            yield
    except SecateurError:
        raise
    except REFUSALS as error:
        if is_out_of_memory(error):
            raise
        raise CalibrationError(f"The model refuses {inputs}: {type(error).__name__}: {error}") from error


def version(tensor: torch.Tensor) -> int:
    """Another number after every change in place, except for tensors made in inference mode, which count none."""
    return -1 if tensor.is_inference() else tensor._version


@contextmanager
def calibration_mode(model: nn.Module) -> Iterator[None]:
    """The model as it is used, not as it trains: no dropout, no gradients, no cache of keys and values."""
    was_training = [module for module in model.modules() if module.training]
    with ExitStack() as restored, torch.no_grad():
        for module in was_training:
            restored.callback(setattr, module, "training", True)
        for config in _configs(model):
            restored.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = False
        model.eval()
        yield


def _batch(number: int, given: Any) -> Batch:
    if isinstance(given, torch.Tensor):
        return Batch(number=number, args=(given,))
    if isinstance(given, (tuple, list)) and given and all(isinstance(one, torch.Tensor) for one in given):
        return Batch(number=number, args=tuple(given))
    if isinstance(given, Mapping) and given and all(isinstance(key, str) for key in given):
        mask = given.get("attention_mask")
        keep = None
        if isinstance(mask, torch.Tensor) and not _odd_kind(mask) and mask.ndim == 2:
            keep = mask.bool().cpu()
        return Batch(number=number, kwargs=dict(given), keep=keep)
    raise CalibrationError(
        f"calibration batch {number} must be a tensor, a tuple of tensors or a mapping of names to tensors, found "
        f"{type(given).__name__}."
    )


def _check_content(batch: Batch) -> None:
    """Raise `CalibrationError` for a batch that says nothing about a model."""
    tensors = [one for one in (*batch.args, *batch.kwargs.values()) if isinstance(one, torch.Tensor)]
    for tensor in _tensors_in((batch.args, batch.kwargs)):
        if kind := _odd_kind(tensor):
            raise CalibrationError(
                f"calibration batch {batch.number} must hold dense tensors with values, found one that is {kind}."
            )
    if tensors and batch.kwargs.get("input_ids", tensors[0]).numel() == 0:
        shape = tuple(batch.kwargs.get("input_ids", tensors[0]).shape)
        raise CalibrationError(
            f"calibration batch {batch.number} must hold at least one row and one token, found shape {shape}. Leave it "
            f"out."
        )
    if batch.keep is not None and not bool(batch.keep.any()):
        raise CalibrationError(
            f"calibration batch {batch.number} must hold at least one token, found nothing but padding: its "
            f"attention_mask is zero everywhere. Leave it out."
        )


def _hash(found: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.update(f"{tuple(value.shape)} {value.dtype}".encode())
        found.update(byte_view(value.detach().cpu().resolve_conj().resolve_neg().contiguous()))
    elif isinstance(value, Mapping):
        _hash(found, [part for item in value.items() for part in item])
    elif isinstance(value, (tuple, list)):
        found.update(f"{len(value)} parts".encode())
        for one in value:
            _hash(found, one)
    elif isinstance(value, (bool, int, float, str, bytes)) or value is None:
        found.update(f"{type(value).__name__} {value!r}".encode())
    else:
        found.update(type(value).__qualname__.encode())


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in a nest of tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from _tensors_in(one)


def _odd_kind(tensor: torch.Tensor) -> str | None:
    """What keeps a tensor's values from being read one by one; ``None``: nothing."""
    kinds = {
        "uninitialized": is_lazy(tensor),
        "nested": tensor.is_nested,
        "sparse": tensor.layout not in (torch.strided, torch.jagged),
        "quantized": tensor.is_quantized,
        "on the meta device": tensor.is_meta,
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def _vocabulary(model: nn.Module) -> int | None:
    try:
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def _check_tokens(number: int, tokens: torch.Tensor, vocabulary: int) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise CalibrationError(
            f"calibration batch {number}: token ids must lie in [0, {vocabulary}), found {low} to {high}. Is it the "
            f"model's own tokenizer?"
        )


def _configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "decoder"))]
    return [part for part in parts if hasattr(part, "use_cache")]
