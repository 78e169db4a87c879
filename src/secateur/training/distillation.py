"""Train a model towards the outputs of a teacher, usually the dense model. Importing this module imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from secateur._packages import require_packages
from secateur._wording import format_list
from secateur.errors import ConfigError, LayerError, StateError

require_packages("torch", extra="torch")

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from secateur.frameworks.pytorch import unwrap_model  # noqa: E402

__all__ = ["Distillation", "compute_hidden_loss", "compute_logit_loss"]


class Distillation:
    """Adds the distance to a teacher to the loss of a student.

    The result is ``(1 - weight) · loss + weight · KL + hidden_weight · MSE``, where KL compares the logits at a
    temperature and MSE the outputs of `layers`. The teacher computes without gradients. It is not part of a module, so
    checkpoints do not contain it; it is moved to the device of the student.

    Args:
        teacher: The teacher. Call its ``eval()`` first, because its mode is not changed.
        student: The model that is trained. Only needed for `layers`, whose outputs are read with hooks; call `close`,
            or use a ``with`` block, to remove them.
        temperature: Temperature of the logits, > 0. Higher values give more weight to unlikely classes.
        weight: Share of the logits in the loss, in [0, 1].
        hidden_weight: Weight of the hidden states, ≥ 0.
        layers: Names of layers that student and teacher have and whose outputs have the same shape in both.

    Raises:
        ConfigError: A value is out of range, or `layers`, `student` and `hidden_weight` are not given together.
        LayerError: The student or the teacher does not have a layer.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2, for the logits;
        Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, for the hidden states.

    Examples:
        >>> import copy, torch, secateur
        >>> layers = torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> distillation = Distillation(copy.deepcopy(model).eval(), temperature=2.0)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> config = {"target_sparsity": 0.5, "end_step": 10}
        >>> pruner = secateur.prepare(model, config, optimizer)
        >>> for step in range(20):
        ...     inputs, labels = torch.randn(4, 8), torch.randint(3, (4,))
        ...     outputs = model(inputs)
        ...     loss = torch.nn.functional.cross_entropy(outputs, labels)
        ...     distillation(loss, outputs, inputs).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> pruner.finalize().sparsity
        0.5
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        student: nn.Module | None = None,
        temperature: float = 2.0,
        weight: float = 0.5,
        hidden_weight: float = 0.0,
        layers: Iterable[str] = (),
    ) -> None:
        self.teacher = teacher
        self.temperature = temperature
        self.weight = weight
        self.hidden_weight = hidden_weight
        self.layers = tuple(layers)
        _check_values(self, student)
        self._outputs: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []
        if student is not None:
            layers_to_read = _find_layers(student, self.layers, "student")
            _find_layers(teacher, self.layers, "teacher")
            self._hooks = _record_outputs(layers_to_read, self._outputs)

    def __call__(self, loss: torch.Tensor, outputs: Any, /, *inputs: Any, **named_inputs: Any) -> torch.Tensor:
        """Return the loss with the distance to the teacher.

        Args:
            loss: The loss of the student, a scalar.
            outputs: The outputs of the student: logits of shape (..., classes), or an object or mapping with `logits`.
            inputs: The positional inputs of the student.
            named_inputs: Its inputs by name. With an `attention_mask` in the shape of the logits without classes, only
                positions with 1 are compared. `labels` are not passed to the teacher.

        Raises:
            StateError: There are no logits, the shapes of student and teacher differ, or a layer was not called.
        """
        named_inputs.pop("labels", None)
        logits = _find_logits(outputs, "student")
        self._move_teacher(logits.device)
        expected: dict[str, torch.Tensor] = {}
        hooks = _record_outputs(_find_layers(self.teacher, self.layers, "teacher"), expected)
        with _remove_hooks_after(hooks), torch.no_grad():
            target = _find_logits(self.teacher(*inputs, **named_inputs), "teacher")
        kept = _find_positions(logits, named_inputs.get("attention_mask"))
        total = loss * (1 - self.weight)
        if self.weight:
            total = total + self.weight * compute_logit_loss(logits, target, self.temperature, kept)
        for layer in self.layers:
            if layer not in self._outputs or layer not in expected:
                raise StateError(f"layer {layer!r} must be called by both student and teacher, and was not.")
            distance = compute_hidden_loss(self._outputs.pop(layer), expected[layer])
            total = total + self.hidden_weight / len(self.layers) * distance
        return total

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks from the student."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._outputs.clear()

    def _move_teacher(self, device: torch.device) -> None:
        weight = next(self.teacher.parameters(), None)
        if weight is not None and weight.device != device:
            self.teacher.to(device)


