"""What an optimizer has to write down so that it can go on without the layers that it was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import keras
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from secateur.config import PruningConfig
from secateur.errors import ConfigError, StateError
from secateur.patterns import BasePattern, WeightView, get_pattern
from secateur.patterns.keras import BoundKernel, kernel
from secateur.planning import Plan

__all__ = ["Record"]


class _KernelRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    index: NonNegativeInt
    view: WeightView


class _PatternRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    config: PruningConfig
    kernels: dict[str, _KernelRecord]


class Record(BaseModel):
    """Which kernels are pruned and how, in plain values.

    Attributes:
        patterns: The kernels of each pattern, by layer name, with their place among the model's trainable variables.
        dense: Layers left dense → why.
        model_weights: Weights of the whole model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    patterns: tuple[_PatternRecord, ...]
    dense: dict[str, str]
    model_weights: NonNegativeInt

    @classmethod
    def of(cls, plan: Plan, model: keras.Model) -> Self:
        """What there is to write down of a plan for a model."""
        places = {id(variable): index for index, variable in enumerate(model.trainable_variables)}
        patterns = [
            {
                "config": pattern.config,
                "kernels": {
                    name: {"index": places[id(kernel(pattern.modules[name]))], "view": view}
                    for name, view in pattern.views.items()
                },
            }
            for pattern in plan.patterns
            if pattern.views
        ]
        return cls.model_validate({"patterns": patterns, "dense": plan.dense, "model_weights": model.count_params()})

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read back what `to_dict` returned.

        Raises:
            StateError: It did not return that.
        """
        try:
            return cls.model_validate(values)
        except (ConfigError, ValidationError) as error:
            raise StateError(f"The saved description of a pruning run is damaged: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Lists, dicts, numbers and strings.

        Raises:
            ConfigError: The schedule is a function without a registered name.
        """
        configs = [pattern.config.to_dict() for pattern in self.patterns]
        values = self.model_dump(mode="json", exclude={"patterns": {"__all__": {"config"}}})
        patterns = [own | {"config": config} for own, config in zip(values["patterns"], configs, strict=True)]
        return values | {"patterns": patterns}

    def bind(self, variables: Sequence[keras.Variable]) -> tuple[BasePattern, ...]:
        """The patterns, bound to the kernels among a model's trainable variables.

        Raises:
            StateError: These are the variables of another model.
        """
        return tuple(
            get_pattern(
                pattern.config,
                {name: _bound(name, own, variables) for name, own in pattern.kernels.items()},
                "keras",
            )
            for pattern in self.patterns
        )


def _bound(name: str, own: _KernelRecord, variables: Sequence[keras.Variable]) -> BoundKernel:
    found = variables[own.index] if own.index < len(variables) else None
    if found is None or tuple(found.shape) != own.view.shape:
        shape = "no such variable" if found is None else f"shape {tuple(found.shape)}"
        raise StateError(
            f"The run was saved with another model: layer {name!r} had a kernel of shape {own.view.shape} as trainable "
            f"variable {own.index}, found {shape}. Load it into the model it was saved with."
        )
    return BoundKernel(found, own.view)
