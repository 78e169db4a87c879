"""Define the configurations of distillation, with the keys of Intel Neural Compressor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.compat.neural_compressor.utils.utility import DotDict

__all__ = [
    "DistillationConfig",
    "IntermediateLayersKnowledgeDistillationLossConfig",
    "KnowledgeDistillationLossConfig",
    "SelfKnowledgeDistillationLossConfig",
]


class KnowledgeDistillationLossConfig:
    """Train with the outputs of a teacher in addition to the labels.

    The loss is ``loss_weights[0]`` · the loss of the loop + ``loss_weights[1]`` · temperature² · the loss between the
    outputs of student and teacher, both divided by the temperature.

    Args:
        temperature: Divisor of the logits, > 0.
        loss_types: The loss for the labels (``"CE"`` or ``"MSE"``), which applies only if the criterion is called with
            labels; the loss for the teacher's outputs (``"CE"``, ``"KL"`` or ``"MSE"``).
        loss_weights: Weights of the two losses, each in [0, 1], with the sum 1.

    Attributes:
        config: The name of the loss → its settings.

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531.

    Examples:
        >>> config = KnowledgeDistillationLossConfig(temperature=2.0).config
        >>> config.KnowledgeDistillationLoss.loss_types
        ['CE', 'CE']
    """

    def __init__(
        self,
        temperature: float = 1.0,
        loss_types: Sequence[str] = ("CE", "CE"),
        loss_weights: Sequence[float] = (0.5, 0.5),
    ) -> None:
        settings = {"temperature": temperature, "loss_types": list(loss_types), "loss_weights": list(loss_weights)}
        self.config = DotDict({"KnowledgeDistillationLoss": settings})


class IntermediateLayersKnowledgeDistillationLossConfig:
    """Train with the outputs of a teacher's layers.

    Args:
        layer_mappings: Pairs of layers: ``[(student_layer, process), (teacher_layer, process)]``. ``process`` selects
            from the layer's output: a key, the digits of an index, or a function; ``""`` or none: the output itself.
            ``[(layer,)]`` or ``[layer]`` stands for the same layer in both, and the name ``""`` for the whole model.
        loss_types: Loss of each pair: ``"MSE"`` (default), ``"KL"`` or ``"L1"``.
        loss_weights: Weight of each pair, in [0, 1]; by default, equal weights with the sum 1.
        add_origin_loss: Whether to add the loss of the loop.

    Attributes:
        config: The name of the loss → its settings.

    Source:
        Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550.

    Examples:
        >>> config = IntermediateLayersKnowledgeDistillationLossConfig([["layer1"]]).config
        >>> config.IntermediateLayersKnowledgeDistillationLoss.layer_mappings
        [['layer1']]
    """

    def __init__(
        self,
        layer_mappings: Sequence[Any] = (),
        loss_types: Sequence[str] = (),
        loss_weights: Sequence[float] = (),
        add_origin_loss: bool = False,
    ) -> None:
        settings = {
            "layer_mappings": list(layer_mappings),
            "loss_types": list(loss_types),
            "loss_weights": list(loss_weights),
            "add_origin_loss": add_origin_loss,
        }
        self.config = DotDict({"IntermediateLayersKnowledgeDistillationLoss": settings})


class SelfKnowledgeDistillationLossConfig:
    """Train the shallow parts of a model with the outputs of its deepest part.

    The loop passes the outputs to ``on_after_compute_loss`` as a dictionary with the names below. The loss is the sum
    over all pairs, each with the weight of its group.

    Args:
        layer_mappings: Groups of pairs ``[student_output, teacher_output]``.
        temperature: Divisor of the outputs of the second group, > 0.
        loss_types: Loss of each group: ``"CE"`` (default), ``"KL"`` or ``"L2"`` (the Euclidean distance).
        loss_weights: Weight of each group, in [0, 1]; by default, equal weights with the sum 1.
        add_origin_loss: Whether to add the loss of the loop.

    Attributes:
        config: The name of the loss → its settings.

    Source:
        Zhang et al., "Be Your Own Teacher", arXiv:1905.08094.

    Examples:
        >>> config = SelfKnowledgeDistillationLossConfig([[["fc1", "fc3"], ["fc2", "fc3"]]])
        >>> config.config.SelfKnowledgeDistillationLoss.temperature
        1.0
    """

    def __init__(
        self,
        layer_mappings: Sequence[Any] = (),
        temperature: float = 1.0,
        loss_types: Sequence[str] = (),
        loss_weights: Sequence[float] = (),
        add_origin_loss: bool = False,
    ) -> None:
        settings = {
            "layer_mappings": list(layer_mappings),
            "temperature": temperature,
            "loss_types": list(loss_types),
            "loss_weights": list(loss_weights),
            "add_origin_loss": add_origin_loss,
        }
        self.config = DotDict({"SelfKnowledgeDistillationLoss": settings})


class DistillationConfig:
    """The configuration of distillation for `prepare_compression`, alone or in a list with pruning.

    Args:
        teacher_model: A torch module; it runs in evaluation mode, without gradients. Without one, the loop passes
            ``teacher_output`` to ``on_after_compute_loss``.
        criterion: The configuration of the loss; by default, `KnowledgeDistillationLossConfig`.
        optimizer: Has no effect.

    Examples:
        >>> import torch
        >>> from secateur.compat.neural_compressor.config import WeightPruningConfig
        >>> from secateur.compat.neural_compressor.training import prepare_compression
        >>> student, teacher = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
        >>> pruning = WeightPruningConfig([{"op_names": [".*"]}], target_sparsity=0.5)
        >>> manager = prepare_compression(student, [pruning, DistillationConfig(teacher)])
        >>> x = torch.randn(2, 8)
        >>> output = student(x)
        >>> loss = manager.callbacks.on_after_compute_loss(x, output, output.square().mean())
        >>> loss.requires_grad
        True
    """

    def __init__(self, teacher_model: Any = None, criterion: Any = None, optimizer: Any = None) -> None:
        self.teacher_model = teacher_model
        self.criterion = KnowledgeDistillationLossConfig() if criterion is None else criterion
        self.optimizer = optimizer
