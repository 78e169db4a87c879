"""What is to be pruned, in the words of Intel Neural Compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.compat._layer_settings import check_keys
from secateur.compat.neural_compressor.translation import get_solver, translate_settings
from secateur.config import PruningConfig
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf

__all__ = ["Entry", "WeightPruningConfig"]

FOR_ALL: dict[str, Any] = {
    "target_sparsity": 0.9,
    "pruning_type": "snip_momentum",
    "pattern": "4x1",
    "op_names": (),
    "excluded_op_names": (),
    "start_step": 0,
    "end_step": 0,
    "pruning_scope": "global",
    "pruning_frequency": 1,
    "min_sparsity_ratio_per_op": 0.0,
    "max_sparsity_ratio_per_op": 0.98,
    "sparsity_decay_type": "exp",
    "pruning_op_types": ("Conv", "Linear"),
    "low_memory_usage": False,
    "criterion_type": None,
    "resume_from_pruned_checkpoint": False,
    "reg_type": None,
    "reg_coeff": None,
    "criterion_reduce_type": "mean",
    "parameters": None,
}
"""Key → its default, as Intel Neural Compressor documented them."""

BACKENDS = (None, "default")
"""Values of ``backend`` that mean torch itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One element of ``pruning_configs``, filled up with what holds for all.

    Attributes:
        where: What errors call it.
        op_names: Expressions to be found in the names of its layers; empty: all that no other entry names.
        excluded_op_names: Expressions to be found in the names of layers that are not its own.
        pruning_op_types: Parts of the class names of its layers.
        settings: Keys of `PruningConfig`.
        solver: Solver that prunes once; ``None``: pruned while the model trains.
    """

    where: str
    op_names: tuple[str, ...]
    excluded_op_names: tuple[str, ...]
    pruning_op_types: tuple[str, ...]
    settings: Mapping[str, Any]
    solver: str | None


class WeightPruningConfig:
    """What is to be pruned and how.

    Keys outside of `pruning_configs` hold wherever an element of it says nothing else. Each element prunes the layers
    that its ``op_names`` find and reaches its own target; one without ``op_names`` has the layers that no other names.

    ``N:M`` counts the weights that are *removed*, as Intel Neural Compressor did: ``"1:4"`` removes one of four.

    Args:
        pruning_configs: Dictionaries with the keys below; left out: one element, for all layers.
        settings: ``target_sparsity`` (0.9, or all that an N:M pattern can), ``pruning_type`` (``"snip_momentum"``),
            ``pattern`` (``"4x1"``), ``op_names`` and ``excluded_op_names`` (regular expressions, found anywhere in a
            layer's name), ``start_step`` and ``end_step`` (0; counted in steps of the optimizer), ``pruning_scope``
            (``"global"``), ``pruning_frequency`` (1), ``min_sparsity_ratio_per_op`` (0), ``max_sparsity_ratio_per_op``
            (0.98), ``sparsity_decay_type`` (``"exp"``), ``pruning_op_types`` (``["Conv", "Linear"]``),
            ``low_memory_usage`` (``False``; scores in bfloat16), ``resume_from_pruned_checkpoint`` (``False``),
            ``reg_type``, ``criterion_reduce_type`` (``"mean"``), ``parameters`` (``{"reg_coeff": 0.0}``); outside of
            `pruning_configs` also ``backend``.

    Attributes:
        pruning_configs: The elements as they were given.
        entries: The elements, filled up and in the words of this package.

    Raises:
        ConfigError: A key is unknown, a value is out of bounds, or it asks for what has no counterpart here.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> WeightPruningConfig([{"pattern": "1:4"}], start_step=1, end_step=10).for_model(model).pattern
        '3:4'
    """

    def __init__(self, pruning_configs: Sequence[Mapping[str, Any]] | None = None, **settings: Any) -> None:
        given = ({},) if pruning_configs is None else pruning_configs
        if isinstance(given, Mapping | str) or not all(isinstance(one, Mapping) for one in given):
            raise ConfigError(f"pruning_configs must be a list of dictionaries, found {pruning_configs!r}.")
        if settings.pop("backend", None) not in BACKENDS:
            raise ConfigError("backend must be left out: only torch itself is served. For Keras see secateur.keras.")
        check_keys(settings, tuple(FOR_ALL), "WeightPruningConfig")
        self.pruning_configs = tuple(dict(one) for one in given) or ({},)
        self._for_all = _drop_none(settings)
        several = len(self.pruning_configs) > 1
        self.entries = tuple(
            self._entry(one, f"pruning_configs[{index}]" if several or one else "WeightPruningConfig")
            for index, one in enumerate(self.pruning_configs)
        )

    @property
    def weight_compression(self) -> dict[str, Any]:
        """The keys that hold for all layers, with their defaults."""
        return {**FOR_ALL, **self._for_all}

    def for_model(self, model: Any) -> PruningConfig:
        """The same in the words of this package, for the layers of a torch model.

        Raises:
            ConfigError: An expression or a type finds no layer, or two elements mean the same layer.
        """
        if detect_framework(model) != "pytorch":
            raise UnsupportedModelError("Only torch models are served here. For Keras models see secateur.keras.")
        own: PruningConfig = import_leaf("secateur.compat.neural_compressor", model).build_pruning_config(self, model)[
            0
        ]
        return own

    def __repr__(self) -> str:
        given = "".join(f", {key}={value!r}" for key, value in self._for_all.items())
        return f"WeightPruningConfig({list(self.pruning_configs)!r}{given})"

    def _entry(self, one: Mapping[str, Any], where: str) -> Entry:
        check_keys(one, tuple(FOR_ALL), where)
        own = _drop_none(one)
        given = {**self._for_all, **own}
        values = {**FOR_ALL, **given}
        try:
            settings = translate_settings(values, given)
            PruningConfig(**settings)
        except ConfigError as error:
            raise type(error)(f"{where}: {error}") from error
        excluded = (*_to_tuple(self._for_all.get("excluded_op_names")), *_to_tuple(own.get("excluded_op_names")))
        return Entry(
            where=where,
            op_names=_to_tuple(values["op_names"]),
            excluded_op_names=tuple(dict.fromkeys(excluded)),
            pruning_op_types=_to_tuple(values["pruning_op_types"]),
            settings=settings,
            solver=get_solver(values["pruning_type"]),
        )


def _drop_none(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given; ``None`` counts as not given."""
    return {key: value for key, value in given.items() if value is not None}


def _to_tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
