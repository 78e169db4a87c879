"""The steps of a product as one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from secateur.runtime.kernels.sharing import workforce
from secateur.runtime.kernels.step import PlannedStep

__all__ = ["Product", "product_of"]

Product: TypeAlias = Callable[[int, int, int], None]
"""What takes the addresses of the bias, the activations and the result."""


def product_of(steps: Sequence[PlannedStep]) -> Product:
    """Steps one after another."""
    products = [_product_of(step) for step in steps]
    if len(products) == 1:
        return products[0]

    def all_of_them(bias: int, x: int, y: int) -> None:
        for product in products:
            product(bias, x, y)

    return all_of_them


def _product_of(step: PlannedStep) -> Product:
    if len(step.plans) == 1:
        return partial(step.run, step.plans[0])

    def shared(bias: int, x: int, y: int) -> None:
        workforce().share_out(step, bias, x, y)  # those of this process, which may have been forked since

    return shared
