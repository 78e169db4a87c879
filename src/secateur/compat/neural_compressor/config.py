"""Define `WeightPruningConfig`, with the keys of Intel Neural Compressor."""

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

DEFAULTS: dict[str, Any] = {
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
"""Key → default value in the documentation of Intel Neural Compressor."""

BACKENDS = (None, "default")
"""Values of ``backend`` that select plain torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One element of ``pruning_configs``, completed with the common keys.

    Attributes:
        where: Location of the element, for error messages.
        op_names: Expressions that match anywhere in the names of its layers; empty: all layers that belong to no other
            entry.
        excluded_op_names: Expressions that match anywhere in the names of excluded layers.
        pruning_op_types: Substrings of the class names of its layers.
        settings: Keys of `PruningConfig`.
        solver: Solver for one-shot pruning; ``None`` for pruning during training.
    """

    where: str
    op_names: tuple[str, ...]
    excluded_op_names: tuple[str, ...]
    pruning_op_types: tuple[str, ...]
    settings: Mapping[str, Any]
    solver: str | None


class WeightPruningConfig:
    """The configuration of a pruning run, with the keys of Intel Neural Compressor.

    Keys outside of `pruning_configs` are the defaults of its elements. Each element prunes the layers that match its
    ``op_names`` to its own target; an element without ``op_names`` prunes the layers that match no other element.

    ``N:M`` counts the *removed* weights, as in Intel Neural Compressor: ``"1:4"`` removes one of four.

    Args:
        pruning_configs: Dictionaries with the keys below; by default one element for all layers.
        settings: ``target_sparsity`` (0.9, or the maximum of an N:M pattern), ``pruning_type`` (``"snip_momentum"``),
            ``pattern`` (``"4x1"``), ``op_names`` and ``excluded_op_names`` (regular expressions that match anywhere in
            a layer's name), ``start_step`` and ``end_step`` (0; in optimizer steps), ``pruning_scope``
            (``"global"``), ``pruning_frequency`` (1), ``min_sparsity_ratio_per_op`` (0), ``max_sparsity_ratio_per_op``
            (0.98), ``sparsity_decay_type`` (``"exp"``), ``pruning_op_types`` (``["Conv", "Linear"]``),
            ``low_memory_usage`` (``False``; scores in bfloat16), ``resume_from_pruned_checkpoint`` (``False``),
            ``reg_type``, ``criterion_reduce_type`` (``"mean"``), ``parameters`` (``{"reg_coeff": 0.0}``); outside of
            `pruning_configs` also ``backend``.

    Attributes:
        pruning_configs: The elements, as passed.
        entries: The elements with all keys, translated to those of `PruningConfig`.

    Raises:
        ConfigError: A key is unknown, a value is out of bounds, or a setting has no counterpart.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> config = WeightPruningConfig([{"pattern": "1:4"}], start_step=1, end_step=10)
        >>> config.for_model(model).pattern
        '3:4'
    """

    def __init__(self, pruning_configs: Sequence[Mapping[str, Any]] | None = None, **settings: Any) -> None:
        elements = ({},) if pruning_configs is None else pruning_configs
        if isinstance(elements, Mapping | str) or not all(isinstance(element, Mapping) for element in elements):
            raise ConfigError(f"pruning_configs must be a list of dictionaries, found {pruning_configs!r}.")
        if settings.pop("backend", None) not in BACKENDS:
            raise ConfigError(
                "backend must be 'default' or left out: only torch is supported. For Keras see secateur.keras."
            )
        check_keys(settings, tuple(DEFAULTS), "WeightPruningConfig")
        self.pruning_configs = tuple(dict(element) for element in elements) or ({},)
        self._common_settings = _drop_none(settings)
        has_several = len(self.pruning_configs) > 1
        self.entries = tuple(
            self._make_entry(element, f"pruning_configs[{index}]" if has_several or element else "WeightPruningConfig")
            for index, element in enumerate(self.pruning_configs)
        )

    @property
    def weight_compression(self) -> dict[str, Any]:
        """The common keys, with their defaults."""
        return {**DEFAULTS, **self._common_settings}

    def for_model(self, model: Any) -> PruningConfig:
        """Convert the configuration to a `PruningConfig` for a torch model.

        Raises:
            ConfigError: An expression or a type matches no layer, or two elements match the same layer.
        """
        if detect_framework(model) != "pytorch":
            raise UnsupportedModelError("The model must be a torch module. For Keras models see secateur.keras.")
        leaf = import_leaf("secateur.compat.neural_compressor", model)
        config: PruningConfig = leaf.build_pruning_config(self, model)[0]
        return config

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self._common_settings.items())
        return f"WeightPruningConfig({list(self.pruning_configs)!r}{settings})"

    def _make_entry(self, element: Mapping[str, Any], where: str) -> Entry:
        check_keys(element, tuple(DEFAULTS), where)
        own_settings = _drop_none(element)
        given = {**self._common_settings, **own_settings}
        values = {**DEFAULTS, **given}
        try:
            settings = translate_settings(values, given)
            PruningConfig(**settings)
        except ConfigError as error:
            raise type(error)(f"{where}: {error}") from error
        excluded = (
            *_to_tuple(self._common_settings.get("excluded_op_names")),
            *_to_tuple(own_settings.get("excluded_op_names")),
        )
        return Entry(
            where=where,
            op_names=_to_tuple(values["op_names"]),
            excluded_op_names=tuple(dict.fromkeys(excluded)),
            pruning_op_types=_to_tuple(values["pruning_op_types"]),
            settings=settings,
            solver=get_solver(values["pruning_type"]),
        )


def _drop_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Drop keys whose value is ``None``."""
    return {key: value for key, value in settings.items() if value is not None}


def _to_tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
