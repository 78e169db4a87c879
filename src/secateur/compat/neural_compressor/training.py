"""Define `prepare_compression` and the manager of a training loop."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from secateur.compat.neural_compressor.compression.callbacks import (
    BaseCallbacks,
    DistillationCallbacks,
    PruningCallbacks,
    QuantizationAwareTrainingCallbacks,
)
from secateur.compat.neural_compressor.compression.pruner import prepare_pruning
from secateur.compat.neural_compressor.config import (
    DistillationConfig,
    QuantizationAwareTrainingConfig,
    WeightPruningConfig,
)
from secateur.compat.neural_compressor.utils.utility import DotDict
from secateur.errors import ConfigError, StateError
from secateur.frameworks import import_leaf
from secateur.results import PruningReport

__all__ = ["CallBacks", "CompressionManager", "WeightPruningConfig", "prepare_compression", "prepare_pruning"]


class CallBacks(BaseCallbacks):
    """The callbacks of all configurations of a `CompressionManager`.

    Attributes:
        callbacks_list: The callbacks of each configuration.
    """

    def __init__(self, callbacks_list: Sequence[BaseCallbacks]) -> None:
        super().__init__()
        self.callbacks_list = list(callbacks_list)

    def on_after_compute_loss(
        self,
        input: Any,  # noqa: A002 - part of the interface
        student_output: Any,
        student_loss: Any,
        teacher_output: Any = None,
    ) -> Any:
        """Call after the loss is computed; returns the loss to minimize, which only distillation changes."""
        loss = student_loss
        for callbacks in self.callbacks_list:
            loss = callbacks.on_after_compute_loss(input, student_output, loss, teacher_output)
        return loss

    def on_train_end(self) -> PruningReport | None:
        """Call at the end of training; returns the report on pruning, if there is one."""
        results = [callbacks.on_train_end() for callbacks in self.callbacks_list]
        return next((result for result in results if result is not None), None)

    def _call(self, scope: str, *args: Any) -> None:
        for callbacks in self.callbacks_list:
            getattr(callbacks, scope)(*args)


class CompressionManager:
    """A model and the callbacks that prune it during training, as returned by `prepare_compression`.

    Attributes:
        model: The model, with the additional attributes ``model``, ``save`` and ``report_sparsity``.
        callbacks: The callbacks for the loop.
        conf: The configurations, as ``conf.pruning``, ``conf.distillation`` and ``conf.quantization``.
    """

    def __init__(self, model: Any, callbacks_list: Sequence[BaseCallbacks], conf: DotDict) -> None:
        self.callbacks = CallBacks(callbacks_list)
        leaf = import_leaf("secateur.compat.neural_compressor._runs", model)
        self.model = leaf.present_model(model, self.callbacks)
        self.conf = conf

    @property
    def pruner(self) -> Any:
        """The Secateur pruner of a configuration with one element, with its masks, report and state.

        Raises:
            StateError: The run has not started, or there are several elements; see ``callbacks.callbacks_list``.
        """
        runs = [run for callbacks in self._pruning_callbacks() for run in callbacks.pruning.runs]
        if len(runs) != 1:
            raise StateError(
                f"This run has {len(runs)} pruners. Call on_train_begin first, or read "
                f"callbacks.callbacks_list[0].pruners[i].run."
            )
        return runs[0]

    @property
    def report(self) -> PruningReport | None:
        """The report of the run; ``None`` until it has ended."""
        return next((callbacks.pruning.report for callbacks in self._pruning_callbacks()), None)

    def save(self, root: str | Path | None = None) -> None:
        """Save the model's ``state_dict`` as ``best_model.pt`` in a folder, which is created if needed.

        Args:
            root: The folder; by default ``"nc_workspace"``.
        """
        self.model.save(root)

    def export(self, save_path: str, conf: Any) -> None:
        """Not available: export ``manager.model.model`` with ``torch.onnx.export``.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"export({save_path!r}) is not available for {type(conf).__name__}. Call torch.onnx.export("
            f"manager.model.model, ...), or secateur.save(manager.model.model, folder)."
        )

    def _pruning_callbacks(self) -> list[PruningCallbacks]:
        return [callbacks for callbacks in self.callbacks.callbacks_list if isinstance(callbacks, PruningCallbacks)]


def prepare_compression(model: Any, confs: Any, *, optimizer: Any = None) -> CompressionManager:
    """Prepare a model for a training loop that calls ``manager.callbacks``.

    Args:
        model: A torch module, a Keras model, or the path of a ``.keras`` file. Can also be the second argument.
        confs: A `WeightPruningConfig`, a `DistillationConfig`, a `QuantizationAwareTrainingConfig`, or a list of them.
            The callbacks of quantization are the last of the list.
        optimizer: Without it, the loop calls ``on_before_optimizer_step`` and ``on_after_optimizer_step``. With it,
            the pruner follows its steps, which loss scaling needs.

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
    if _is_configuration(model):
        model, confs = confs, model
    if isinstance(model, str | Path):
        model = import_module("secateur.compat.neural_compressor._runs.keras").load_model(model)
    configs = list(confs) if isinstance(confs, list | tuple) else [confs]
    if not configs:
        raise ConfigError("confs must contain at least one configuration, found an empty list.")
    conf = DotDict({"pruning": None, "distillation": None, "quantization": None})
    callbacks_list = [_make_callbacks(config, model, optimizer, conf) for config in configs]
    # Quantization comes last: pruning starts with the original layers, and ends before their weights are int8.
    callbacks_list.sort(key=lambda callbacks: isinstance(callbacks, QuantizationAwareTrainingCallbacks))
    return CompressionManager(model, callbacks_list, conf)


def _is_configuration(value: Any) -> bool:
    return isinstance(value, WeightPruningConfig | DistillationConfig | QuantizationAwareTrainingConfig) or (
        isinstance(value, list | tuple) and bool(value)
    )


def _make_callbacks(config: Any, model: Any, optimizer: Any, conf: DotDict) -> BaseCallbacks:
    if isinstance(config, WeightPruningConfig):
        for element in config.complete_elements():
            if element.pruning_type == "sparse_gpt":
                raise ConfigError(
                    f"pruning_type must be one that prunes during training, found {element.pruning_type!r}. Call "
                    f"prepare_pruning(model, config, dataloader=batches)."
                )
        conf.pruning = config
        return PruningCallbacks(config, model, optimizer)
    if isinstance(config, DistillationConfig):
        conf.distillation = config
        return DistillationCallbacks(config, model)
    if isinstance(config, QuantizationAwareTrainingConfig):
        conf.quantization = config
        return QuantizationAwareTrainingCallbacks(config, model)
    raise ConfigError(
        f"confs must be a WeightPruningConfig, a DistillationConfig or a list of configurations, found "
        f"{type(config).__name__}."
    )
