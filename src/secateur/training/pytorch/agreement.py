"""Check that processes that train one model agree on what is pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur.config import ConfigLike, make_config
from secateur.distributed.pytorch.rank_groups import RankGroups

__all__ = ["agree_on_run"]


def agree_on_run(groups: RankGroups, model: nn.Module, configs: Sequence[ConfigLike]) -> None:
    """Compare the configurations, and the layers and parameters of the model, on all processes.

    Args:
        groups: The processes.
        model: The model, without wrappers.
        configs: The configurations.

    Raises:
        RankError: They differ, or a configuration is invalid on another process. All processes raise it.
        ConfigError: A configuration is invalid here.

    Examples:
        >>> agree_on_run(RankGroups([]), nn.Linear(2, 2), [{"pattern": "4x1"}])
    """
    if groups.is_alone:
        return
    with groups.fail_together("secateur.prepare"):
        settings = [make_config(config).model_dump_json(fallback=_describe) for config in configs]
    groups.agree(
        {
            "configuration": settings,
            "model": [
                {name: type(module).__name__ for name, module in model.named_modules()},
                {name: _describe_parameter(parameter) for name, parameter in model.named_parameters()},
            ],
        }
    )


def _describe_parameter(parameter: nn.Parameter) -> str:
    placements = getattr(parameter, "placements", "")
    return f"{tuple(parameter.shape)} {parameter.dtype} {placements} {parameter.requires_grad}"


def _describe(value: Any) -> str:
    return getattr(value, "__qualname__", type(value).__qualname__)
