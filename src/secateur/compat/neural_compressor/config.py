"""Define `WeightPruningConfig`, with the keys of Intel Neural Compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secateur.compat.neural_compressor._distillation_config import (
    DistillationConfig,
    IntermediateLayersKnowledgeDistillationLossConfig,
    KnowledgeDistillationLossConfig,
    SelfKnowledgeDistillationLossConfig,
)
from secateur.compat.neural_compressor._elements import complete_element, warn_of_unknown_keys
from secateur.compat.neural_compressor._hpo_config import HPOConfig
from secateur.compat.neural_compressor._quantization_config import QuantizationAwareTrainingConfig
from secateur.compat.neural_compressor._removed import build_getattr
from secateur.compat.neural_compressor._translation import translate_element, warn_of_high_target
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.config import PruningConfig
from secateur.errors import ConfigError
from secateur.frameworks import import_leaf

__all__ = [
    "DistillationConfig",
    "HPOConfig",
    "IntermediateLayersKnowledgeDistillationLossConfig",
    "KnowledgeDistillationLossConfig",
    "QuantizationAwareTrainingConfig",
    "SelfKnowledgeDistillationLossConfig",
    "WeightPruningConfig",
]

__getattr__ = build_getattr(__name__)


class WeightPruningConfig:
    """The configuration of a pruning run, with the keys of Intel Neural Compressor.

    The other keys are the defaults of the elements of `pruning_configs`. Each element prunes the layers that match its
    ``op_names`` to its own target; without ``op_names``, all layers. Unknown keys are ignored with a warning.

    ``N:M`` counts the *removed* weights, as in Intel Neural Compressor: ``"1:4"`` removes one of four.

    Args:
        pruning_configs: Dictionaries with the keys below; by default one element for all layers.
        target_sparsity: Share of units to prune, in [0, 1]; at most ``max_sparsity_ratio_per_op`` counts.
        pruning_type: A criterion, optionally with the suffix ``"_progressive"``, ``"pattern_lock"``, or a method that
            prunes with calibration data, such as ``"sparse_gpt"``.
        pattern: Such as ``"4x1"``, ``"channelx1"`` or ``"2:4"``; what precedes the last underscore is ignored.
        op_names: Regular expressions that match anywhere in a layer's name.
        excluded_op_names: Regular expressions of the layers to leave dense. Those of an element replace these.
        backend: Has no effect.
        start_step: Optimizer steps before the first update.
        end_step: Optimizer steps after which there are no more updates.
        pruning_scope: ``"global"`` or ``"local"``.
        pruning_frequency: Steps between two updates.
        min_sparsity_ratio_per_op: Minimum sparsity of each layer.
        max_sparsity_ratio_per_op: Maximum sparsity of each layer.
        sparsity_decay_type: ``"exp"``, ``"cos"``, ``"cube"`` or ``"linear"``.
        pruning_op_types: Substrings of the class names of the layers to prune.
        low_memory_usage: Whether scores are stored in bfloat16.
        framework: ``"pytorch"`` or ``"keras"``; the model decides.
        settings: ``resume_from_pruned_checkpoint``, ``lock_init_sparsity`` (both keep the units that are zero at the
            start), ``criterion_reduce_type``, ``reg_type``, ``parameters`` (``{"reg_coeff": 0.1}``).

    Attributes:
        pruning_configs: The elements, as passed.
        weight_compression: The common keys, which can be read and set as items or attributes.

    Raises:
        ConfigError: A value is invalid or out of bounds.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> config = WeightPruningConfig([{"pattern": "1:4"}], 0.25, start_step=1, end_step=10)
        >>> config.for_model(model).pattern
        '3:4'
    """

    def __init__(
        self,
        pruning_configs: Sequence[Mapping[str, Any]] | None = None,
        target_sparsity: float | None = None,
        pruning_type: str | None = None,
        pattern: str | None = None,
        op_names: Sequence[str] | None = None,
        excluded_op_names: Sequence[str] | None = None,
        backend: str | None = None,
        start_step: float | None = None,
        end_step: float | None = None,
        pruning_scope: str | None = None,
        pruning_frequency: int | None = None,
        min_sparsity_ratio_per_op: float | None = None,
        max_sparsity_ratio_per_op: float | None = None,
        sparsity_decay_type: str | None = None,
        pruning_op_types: Sequence[str] | None = None,
        low_memory_usage: bool | None = None,
        *,
        framework: str = "pytorch",
        **settings: Any,
    ) -> None:
        elements = [{}] if pruning_configs is None else pruning_configs
        if isinstance(elements, Mapping | str) or not all(isinstance(element, Mapping) for element in elements):
            raise ConfigError(f"pruning_configs must be a list of dictionaries, found {pruning_configs!r}.")
        self.pruning_configs = [DotDict(element) for element in elements]
        self.backend, self.framework = backend, framework
        named = {
            "target_sparsity": target_sparsity,
            "pruning_type": pruning_type,
            "pattern": pattern,
            "op_names": op_names,
            "excluded_op_names": excluded_op_names,
            "start_step": start_step,
            "end_step": end_step,
            "pruning_scope": pruning_scope,
            "pruning_frequency": pruning_frequency,
            "min_sparsity_ratio_per_op": min_sparsity_ratio_per_op,
            "max_sparsity_ratio_per_op": max_sparsity_ratio_per_op,
            "sparsity_decay_type": sparsity_decay_type,
            "pruning_op_types": pruning_op_types,
            "low_memory_usage": low_memory_usage,
        }
        self._given = {key: value for key, value in {**named, **settings}.items() if value is not None}
        self.weight_compression = complete_element({}, self._given)
        warn_of_unknown_keys(settings, "WeightPruningConfig")
        for index, element in enumerate(self.pruning_configs):
            warn_of_unknown_keys(element, f"pruning_configs[{index}]")
        for index, element in enumerate(self.complete_elements()):
            try:
                warn_of_high_target(element, translate_element(element))
            except ConfigError as error:
                where = f"pruning_configs[{index}]" if self.pruning_configs and self.pruning_configs[index] else ""
                raise type(error)(f"{where or 'WeightPruningConfig'}: {error}") from error

    def complete_elements(self) -> list[DotDict]:
        """Return the elements with all keys, from `weight_compression` where they lack one.

        Examples:
            >>> config = WeightPruningConfig([{}, {"pattern": "2:4"}], target_sparsity=0.5)
            >>> [element.pattern for element in config.complete_elements()]
            ['4x1', '2:4']
        """
        elements = []
        for index, element in enumerate(self.pruning_configs or [{}]):
            try:
                elements.append(complete_element(element, self.weight_compression))
            except ConfigError as error:
                raise ConfigError(f"pruning_configs[{index}]: {error}") from error
        return elements

    def for_model(self, model: Any) -> PruningConfig:
        """Convert a configuration with one element to a `PruningConfig` for a model.

        Raises:
            ConfigError: There are several elements, and therefore several configurations, or no layer matches.
        """
        configs = self.to_configs(model)
        if len(configs) != 1:
            raise ConfigError(
                f"for_model needs one element in pruning_configs that matches layers, found {len(configs)}. Call "
                f"to_configs(model) for all."
            )
        return configs[0]

    def to_configs(self, model: Any) -> list[PruningConfig]:
        """Convert each element that matches layers of a model to a `PruningConfig`."""
        leaf = import_leaf("secateur.compat.neural_compressor._runs", model)
        return [part.config for part in leaf.assign_elements(self, model) if part.modules]

    def __repr__(self) -> str:
        settings = "".join(f", {key}={value!r}" for key, value in self._given.items())
        return f"WeightPruningConfig({list(map(dict, self.pruning_configs))!r}{settings})"
