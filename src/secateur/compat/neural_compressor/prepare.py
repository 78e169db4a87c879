"""Define the entry points `prepare_compression` and `prepare_pruning`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from secateur._wording import format_count
from secateur.compat.neural_compressor.callbacks import CompressionManager, PruningCallbacks
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf

__all__ = ["prepare_compression", "prepare_pruning"]

PACKAGE = "secateur.compat.neural_compressor"


def prepare_compression(
    model: Any, confs: WeightPruningConfig | list[WeightPruningConfig], *, optimizer: Any = None
) -> CompressionManager:
    """Prepare a model for pruning in a training loop that calls ``manager.callbacks``.

    Args:
        model: A torch module.
        confs: A `WeightPruningConfig`, or a list with one. Can also be the first argument.
        optimizer: Without it, the loop calls ``on_before_optimizer_step`` and ``on_after_optimizer_step``. With it,
            the pruner follows its steps, which loss scaling and group lasso need.

    Raises:
        SecateurError: The configuration does not fit the model, which is unchanged.

    Examples:
        >>> import torch
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = WeightPruningConfig([{"target_sparsity": 0.5}], start_step=1, end_step=8)
        >>> manager = prepare_compression(model, config)
        >>> manager.callbacks.on_train_begin()
        >>> for step in range(10):
        ...     manager.callbacks.on_step_begin(step)
        ...     model(torch.randn(4, 8)).square().mean().backward()
        ...     manager.callbacks.on_before_optimizer_step()
        ...     optimizer.step()
        ...     manager.callbacks.on_after_optimizer_step()
        ...     optimizer.zero_grad()
        >>> manager.callbacks.on_train_end().sparsity
        0.5
    """
    model, config = _sort_arguments(model, confs)
    leaf = import_leaf(PACKAGE, model)
    if solvers := sorted({entry.solver for entry in config.entries if entry.solver is not None}):
        raise ConfigError(
            f"pruning_type must be one that prunes during training, found the one for the solver {solvers[0]!r}. Call "
            f"prepare_pruning(model, config, dataloader=batches)."
        )
    if optimizer is None and any(
        entry.settings.get("reg_coeff") and entry.settings["reg_type"] for entry in config.entries
    ):
        raise ConfigError(
            "optimizer must be given with reg_type='group_lasso', because its strength is scaled by the learning "
            "rate. Call prepare_compression(model, config, optimizer=optimizer)."
        )
    start = partial(leaf.start_run, model, leaf.build_checked_config(config, model), optimizer)
    return CompressionManager(model, PruningCallbacks(start, follows_optimizer=optimizer is not None), leaf.save)


def prepare_pruning(
    model: Any,
    config: WeightPruningConfig,
    optimizer: Any = None,
    dataloader: Iterable[Any] | None = None,
    loss_func: Any = None,  # noqa: ARG001 - part of the interface
    framework: str = "pytorch",
    device: Any = None,
) -> PruningCallbacks:
    """Prepare a model for pruning during training, or prune it at once with calibration data.

    Args:
        model: A torch module.
        config: The configuration. Can also be the first argument.
        optimizer: The optimizer that trains the model. The pruner follows its steps, so the loop needs no callbacks. At
            the end, call ``on_train_end`` on the returned object to verify the result and get a report.
        dataloader: Calibration batches for ``pruning_type="sparse_gpt"``, which prunes the model at once. If a batch is
            a tuple or list, its first element is the model's input; mappings are passed as keyword arguments.
        loss_func: Not used.
        framework: ``"pytorch"``.
        device: Device on which the model is pruned with calibration data.

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
    model, config = _sort_arguments(model, config)
    if framework != "pytorch":
        raise ConfigError(f"framework must be 'pytorch', found {framework!r}. For Keras models see secateur.keras.")
    leaf = import_leaf(PACKAGE, model)
    solvers = {entry.solver for entry in config.entries}
    if len(solvers) > 1:
        raise ConfigError(
            "pruning_type must not mix 'sparse_gpt', which prunes at once, with types that prune during training. "
            "Prune in two calls with two configurations."
        )
    solver = solvers.pop()
    if solver is None:
        if optimizer is None:
            raise ConfigError("optimizer must be given to prune during training, found None.")
        start = partial(leaf.start_run, model, leaf.build_checked_config(config, model), optimizer)
        return PruningCallbacks(start, follows_optimizer=True)
    if dataloader is None:
        raise ConfigError("dataloader must be given for pruning_type='sparse_gpt', found None.")
    settings = leaf.build_checked_config(config, model, prune_frozen=True)
    report = leaf.prune_in_one_shot(model, settings, solver=solver, batches=dataloader, device=device)
    return PruningCallbacks.from_report(report)


def _sort_arguments(model: Any, confs: Any) -> tuple[Any, WeightPruningConfig]:
    """Return the model and the configuration, which users can pass in either order, as INC documented both."""
    if isinstance(model, WeightPruningConfig):
        model, confs = confs, model
    if isinstance(confs, list | tuple):
        others = [type(conf).__name__ for conf in confs if not isinstance(conf, WeightPruningConfig)]
        if others or len(confs) != 1:
            raise ConfigError(
                f"confs must contain one WeightPruningConfig, found {format_count(len(confs), 'configuration')}"
                f"{f', including {others[0]}' if others else ''}. Quantization and distillation are not supported."
            )
        confs = confs[0]
    if not isinstance(confs, WeightPruningConfig):
        raise ConfigError(
            f"confs must be a WeightPruningConfig, found {type(confs).__name__}. Quantization and distillation are "
            f"not supported."
        )
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError("The model must be a torch module. For Keras models see secateur.keras.")
    return model, confs
