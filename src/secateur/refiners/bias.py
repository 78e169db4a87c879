"""Bias compensation: let the bias of a layer replace the mean of what its inputs lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from secateur.refiners.base import UnitRefiner, register_refiner
from secateur.solvers.ridge import shift_bias
from secateur.solvers.unit_problem import ConsumerUpdate, UnitConsumer

__all__ = ["BiasCompensation"]


@register_refiner("bias")
@dataclass(frozen=True, kw_only=True)
class BiasCompensation(UnitRefiner):
    """Add ``W_P μ_P`` to the bias, the mean contribution of the removed units P to the outputs.

    If kept weights were changed too, it adds ``(W − W') μ``, so that the mean of each output always stays the same.
    Layers without a bias stay as they are: none is added, because artifacts and other tools load the model without.

    Source:
        An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", arXiv:2312.11983,
        section 3.3.

    Examples:
        >>> import torch
        >>> from secateur.solvers import ConsumerUpdate, UnitConsumer
        >>> inputs = torch.tensor([[1.0, 4.0], [2.0, 6.0]])
        >>> consumer = UnitConsumer(
        ...     name="down",
        ...     weight=torch.tensor([[1.0, 2.0]]),
        ...     unit_of=torch.arange(2),
        ...     norms=inputs.norm(dim=0),
        ...     means=inputs.mean(dim=0),
        ...     rows=2,
        ...     has_bias=True,
        ... )
        >>> keep = torch.tensor([True, False])
        >>> update = ConsumerUpdate(weight=consumer.weight * keep)
        >>> BiasCompensation().refine_consumer(consumer, keep, update).bias_change
        tensor([10.])
    """

    unit_needs: ClassVar[Literal["norms", "gram"]] = "norms"

    def refine_consumer(self, consumer: UnitConsumer, keep_U: torch.Tensor, update: ConsumerUpdate) -> ConsumerUpdate:
        """See `UnitRefiner.refine_consumer`."""
        del keep_U
        return replace(update, bias_change=shift_bias(consumer, update.weight))
