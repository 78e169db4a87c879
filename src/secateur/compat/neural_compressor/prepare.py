"""The entry points: `prepare_compression` and `prepare_pruning`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from secateur.compat.neural_compressor.callbacks import CompressionManager, PruningCallbacks
from secateur.compat.neural_compressor.config import WeightPruningConfig
from secateur.errors import ConfigError, UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf

__all__ = ["prepare_compression", "prepare_pruning"]

PACKAGE = "secateur.compat.neural_compressor"


def prepare_compression(
    model: Any, confs: WeightPruningConfig | list[WeightPruningConfig], *, optimizer: Any = None
) -> CompressionManager:
    """Prepare a model for pruning by a training loop that calls ``manager.callbacks``.

    Args:
        model: A torch module.
        confs: A `WeightPruningConfig`, alone or in a list. May also be the first argument.
        optimizer: Without it, the loop calls ``on_before_optimizer_step`` and ``on_after_optimizer_step``. With it,
            the pruner follows its steps, which loss scaling and group lasso need.

    Raises:
        SecateurError: The configuration does not fit the model; nothing is changed then.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
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
    home = import_leaf(PACKAGE, model)
    if solvers := sorted({entry.solver for entry in config.entries if entry.solver is not None}):
        raise ConfigError(
            f"pruning_type must be one that prunes while the model trains, found the one of the solver {solvers[0]!r}. "
            f"Call prepare_pruning(model, config, dataloader=batches)."
        )
    if optimizer is None and any(
        entry.settings.get("reg_coeff") and entry.settings["reg_type"] for entry in config.entries
    ):
        raise ConfigError(
            "optimizer must be given where reg_type='group_lasso', because its strength is scaled by the learning "
            "rate. Call prepare_compression(model, config, optimizer=optimizer)."
        )
    start = partial(home.start_run, model, home.build_checked_config(config, model), optimizer)
    return CompressionManager(model, PruningCallbacks(start, follows_optimizer=optimizer is not None), home.save)


def prepare_pruning(
    model: Any,
    config: WeightPruningConfig,
    optimizer: Any = None,
    dataloader: Iterable[Any] | None = None,
    loss_func: Any = None,  # noqa: ARG001 - part of the interface
    framework: str = "pytorch",
    device: Any = None,
) -> PruningCallbacks:
    """Prepare a model for pruning during training, or prune it now with calibration data.

    Args:
        model: A torch module.
        config: The configuration. May also be the first argument.
        optimizer: The optimizer that trains the model. The pruner follows its steps, so the loop needs no callbacks. At
            the end, call ``on_train_end`` on the returned object to verify the result and get a report.
        dataloader: Batches for ``pruning_type="sparse_gpt"``, with which the model is pruned now. The first element of
            a tuple or list is the model's input; mappings are keyword arguments.
        loss_func: Not used.
        framework: ``"pytorch"``.
        device: Device on which the model is pruned with calibration data.

    Raises:
        SecateurError: The configuration does not fit the model, or there is neither optimizer nor data; nothing is
            changed then.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
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
    home = import_leaf(PACKAGE, model)
    solvers = {entry.solver for entry in config.entries}
    if len(solvers) > 1:
        raise ConfigError(
            "pruning_type must not mix 'sparse_gpt', which prunes at once, with types that prune while the model "
            "trains. Prune in two calls, with a configuration each."
        )
    solver = solvers.pop()
    if solver is None:
        if optimizer is None:
            raise ConfigError("optimizer must be given where the model is pruned while it trains, found None.")
        start = partial(home.start_run, model, home.build_checked_config(config, model), optimizer)
        return PruningCallbacks(start, follows_optimizer=True)
    if dataloader is None:
        raise ConfigError("dataloader must be given for pruning_type='sparse_gpt', found None.")
    own = home.build_checked_config(config, model, prune_frozen=True)
    return PruningCallbacks.from_report(home.prune_once(model, own, solver=solver, batches=dataloader, device=device))


def _sort_arguments(model: Any, confs: Any) -> tuple[Any, WeightPruningConfig]:
    """Return model and configuration, which may be given in either order, as both were documented."""
    if isinstance(model, WeightPruningConfig):
        model, confs = confs, model
    if isinstance(confs, list | tuple):
        others = [type(one).__name__ for one in confs if not isinstance(one, WeightPruningConfig)]
        if others or len(confs) != 1:
            raise ConfigError(
                f"confs must hold one WeightPruningConfig, found {len(confs)} configurations"
                f"{f', {others[0]} among them' if others else ''}. Quantization and distillation have no counterpart."
            )
        confs = confs[0]
    if not isinstance(confs, WeightPruningConfig):
        raise ConfigError(
            f"confs must be a WeightPruningConfig, found {type(confs).__name__}. Quantization and distillation have no "
            f"counterpart."
        )
    if detect_framework(model) != "pytorch":
        raise UnsupportedModelError("Only torch models are served here. For Keras models see secateur.keras.")
    return model, confs