def compute_logit_loss(
    logits: torch.Tensor, target: torch.Tensor, temperature: float = 1.0, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the Kullback-Leibler divergence from the teacher's predictions to the student's, times temperature².

    Args:
        logits: The student's, of shape (..., classes).
        target: The teacher's, of the same shape.
        temperature: Divides the logits, > 0. Its square keeps the size of the gradients.
        kept: Booleans of shape (...), ``True`` where positions are compared; ``None``: all are.

    Returns:
        The mean over positions, in float32.

    Raises:
        StateError: The shapes differ.

    Examples:
        >>> logits = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
        >>> compute_logit_loss(logits, logits + 3.0).item()
        0.0
    """
    _check_shapes("logits", logits, target)
    student = functional.log_softmax(logits.float() / temperature, dim=-1)
    teacher = functional.log_softmax(target.float() / temperature, dim=-1)
    divergence = (teacher.exp() * (teacher - student)).sum(dim=-1)
    if kept is not None:
        divergence = torch.where(kept, divergence, 0.0).sum() / kept.sum().clamp_min(1)
    return divergence.mean() * temperature**2


def compute_hidden_loss(hidden: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute the mean squared distance of hidden states, relative to the mean square of the teacher's.

    Args:
        hidden: The student's, of any shape.
        target: The teacher's, of the same shape.

    Raises:
        StateError: The shapes differ.

    Examples:
        >>> compute_hidden_loss(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])).item()
        0.25
    """
    _check_shapes("hidden states", hidden, target)
    size = target.float().square().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return functional.mse_loss(hidden.float(), target.float()) / size


def _check_values(distillation: Distillation, student: nn.Module | None) -> None:
    if not distillation.temperature > 0:
        raise ConfigError(f"temperature must be greater than 0, found {distillation.temperature}.")
    if not 0 <= distillation.weight <= 1:
        raise ConfigError(f"weight must be in [0, 1], found {distillation.weight}.")
    if not distillation.hidden_weight >= 0:
        raise ConfigError(f"hidden_weight must be at least 0, found {distillation.hidden_weight}.")
    if len({student is not None, distillation.hidden_weight > 0, bool(distillation.layers)}) > 1:
        raise ConfigError(
            "student, layers and hidden_weight must be given together: pass all three to compare hidden states, or "
            "none to compare only the logits."
        )


def _find_layers(model: nn.Module, names: Iterable[str], role: str) -> dict[str, nn.Module]:
    modules = dict(unwrap_model(model).named_modules())
    if missing := [name for name in names if name not in modules]:
        raise LayerError(
            f"The {role} must have the layers to compare, and {type(model).__name__} does not have "
            f"{format_list(map(repr, missing))}. Name layers that are in both models."
        )
    return {name: modules[name] for name in names}


def _record_outputs(layers: Mapping[str, nn.Module], outputs: dict[str, torch.Tensor]) -> list[Any]:
    """Add hooks that store the outputs of layers, and return the hooks."""

    def make_hook(name: str) -> Callable[..., None]:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            outputs[name] = output[0] if isinstance(output, tuple | list) else output

        return record

    return [layer.register_forward_hook(make_hook(name)) for name, layer in layers.items()]


@contextmanager
def _remove_hooks_after(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _find_logits(outputs: Any, role: str) -> torch.Tensor:
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if isinstance(found, torch.Tensor) and found.dim() > 0:
        return found
    raise StateError(
        f"The outputs of the {role} must be logits, or have them as `logits`, found {type(outputs).__name__}."
    )


def _find_positions(logits: torch.Tensor, mask: Any) -> torch.Tensor | None:
    if isinstance(mask, torch.Tensor) and mask.shape == logits.shape[:-1]:
        return mask.bool()
    return None


def _check_shapes(what: str, student: torch.Tensor, teacher: torch.Tensor) -> None:
    if student.shape != teacher.shape:
        raise StateError(
            f"The {what} of student and teacher must have the same shape, found {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. The teacher must have the same outputs as the student."
        )
