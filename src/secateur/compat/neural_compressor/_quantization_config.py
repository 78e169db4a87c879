"""Define `QuantizationAwareTrainingConfig`, with the keys of Intel Neural Compressor."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["QuantizationAwareTrainingConfig"]

logger = logging.getLogger(__name__)


class QuantizationAwareTrainingConfig:
    """Train linear layers with simulated int8 weights and activations, through torchao.

    From ``on_train_begin``, linear layers round their weights (per output channel, with symmetric scales, so that a
    zero stays zero) and their inputs (per token). ``on_train_end`` converts them with torchao's
    ``Int8DynamicActivationInt8WeightConfig``.

    Args:
        op_name_dict: Name of a layer → settings. ``{"weight": {"dtype": ["fp32"]}}`` leaves it in floating point.
        op_type_dict: Name of a layer's class → settings, in the same form.
        ignored: Other keys of Intel Neural Compressor; a warning names them.

    Examples:
        >>> config = QuantizationAwareTrainingConfig(
        ...     op_name_dict={"head": {"weight": {"dtype": ["fp32"]}}}
        ... )
        >>> config.is_quantized("head", "Linear"), config.is_quantized("fc1", "Linear")
        (False, True)
    """

    def __init__(
        self,
        *,
        op_name_dict: Mapping[str, Any] | None = None,
        op_type_dict: Mapping[str, Any] | None = None,
        **ignored: Any,
    ) -> None:
        self.op_name_dict = dict(op_name_dict or {})
        self.op_type_dict = dict(op_type_dict or {})
        if ignored:
            logger.warning("QuantizationAwareTrainingConfig ignores %s, because torchao quantizes.", ", ".join(ignored))

    def is_quantized(self, name: str, kind: str) -> bool:
        """Whether a linear layer is quantized.

        Args:
            name: Its name.
            kind: The name of its class.
        """
        settings = self.op_name_dict.get(name, self.op_type_dict.get(kind, {}))
        return "fp32" not in settings.get("weight", {}).get("dtype", ())
