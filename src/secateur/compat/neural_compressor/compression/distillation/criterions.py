"""Create the distillation losses of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateur.errors import ConfigError, UnknownNameError, UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf

__all__ = ["build_criterion"]

PACKAGE = "secateur.compat.neural_compressor.compression.distillation"


def build_criterion(config: Mapping[str, Mapping[str, Any]], student_model: Any, teacher_model: Any = None) -> Any:
    """Create the loss of a configuration.

    Args:
        config: The name of the loss → its settings, such as `KnowledgeDistillationLossConfig` has as ``config``.
        student_model: A torch module.
        teacher_model: A torch module, or ``None``.

    Raises:
        UnsupportedModelError: The model is not a torch module.
        ConfigError: There is not exactly one loss, or a setting of it is invalid.

    Examples:
        >>> import torch
        >>> settings = {"temperature": 2.0, "loss_types": ["CE", "MSE"], "loss_weights": [0, 1]}
        >>> config = {"KnowledgeDistillationLoss": settings}
        >>> criterion = build_criterion(config, torch.nn.Linear(2, 2))
        >>> logits = torch.tensor([[1.0, 2.0]])
        >>> criterion.loss_cal_sloss(logits, logits - 3, torch.tensor(3.0)).item()
        9.0
    """
    if detect_framework(student_model) != "pytorch":
        raise UnsupportedModelError("Distillation needs a torch module. For Keras, write the loss in train_step.")
    if len(config) != 1:
        raise ConfigError(f"The criterion must be one loss, found {len(config)}: {', '.join(config) or 'none'}.")
    ((name, settings),) = config.items()
    criteria = import_leaf(PACKAGE, student_model).CRITERIA
    if name not in criteria:
        raise UnknownNameError(f"Unknown distillation loss {name!r}. Known: {', '.join(criteria)}.")
    return criteria[name](**settings, student_model=student_model, teacher_model=teacher_model)
