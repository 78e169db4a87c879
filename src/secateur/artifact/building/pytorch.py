"""Limits on torch modules while they are built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy

from secateur.artifact.building import Limits

__all__ = ["limit_modules"]


@contextmanager
def limit_modules(limits: Limits, path: Path) -> Iterator[None]:
    """Count what this thread's modules register, and stop a model that grows beyond its limits.

    Args:
        limits: What it may have.
        path: Where its description is, for the message.

    Raises:
        ArtifactError: It has more.
    """
    counter = _Counter(limits, path)
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


class _Counter:
    """Counts tensors and modules; what takes a name again counts in place of what had it."""

    def __init__(self, limits: Limits, path: Path) -> None:
        self.limits, self.path = limits, path
        self.thread = get_ident()
        self.tensors = self.numbers = 0
        self.sizes: dict[tuple[int, str], int] = {}

    def __call__(self, module: nn.Module, name: str, held: Any) -> None:
        if held is None or get_ident() != self.thread:
            return
        self.tensors += 1
        if isinstance(held, torch.Tensor) and not is_lazy(held):
            place, size = (id(module), name), held.numel()
            self.numbers += size - self.sizes.get(place, 0)
            self.sizes[place] = size
        self.limits.check(self.tensors, self.numbers, self.path)
