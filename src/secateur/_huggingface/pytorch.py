"""Build transformers models from configurations, without downloads and without running code from model folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import get_ident
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from secateur._model_limits import LIMITS_WITHOUT_WEIGHTS, ModelLimits
from secateur._third_party import translate_errors
from secateur.errors import ModelLoadError

__all__ = [
    "build_empty_model",
    "compute_buffers",
    "explain_failures",
    "find_model_class",
    "get_source",
    "import_transformers_quietly",
    "is_pretrained",
    "limit_modules",
    "load_config",
]

LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every transformers call that reads files."""


def import_transformers_quietly() -> ModuleType:
    """Import transformers in offline mode, without progress bars and warnings."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the package is imported
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    module: ModuleType = transformers
    return module


def explain_failures(path: Path, task: str = "build a model", hint: str = "") -> AbstractContextManager[None]:
    """Raise `ModelLoadError` for any exception of transformers.

    Args:
        path: The folder or file that the model is read from.
        task: The task that transformers failed to do.
        hint: How to fix the failure, as a sentence.
    """
    return translate_errors(ModelLoadError, f"transformers cannot {task} from {str(path)!r}", hint)


def get_source(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder to pass to ``from_pretrained``, and the other arguments.

    Args:
        path: A folder, or a GGUF file.
    """
    return (path.parent, LOCAL_ONLY | {"gguf_file": path.name}) if path.is_file() else (path, LOCAL_ONLY)


def load_config(path: Path) -> Any:
    """Load the configuration in a folder or a GGUF file."""
    import transformers

    folder, options = get_source(path)
    return transformers.AutoConfig.from_pretrained(folder, **options)


def find_model_class(config: Any, default: str | None = None) -> Any:
    """Find the transformers model class that a configuration names; ``None``: there is no such class.

    Args:
        config: The configuration.
        default: The name of the class if the configuration names none.
    """
    import transformers

    for name in config.architectures or ([] if default is None else [default]):
        model_class = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
            return model_class
    return None


def build_empty_model(model_class: Any, config: Any, limits: ModelLimits, path: Path) -> nn.Module:
    """Build a model with uninitialized parameters, in the data type of its configuration.

    Args:
        model_class: A model class, or an auto class such as ``AutoModel``.
        config: The configuration.
        limits: The largest model that may be built.
        path: The file or folder with the configuration, for messages.

    Raises:
        ArtifactError: The model exceeds its limits.
    """
    dtype = getattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", None) or torch.float32
    if isinstance(dtype, str):  # after save_pretrained
        dtype = getattr(torch, dtype)
    build = getattr(model_class, "from_config", model_class)
    with limit_modules(limits, path), _SkipInitialization(), _set_default_dtype(dtype):
        model: nn.Module = build(config)
    return model


def is_pretrained(model: nn.Module) -> bool:
    """Whether a model is a transformers model."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(model, transformers.PreTrainedModel)


def compute_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Compute the buffers of a transformers model on the meta device, by building it again without its parameters.

    Before transformers 5, the constructor computes buffers such as the frequencies of rotary embeddings.

    Returns:
        Name → buffer; nothing for other models.
    """
    if not is_pretrained(model):
        return {}
    thread = get_ident()

    def move_to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:  # noqa: ARG001
        if parameter is None or parameter.is_meta or get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    replaces: Any = move_to_meta  # torch annotates hooks without a result
    with hooks.register_module_parameter_registration_hook(replaces):
        built = build_empty_model(type(model), model.config, LIMITS_WITHOUT_WEIGHTS, Path())
    return dict(built.named_buffers(remove_duplicate=False))


@contextmanager
def limit_modules(limits: ModelLimits, path: Path) -> Iterator[None]:
    """Stop building a model in this thread as soon as it exceeds its limits.

    Args:
        limits: The largest model that may be built.
        path: The file or folder that describes it, for messages.

    Raises:
        ArtifactError: The model exceeds its limits.
    """
    counter = _TensorCounter(limits, path)
    handles = [
        hooks.register_module_parameter_registration_hook(counter),
        hooks.register_module_buffer_registration_hook(counter),
        hooks.register_module_module_registration_hook(counter),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _TensorCounter:
    """Counts modules and tensors as they are registered; a tensor that replaces another replaces its size."""

    def __init__(self, limits: ModelLimits, path: Path) -> None:
        self.limits, self.path = limits, path
        self.thread = get_ident()
        self.tensors = self.numbers = 0
        self.sizes: dict[tuple[int, str], int] = {}

    def __call__(self, module: nn.Module, name: str, value: Any) -> None:
        if value is None or get_ident() != self.thread:
            return
        self.tensors += 1
        if isinstance(value, torch.Tensor) and not is_lazy(value):
            key, size = (id(module), name), value.numel()
            self.numbers += size - self.sizes.get(key, 0)
            self.sizes[key] = size
        self.limits.check(self.tensors, self.numbers, self.path)


class _SkipInitialization(TorchFunctionMode):
    """Skips weight initialization, because the weights are loaded afterwards."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


@contextmanager
def _set_default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
