"""Define the losses of distillation for torch models."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from secateur.errors import ConfigError, StateError
from secateur.frameworks.pytorch import unwrap_model
from secateur.oneshot.pytorch.calibration.batches import calibration_mode, move_to

__all__ = [
    "CRITERIA",
    "PyTorchIntermediateLayersKnowledgeDistillationLoss",
    "PyTorchKnowledgeDistillationLoss",
    "PyTorchSelfKnowledgeDistillationLoss",
]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

TINY = 1e-9
"""Added to probabilities before the logarithm."""

TOLERANCE = 0.2
"""Maximum deviation from 1 of the sum of values that count as probabilities."""


def _soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    classes = logits.shape[-1]
    return functional.cross_entropy(logits.reshape(-1, classes), targets.reshape(-1, classes).softmax(dim=-1))


def _divergence(log_probabilities: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Return the Kullback-Leibler divergence, divided by the number of elements, as `nn.KLDivLoss` does by default."""
    return functional.kl_div(log_probabilities, probabilities, reduction="none").mean()


def _logit_divergence(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return _divergence(logits.log_softmax(dim=-1), targets.softmax(dim=-1))


LABEL_LOSSES: dict[str, Loss] = {"CE": functional.cross_entropy, "MSE": functional.mse_loss}
TEACHER_LOSSES: dict[str, Loss] = {"CE": _soft_cross_entropy, "KL": _logit_divergence, "MSE": functional.mse_loss}
FEATURE_LOSSES: dict[str, Loss] = {"MSE": functional.mse_loss, "KL": _divergence, "L1": functional.l1_loss}
SELF_LOSSES: dict[str, Loss] = {"CE": _soft_cross_entropy, "KL": _logit_divergence, "L2": torch.dist}


class _DistillationLoss:
    """Base class of the losses, with the teacher model."""

    def __init__(self, student_model: nn.Module | None = None, teacher_model: nn.Module | None = None) -> None:
        self.student_model = student_model
        self.teacher_model = teacher_model

    def teacher_model_forward(self, input: Any, teacher_model: nn.Module | None = None) -> Any:  # noqa: A002
        """Return the teacher's output for the student's input: a tensor, a sequence or a mapping of arguments."""
        teacher = self.teacher_model if teacher_model is None else teacher_model
        if teacher is None:
            raise StateError(
                "Distillation needs the teacher's output, found no teacher_model. Set it in DistillationConfig, or "
                "pass teacher_output to on_after_compute_loss."
            )
        weight = next(teacher.parameters(), None)
        with calibration_mode(teacher):
            return _call(teacher, input, None if weight is None else weight.device)


class PyTorchKnowledgeDistillationLoss(_DistillationLoss):
    """The loss of `KnowledgeDistillationLossConfig`, whose arguments it has.

    Args:
        temperature: Divisor of the logits, > 0.
        loss_types: The loss for labels, and the loss for the teacher's outputs.
        loss_weights: Weights of the two losses.
        models: ``student_model`` and ``teacher_model``.

    Raises:
        ConfigError: A setting is out of bounds.

    Examples:
        >>> criterion = PyTorchKnowledgeDistillationLoss(loss_weights=(0.8, 0.2))
        >>> logits = torch.zeros(1, 2)
        >>> loss = criterion.loss_cal_sloss(logits, logits, torch.tensor(1.0))
        >>> round(loss.item(), 4)  # .8 · 1 + .2 · log 2
        0.9386
    """

    def __init__(
        self,
        temperature: float = 1.0,
        loss_types: Sequence[str] = ("CE", "CE"),
        loss_weights: Sequence[float] = (0.5, 0.5),
        **models: nn.Module | None,
    ) -> None:
        super().__init__(**models)
        _check_temperature(temperature)
        if len(loss_types) != 2:
            raise ConfigError(f"loss_types must have two items, found {list(loss_types)}.")
        _check_weights(loss_weights, 2)
        if abs(sum(loss_weights) - 1) > TINY:
            raise ConfigError(f"The sum of loss_weights must be 1, found {list(loss_weights)}.")
        self.temperature = temperature
        self.loss_types = list(loss_types)
        self.loss_weights = list(loss_weights)
        self.student_targets_loss = _get_loss(loss_types[0], LABEL_LOSSES)
        self.teacher_student_loss = _get_loss(loss_types[1], TEACHER_LOSSES)

    def __call__(self, student_outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss between outputs and labels."""
        return self.student_targets_loss(student_outputs, targets)

    def teacher_model_forward(self, input: Any, teacher_model: nn.Module | None = None) -> Any:  # noqa: A002
        """Return the teacher's output; ``None`` if its weight is 0."""
        return super().teacher_model_forward(input, teacher_model) if self.loss_weights[1] else None

    def loss_cal_sloss(self, student_outputs: Any, teacher_outputs: Any, student_loss: Any) -> Any:
        """Return the weighted sum of the loss of the loop and the loss between student and teacher."""
        loss = student_loss * self.loss_weights[0]
        if self.loss_weights[1]:
            student, teacher = _get_logits(student_outputs), _get_logits(teacher_outputs)
            teacher = teacher.to(student.device)
            distillation = self.teacher_student_loss(student / self.temperature, teacher / self.temperature)
            loss = loss + distillation * self.temperature**2 * self.loss_weights[1]
        return loss


class PyTorchIntermediateLayersKnowledgeDistillationLoss(_DistillationLoss):
    """The loss of `IntermediateLayersKnowledgeDistillationLossConfig`, whose arguments it has.

    Forward hooks record the outputs of the layers, the student's in training mode only. They are removed by
    `remove_all_hooks`, and when the loss is garbage-collected. Where features differ in one axis, a linear layer with
    random weights, created with the first loss, maps the student's to the size of the teacher's.

    Args:
        layer_mappings: Pairs of layers.
        loss_types: Loss of each pair.
        loss_weights: Weight of each pair.
        add_origin_loss: Whether to add the loss of the loop.
        models: ``student_model`` and ``teacher_model``.

    Raises:
        ConfigError: A setting is out of bounds, a model is missing, or a layer does not exist.

    Examples:
        >>> student, teacher = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
        >>> criterion = PyTorchIntermediateLayersKnowledgeDistillationLoss(
        ...     [["0"]], student_model=student, teacher_model=teacher
        ... )
        >>> x = torch.randn(3, 2)
        >>> outputs = student(x), teacher(x)
        >>> loss = criterion.loss_cal_sloss(*outputs, None)
        >>> bool(loss == (outputs[0] - outputs[1]).square().mean())
        True
    """

    def __init__(
        self,
        layer_mappings: Sequence[Any] = (),
        loss_types: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        *,
        add_origin_loss: bool = False,
        **models: nn.Module | None,
    ) -> None:
        super().__init__(**models)
        if self.student_model is None or self.teacher_model is None:
            raise ConfigError("The loss of intermediate layers needs student_model and teacher_model.")
        self._models = self.student_model, self.teacher_model
        self._pairs = [_read_mapping(mapping) for mapping in layer_mappings]
        self.layer_mappings = [(student[0], teacher[0]) for student, teacher in self._pairs]
        self.loss_types = list(loss_types or ["MSE"] * len(self._pairs))
        self.loss_weights = _complete_weights(loss_weights, self.loss_types, self._pairs)
        self.loss_funcs = [_get_loss(loss_type, FEATURE_LOSSES) for loss_type in self.loss_types]
        self.add_origin_loss = add_origin_loss
        self.feature_matchers: dict[int, nn.Module] = {}
        self._features: dict[tuple[int, int], torch.Tensor] = {}
        self.hook_handles: list[RemovableHandle] = []
        self.register_hooks_for_models()
        weakref.finalize(self, _remove_hooks, self.hook_handles)

    def register_hooks_for_models(self) -> None:
        """Start recording outputs; no effect if it has already started."""
        if self.hook_handles:
            return
        layers = [
            (_find_layer(model, name), (index, side), process)
            for index, pair in enumerate(self._pairs)
            for side, (model, (name, process)) in enumerate(zip(self._models, pair, strict=True))
        ]
        for layer, key, process in layers:
            self.hook_handles.append(layer.register_forward_hook(_make_recorder(self._features, key, process)))

    def remove_all_hooks(self) -> None:
        """Stop recording outputs, and discard those recorded."""
        _remove_hooks(self.hook_handles)
        self.clear_features()

    def clear_features(self) -> None:
        """Discard the recorded outputs."""
        self._features.clear()

    def loss_cal_sloss(self, student_outputs: Any, teacher_outputs: Any, student_loss: Any) -> Any:  # noqa: ARG002
        """Return the weighted sum of the losses between the recorded outputs."""
        loss: Any = student_loss if self.add_origin_loss else 0.0
        for index, (loss_type, weight) in enumerate(zip(self.loss_types, self.loss_weights, strict=True)):
            student, teacher = self._read_features(index)
            matched = self._match_feature(index, student, teacher)
            if loss_type == "KL":
                is_mapped = index in self.feature_matchers
                matched = matched.log_softmax(dim=-1) if is_mapped else (_to_probabilities(matched) + TINY).log()
                teacher = _to_probabilities(teacher)
            loss = loss + self.loss_funcs[index](matched, teacher) * weight
        self.clear_features()
        return loss

    def _read_features(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not {(index, 0), (index, 1)} <= self._features.keys():
            raise StateError(
                f"The loss needs outputs of {self.layer_mappings[index]} of student and teacher. Call the student in "
                f"training mode, and the teacher too if teacher_output is passed, after on_train_begin and before "
                f"on_after_compute_loss."
            )
        student = self._features[index, 0]
        return student, self._features[index, 1].to(student.device)

    def _match_feature(self, index: int, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """Map a student's feature to the shape of the teacher's."""
        if student.shape == teacher.shape:
            return student
        axes = [
            axis for axis, sizes in enumerate(zip(student.shape, teacher.shape, strict=False)) if len(set(sizes)) > 1
        ]
        if student.ndim != teacher.ndim or len(axes) != 1:
            raise ConfigError(
                f"The outputs of {self.layer_mappings[index]} must have the same shape except for one axis, found "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}."
            )
        axis = axes[0]
        if index not in self.feature_matchers:
            matcher = nn.Linear(student.shape[axis], teacher.shape[axis])
            self.feature_matchers[index] = matcher.to(student.device, student.dtype)
        mapped: torch.Tensor = self.feature_matchers[index](student.transpose(axis, -1))
        return mapped.transpose(axis, -1)


class PyTorchSelfKnowledgeDistillationLoss(_DistillationLoss):
    """The loss of `SelfKnowledgeDistillationLossConfig`, whose arguments it has.

    Args:
        layer_mappings: Groups of pairs ``[student_output, teacher_output]``.
        loss_types: Loss of each group.
        loss_weights: Weight of each group.
        temperature: Divisor of the outputs of the second group, > 0.
        add_origin_loss: Whether to add the loss of the loop.
        models: ``student_model`` and ``teacher_model``, which are not used.

    Raises:
        ConfigError: A setting is out of bounds.

    Examples:
        >>> criterion = PyTorchSelfKnowledgeDistillationLoss([[["fc1", "fc2"]]], ["L2"])
        >>> outputs = {"fc1": torch.zeros(2), "fc2": torch.tensor([3.0, 4.0])}
        >>> criterion.loss_cal_sloss(outputs, None, None).item()
        5.0
    """

    def __init__(
        self,
        layer_mappings: Sequence[Any] = (),
        loss_types: Sequence[str] | None = None,
        loss_weights: Sequence[float] | None = None,
        temperature: float = 1.0,
        *,
        add_origin_loss: bool = False,
        **models: nn.Module | None,
    ) -> None:
        super().__init__(**models)
        _check_temperature(temperature)
        for pair in (pair for group in layer_mappings for pair in group):
            if isinstance(pair, str) or len(pair) != 2:
                raise ConfigError(f"layer_mappings must contain groups of pairs [student, teacher], found {pair!r}.")
        self.layer_mappings = list(layer_mappings)
        self.loss_types = list(loss_types or ["CE"] * len(self.layer_mappings))
        self.loss_weights = _complete_weights(loss_weights, self.loss_types, self.layer_mappings)
        self.loss_funcs = [_get_loss(loss_type, SELF_LOSSES) for loss_type in self.loss_types]
        self.temperature = temperature
        self.add_origin_loss = add_origin_loss

    def teacher_model_forward(self, input: Any, teacher_model: nn.Module | None = None) -> None:  # noqa: A002
        """Return nothing: the student's deepest part is the teacher."""

    def loss_cal_sloss(self, student_outputs: Mapping[str, Any], teacher_outputs: Any, student_loss: Any) -> Any:  # noqa: ARG002
        """Return the weighted sum of the losses between the student's outputs."""
        loss: Any = student_loss if self.add_origin_loss else 0.0
        for index, pairs in enumerate(self.layer_mappings):
            divisor = self.temperature if index == 1 else 1.0
            for student, teacher in pairs:
                features = student_outputs[student] / divisor, student_outputs[teacher] / divisor
                loss = loss + self.loss_funcs[index](*features) * self.loss_weights[index]
        return loss


CRITERIA: dict[str, Callable[..., Any]] = {
    "KnowledgeDistillationLoss": PyTorchKnowledgeDistillationLoss,
    "IntermediateLayersKnowledgeDistillationLoss": PyTorchIntermediateLayersKnowledgeDistillationLoss,
    "SelfKnowledgeDistillationLoss": PyTorchSelfKnowledgeDistillationLoss,
}
"""Name in configurations → loss."""


def _call(model: nn.Module, batch: Any, device: torch.device | None) -> Any:
    if isinstance(batch, Mapping):
        return model(**move_to(dict(batch), device))
    if isinstance(batch, list | tuple):
        return model(*move_to(tuple(batch), device))
    return model(move_to(batch, device))


def _get_logits(outputs: Any) -> torch.Tensor:
    logits: torch.Tensor = getattr(outputs, "logits", outputs)
    return logits


def _get_loss(name: str, losses: Mapping[str, Loss]) -> Loss:
    if name not in losses:
        raise ConfigError(f"Unknown loss type {name!r}. Known here: {', '.join(losses)}.")
    return losses[name]


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ConfigError(f"temperature must be positive, found {temperature}.")


def _check_weights(weights: Sequence[float], count: int) -> None:
    if len(weights) != count or not all(0 <= weight <= 1 for weight in weights):
        raise ConfigError(f"loss_weights must be {count} numbers in [0, 1], found {list(weights)}.")


def _complete_weights(
    weights: Sequence[float] | None, loss_types: Sequence[str], mappings: Sequence[Any]
) -> list[float]:
    """Check the numbers of settings, and return the weights."""
    if not mappings or len(loss_types) != len(mappings):
        raise ConfigError(
            f"layer_mappings and loss_types must have the same number of items, at least one, found {len(mappings)} "
            f"and {len(loss_types)}."
        )
    weights = weights or [1 / len(mappings)] * len(mappings)
    _check_weights(weights, len(mappings))
    return list(weights)


def _read_mapping(mapping: Any) -> tuple[tuple[str, Any], tuple[str, Any]]:
    """Return the layer and the process of student and teacher."""
    items = [mapping] if isinstance(mapping, str) else list(mapping)
    if len(items) not in (1, 2):
        raise ConfigError(f"layer_mappings must contain lists of one or two layers, found {mapping!r}.")
    student, teacher = _read_layer(items[0]), _read_layer(items[-1])
    return student, teacher


def _read_layer(item: Any) -> tuple[str, Any]:
    parts = (item,) if isinstance(item, str) else tuple(item)
    if len(parts) not in (1, 2) or not isinstance(parts[0], str):
        raise ConfigError(f"A layer in layer_mappings must be (name,) or (name, process), found {item!r}.")
    return parts[0], parts[1] if len(parts) == 2 else ""


def _find_layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return unwrap_model(model).get_submodule(name)
    except AttributeError as error:
        raise ConfigError(
            f"layer_mappings names {name!r}, which {type(model).__name__} does not have. See model.named_modules()."
        ) from error


def _make_recorder(features: dict[tuple[int, int], torch.Tensor], key: tuple[int, int], process: Any) -> Any:
    """Make a forward hook, which refers to the features, but not to the loss that owns them."""

    def record(module: nn.Module, _inputs: Any, output: Any) -> None:
        if module.training or key[1] == 1:
            features[key] = _select_output(output, process)

    return record


def _select_output(output: Any, process: Any) -> Any:
    if callable(process):
        return process(output)
    if process == "":
        return output
    if isinstance(output, Mapping) and process in output:
        return output[process]
    if isinstance(output, list | tuple) and process.isdecimal() and int(process) < len(output):
        return output[int(process)]
    raise ConfigError(
        f"The process {process!r} must be a key of a layer's output, the digits of an index, or a function; the output "
        f"is of type {type(output).__name__}."
    )


def _to_probabilities(values: torch.Tensor) -> torch.Tensor:
    """Apply softmax to values that are not probabilities."""
    return values.softmax(dim=-1) if bool(((values.sum(dim=-1) - 1).abs() > TOLERANCE).any()) else values


def _remove_hooks(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()
