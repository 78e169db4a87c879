"""Read and check calibration batches before the run starts, and call the model with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from secateur._third_party import is_out_of_memory
from secateur.errors import CalibrationError, SecateurError
from secateur.oneshot.interrupts import allow_interrupts
from secateur.oneshot.pytorch.calibration.batch_forms import arrange_arguments, suggest_batches
from secateur.oneshot.pytorch.tensor_files import view_as_bytes

__all__ = [
    "Batch",
    "calibration_mode",
    "explain_model_errors",
    "get_version",
    "hash_batches",
    "iterate_tensors",
    "move_to",
    "name_failing_batch",
    "read_batches",
]

MODEL_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Exceptions that a model raises for a batch that it cannot process."""


INTEGERS = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One call of the model.

    Attributes:
        number: Index among the batches, from 0.
        args: Positional arguments.
        kwargs: Keyword arguments.
        keep: Booleans of shape (batch, tokens), ``False`` = padding; ``None``: all tokens count.
    """

    number: int
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    keep: torch.Tensor | None = None

    def run(self, model: nn.Module, device: torch.device | None) -> Any:
        """Call the model with this batch.

        Raises:
            CalibrationError: The model raises an error.
        """
        with explain_model_errors(
            f"calibration batch {self.number}", lambda: suggest_batches(model, self.args, self.kwargs)
        ):
            args = [dict(item) if type(item) is dict else item for item in self.args]  # a model may add items
            return model(*move_to(tuple(args), device), **move_to(self.kwargs, device))

    @property
    def named(self) -> Mapping[str, Any]:
        """The inputs by name: the only argument if it is a mapping, or else the keyword arguments."""
        return self.args[0] if self.args and isinstance(self.args[0], Mapping) else self.kwargs

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the inputs."""
        inputs = self.named.values() if self.named else self.args
        return [item for item in inputs if isinstance(item, torch.Tensor)]

    def count_rows(self) -> int | None:
        """Return the number of rows, which all tensors have in common; ``None`` if they differ."""
        lengths = {tensor.shape[:1] for tensor in self.tensors}
        return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else None

    def select_rows(self, rows: slice) -> Batch:
        """Return a batch with some of the rows of all tensors, and everything else as it is."""
        total = self.count_rows()

        def select(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows] if tensor.ndim and len(tensor) == total else tensor

        args, kwargs = _map_tensors((self.args, self.kwargs), select)
        return replace(self, args=args, kwargs=kwargs, keep=None if self.keep is None else self.keep[rows])

    def first_row(self) -> Batch:
        """Return a batch with only its first row if all tensors have the same number of rows, else the batch itself."""
        return self if self.count_rows() is None else replace(self.select_rows(slice(1)), keep=None)


