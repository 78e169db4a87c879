"""Provide the package `neural_compressor.compression.pruner`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from secateur.compat.neural_compressor._translation import is_one_shot
from secateur.compat.neural_compressor.compression.pruner.model_slim import model_slim, parse_auto_slim_config
from secateur.compat.neural_compressor.compression.pruner.pruning import BasePruning, OneShotPruning, split_elements
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import ConfigError

__all__ = ["model_slim", "parse_auto_slim_config", "prepare_pruning"]


def prepare_pruning(
    model: Any,
    config: WeightPruningConfig,
    optimizer: Any = None,
    dataloader: Iterable[Any] | None = None,
    loss_func: Any = None,
    framework: str = "pytorch",  # noqa: ARG001 - the model decides
    device: Any = None,
) -> Any:
    """Prepare a model for pruning during training, or prune it in one shot with calibration data.

    Args:
        model: A torch module. Can also be the second argument.
        config: The configuration. Elements for training need `optimizer`, others need `dataloader`.
        optimizer: The optimizer that trains the model. The pruners follow its steps, so the loop needs no callbacks. At
            the end, call ``on_train_end`` on the returned object to verify the result and get a report.
        dataloader: Calibration batches for ``pruning_type="sparse_gpt"`` and ``"retrain_free"``, which prune the model
            in one shot. If a batch is a tuple or list, its first element is the model's input; mappings are passed as
            keyword arguments. With ``pattern="mha"``, attention layers are found by running the first batch, which
            includes fused projections; without it, by layer names.
        loss_func: For ``"retrain_free"``: a function of the outputs and of the second element of a batch that returns
            a loss; ``None``: the ``loss`` of the model's outputs.
        framework: Not used, because the model decides.
        device: Device on which the model is pruned with calibration data.

    Returns:
        An object with the callbacks, ``pruners`` and ``report``; a list of two if some elements prune during training
        and others in one shot.

    Raises:
        SecateurError: The configuration does not fit the model, or there is neither an optimizer nor data. The model
            is unchanged.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = WeightPruningConfig([{"target_sparsity": 0.5}], start_step=1, end_step=8)
        >>> pruning = prepare_pruning(model, config, optimizer)
        >>> for step in range(10):
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruning.on_train_end().sparsity
        0.5
    """
    if isinstance(model, WeightPruningConfig):
        model, config = config, model
    if not isinstance(config, WeightPruningConfig):
        raise ConfigError(f"config must be a WeightPruningConfig, found {type(config).__name__}.")
    elements = config.complete_elements()
    trained = [element for element in elements if not is_one_shot(element)]
    at_once = [element for element in elements if is_one_shot(element)]
    if trained and optimizer is None:
        raise ConfigError(f"optimizer must be given for pruning_type={trained[0].pruning_type!r}, found None.")
    if at_once and dataloader is None:
        raise ConfigError(f"dataloader must be given for pruning_type={at_once[0].pruning_type!r}, found None.")
    prunings: list[Any] = []
    if at_once and dataloader is not None:
        prunings.append(
            OneShotPruning(split_elements(config, at_once), model, dataloader, loss=loss_func, device=device)
        )
    if trained:
        prunings.insert(0, BasePruning(split_elements(config, trained), model, optimizer, dataloader))
    return prunings[0] if len(prunings) == 1 else prunings
