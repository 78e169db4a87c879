"""Define the callbacks of a training loop."""

from __future__ import annotations

from typing import Any

from secateur.compat.neural_compressor._base_callbacks import HOOKS, BaseCallbacks
from secateur.compat.neural_compressor.compression.distillation.criterions import build_criterion
from secateur.compat.neural_compressor.compression.pruner.pruning import BasePruning
from secateur.errors import UnsupportedModelError
from secateur.frameworks import detect_framework, import_leaf
from secateur.results import PruningReport

__all__ = ["HOOKS", "BaseCallbacks", "DistillationCallbacks", "PruningCallbacks", "QuantizationAwareTrainingCallbacks"]


class PruningCallbacks(BaseCallbacks):
    """Callbacks that prune a model; see `secateur.compat.neural_compressor.compression.pruner.pruning.BasePruning`.

    Args:
        conf: The configuration.
        model: The model.
        optimizer: See `prepare_compression`.

    Attributes:
        pruning: The object that prunes.
    """

    def __init__(self, conf: Any = None, model: Any = None, optimizer: Any = None) -> None:
        super().__init__(conf, model)
        self.pruning = BasePruning(conf, model, optimizer)
        for name in HOOKS:
            if name not in ("on_after_compute_loss", "on_train_end"):
                self.register_hook(name, getattr(self.pruning, name))

    @property
    def pruners(self) -> list[Any]:
        """One pruner per element."""
        return self.pruning.pruners

    def on_train_end(self) -> PruningReport:
        """Verify all masks and zeros, end the run, and return the report."""
        super().on_train_end()
        return self.pruning.on_train_end()

    def __repr__(self) -> str:
        return "Pruning Callbacks"


class DistillationCallbacks(BaseCallbacks):
    """Callbacks that add the loss of distillation.

    Args:
        conf: A `DistillationConfig`.
        model: The student.

    Attributes:
        teacher_model: The teacher, or ``None``.
        criterion: The loss, which can be replaced by any object with its methods.

    Raises:
        ConfigError: A setting of the loss is invalid.
    """

    def __init__(self, conf: Any = None, model: Any = None) -> None:
        super().__init__(conf, model)
        self.teacher_model = conf.teacher_model
        self.criterion = build_criterion(conf.criterion.config, model, conf.teacher_model)
        self.register_hook("on_train_begin", lambda _dataloader: self._call_criterion("register_hooks_for_models"))
        self.register_hook("on_step_begin", lambda _batch_id: self._call_criterion("clear_features"))
        self.register_hook("on_after_compute_loss", self._add_loss)
        self.register_hook("on_train_end", lambda: self._call_criterion("remove_all_hooks"))

    @property
    def student_model(self) -> Any:
        """The model that is trained."""
        return self.model

    def _add_loss(self, inputs: Any, student_output: Any, student_loss: Any, teacher_output: Any) -> Any:
        if teacher_output is None:
            teacher_output = self.criterion.teacher_model_forward(inputs, teacher_model=self.teacher_model)
        return self.criterion.loss_cal_sloss(student_output, teacher_output, student_loss)

    def _call_criterion(self, name: str) -> None:
        """Call a method that only the loss of intermediate layers has."""
        if hasattr(self.criterion, name):
            getattr(self.criterion, name)()

    def __repr__(self) -> str:
        return "Distillation Callbacks"


class QuantizationAwareTrainingCallbacks(BaseCallbacks):
    """Callbacks that simulate quantization, from ``on_train_begin`` until ``on_train_end`` quantizes the model.

    Args:
        conf: A `QuantizationAwareTrainingConfig`.
        model: The model.

    Raises:
        MissingPackageError: torchao is not installed.
        UnsupportedModelError: The model is not a torch module.
    """

    def __init__(self, conf: Any = None, model: Any = None) -> None:
        super().__init__(conf, model)
        if detect_framework(model) != "pytorch":
            raise UnsupportedModelError("Quantization-aware training needs a torch module, found a Keras model.")
        leaf = import_leaf("secateur.compat.neural_compressor._quantization", model)
        self.simulator = leaf.QuantizationSimulator(conf, model)
        self.register_hook("on_train_begin", lambda _dataloader: self.simulator.start())
        self.register_hook("on_train_end", self.simulator.convert)

    def __repr__(self) -> str:
        return "Quantization Aware Training Callbacks"