def read_batches(model: nn.Module, batches: Iterable[Any]) -> list[Batch]:
    """Convert batches to calls of the model, and check them.

    Raises:
        CalibrationError: There are no batches, or one has an unsupported type, is empty, contains only padding, has
            tensors that are not dense, or has tokens outside the vocabulary.
    """
    if isinstance(batches, (torch.Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise CalibrationError(
            f"calibration must be an iterable of batches, such as a list, found a single {type(batches).__name__}. If "
            f"it is one batch, pass calibration=[batch]."
        )
    calls = [_create_batch(model, number, batch) for number, batch in enumerate(batches)]
    if not calls:
        raise CalibrationError("calibration must contain at least one batch, found none.")
    vocabulary = _find_vocabulary(model)
    padding = getattr(getattr(model, "config", None), "pad_token_id", None)
    for batch in calls:
        _check_content(batch)
        _check_padding(batch, padding)
        tokens = batch.named.get("input_ids", batch.args[0] if batch.args else None)
        if vocabulary is not None and isinstance(tokens, torch.Tensor) and tokens.dtype in INTEGERS:
            _check_tokens(batch.number, tokens, vocabulary)
    return calls


def hash_batches(batches: Iterable[Batch]) -> str:
    """Return the SHA-256 of the tensors, plain values and names in all batches."""
    digest = hashlib.sha256()
    for batch in batches:
        _update_hash(digest, (batch.args, batch.kwargs))
    return digest.hexdigest()


def move_to(value: Any, device: torch.device | None) -> Any:
    """Move the tensors in nested tuples, lists and mappings to a device; ``None``: leave them where they are."""
    return value if device is None else _map_tensors(value, lambda tensor: tensor.to(device))


def _map_tensors(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_map_tensors(item, function) for item in value))
    if type(value) in (tuple, list):
        return type(value)(_map_tensors(item, function) for item in value)
    if type(value) is dict:
        return {key: _map_tensors(item, function) for key, item in value.items()}
    return value


def name_failing_batch(number: int) -> AbstractContextManager[None]:
    """Raise a `CalibrationError` with the number of the batch if the model fails with it."""
    return explain_model_errors(f"calibration batch {number}")


@contextmanager
def explain_model_errors(inputs: str, suggest: Callable[[], str] = str) -> Iterator[None]:
    """Raise a `CalibrationError` that names the inputs if the model fails with them.

    Args:
        inputs: The inputs, as words in the error.
        suggest: Returns a sentence for the end of the error.
    """
    try:
        with allow_interrupts():
            yield
    except SecateurError:
        raise
    except MODEL_ERRORS as error:
        if is_out_of_memory(error):
            raise
        message = f"The model fails on {inputs}: {type(error).__name__}: {error}"
        if advice := suggest():
            message = message.rstrip(".") + "." + advice
        raise CalibrationError(message) from error


def get_version(tensor: torch.Tensor) -> int:
    """Return a number that changes with every in-place update, or -1 for tensors created in inference mode."""
    return -1 if tensor.is_inference() else tensor._version


@contextmanager
def calibration_mode(model: nn.Module) -> Iterator[None]:
    """Run the model in evaluation mode, without gradients and without a key-value cache."""
    was_training = [module for module in model.modules() if module.training]
    with ExitStack() as cleanup, torch.no_grad():
        for module in was_training:
            cleanup.callback(setattr, module, "training", True)
        for config in _find_configs(model):
            cleanup.callback(setattr, config, "use_cache", config.use_cache)
            config.use_cache = False
        model.eval()
        yield


def _create_batch(model: nn.Module, number: int, value: Any) -> Batch:
    arguments = arrange_arguments(model, value)
    if arguments is None:
        kind = type(value).__name__
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
        kinds = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
        raise CalibrationError(
            f"calibration batch {number} must be a tensor, a tuple of tensors or a mapping of names to tensors, found "
            f"{kind}{f' of {kinds}' if kinds else ''}."
        )
    args, kwargs = arguments
    named = args[0] if args and isinstance(args[0], Mapping) else kwargs
    _refuse_lists(number, named)
    mask, keep = named.get("attention_mask"), None
    if isinstance(mask, torch.Tensor) and not _explain_unsupported(mask) and mask.ndim == 2:
        keep = mask.bool().cpu()
    return Batch(number=number, args=args, kwargs=kwargs, keep=keep)


def _refuse_lists(number: int, named: Mapping[str, Any]) -> None:
    """Raise `CalibrationError` for the output of a tokenizer without ``return_tensors``."""
    for key in ("input_ids", "pixel_values", "input_values", "input_features"):
        if isinstance(named.get(key), list):
            raise CalibrationError(
                f"calibration batch {number}: {key!r} must be a tensor, found a list. Call the tokenizer or processor "
                f"with return_tensors='pt', and with padding=True for several texts."
            )


def _check_content(batch: Batch) -> None:
    """Raise `CalibrationError` for a batch without usable content."""
    for tensor in iterate_tensors((batch.args, batch.kwargs)):
        if kind := _explain_unsupported(tensor):
            raise CalibrationError(
                f"calibration batch {batch.number} must contain dense tensors with values, found a tensor "
                f"that is {kind}."
            )
    first = batch.named.get("input_ids", next(iter(batch.tensors), None))
    if isinstance(first, torch.Tensor) and first.numel() == 0:
        shape = tuple(first.shape)
        raise CalibrationError(
            f"calibration batch {batch.number} must contain at least one row and one token, found shape {shape}. "
            f"Remove it."
        )
    if batch.keep is not None and not bool(batch.keep.any()):
        raise CalibrationError(
            f"calibration batch {batch.number} must contain at least one token, found only padding: its "
            f"attention_mask is zero everywhere. Remove it."
        )


def _check_padding(batch: Batch, padding: Any) -> None:
    """Raise `CalibrationError` if all tokens that count are the padding token, as with an inverted mask."""
    tokens = batch.named.get("input_ids")
    if batch.keep is None or not isinstance(padding, int) or not isinstance(tokens, torch.Tensor):
        return
    if tokens.shape != batch.keep.shape or not bool((tokens.cpu()[batch.keep] == padding).all()):
        return
    advice = "Remove the batch."
    if not bool((tokens.cpu()[~batch.keep] == padding).all()):
        advice = "Invert the mask: it must be 1 for tokens and 0 for padding."
    raise CalibrationError(
        f"calibration batch {batch.number} must contain at least one token, found only padding: its attention_mask "
        f"keeps nothing but the padding token {padding}. {advice}"
    )


def _update_hash(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{tuple(value.shape)} {value.dtype}".encode())
        digest.update(view_as_bytes(value.detach().cpu().resolve_conj().resolve_neg().contiguous()))
    elif isinstance(value, Mapping):
        _update_hash(digest, [part for item in value.items() for part in item])
    elif isinstance(value, (tuple, list)):
        digest.update(f"{len(value)} parts".encode())
        for item in value:
            _update_hash(digest, item)
    elif isinstance(value, (bool, int, float, str, bytes)) or value is None:
        digest.update(f"{type(value).__name__} {value!r}".encode())
    else:
        digest.update(type(value).__qualname__.encode())


def iterate_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from iterate_tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from iterate_tensors(item)


def _explain_unsupported(tensor: torch.Tensor) -> str | None:
    """Return why the values of a tensor cannot be read individually, or ``None`` if they can."""
    kinds = {
        "uninitialized": is_lazy(tensor),
        "nested": tensor.is_nested,
        "sparse": tensor.layout not in (torch.strided, torch.jagged),
        "quantized": tensor.is_quantized,
        "on the meta device": tensor.is_meta,
    }
    return next((kind for kind, applies in kinds.items() if applies), None)


def _find_vocabulary(model: nn.Module) -> int | None:
    try:
        embedding = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError:
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def _check_tokens(number: int, tokens: torch.Tensor, vocabulary: int) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        raise CalibrationError(
            f"calibration batch {number}: token ids must be in [0, {vocabulary}), found {low} to {high}. Use the "
            f"tokenizer of this model."
        )


def _find_configs(model: nn.Module) -> list[Any]:
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, name, None) for name in ("text_config", "decoder"))]
    return [part for part in parts if hasattr(part, "use_cache")]
