"""Build the problems of removing units from a model, and write their solutions.

Legend: U units, G groups of a grouped convolution, R rows (output channels) of each, F its input features that are
left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch

from secateur.frameworks.pytorch import write_weight
from secateur.masking.pytorch import ParameterWeight
from secateur.masking.scores import AccumulatedScores
from secateur.oneshot.pytorch.calibration.input_statistics import InputStatistics
from secateur.oneshot.pytorch.units.unit_groups import Reader, UnitGroup, UnitMasks
from secateur.solvers.unit_problem import ConsumerUpdate, UnitConsumer, UnitProblem

__all__ = ["ConsumerPart", "Correction", "LossGradients", "UnitTask", "build_task", "read_statistics", "write_updates"]


NO_INPUTS = "its inputs are all zero"


@dataclass(frozen=True, kw_only=True)
class LossGradients:
    """Gradients of a loss of the dense model, summarized.

    Attributes:
        units: Group → gradient with respect to a mask of each unit, for each sample, of shape (samples, U).
        importance: Layer → mean square of the gradient with respect to each output, of shape (outputs,).
    """

    units: Mapping[str, torch.Tensor] = field(default_factory=dict)
    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Correction(NamedTuple):
    """What a repair adds to the outputs of a layer, because of errors before it; see `UnitConsumer`.

    Attributes:
        products: Its products with the inputs of the layer, of shape (R, F).
        mean: Its mean, of shape (R,).
    """

    products: torch.Tensor
    mean: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """Statistics of the inputs of a layer, for each group of a grouped convolution.

    Attributes:
        norms: Norms of the input features, of shape (G, F).
        means: Their means, of shape (G, F); ``None``: unknown.
        gram: Their Gram matrices, of shape (G, F, F); ``None``: not measured.
        rows: Number of tokens.
    """

    norms: torch.Tensor
    means: torch.Tensor | None = None
    gram: torch.Tensor | None = None
    rows: int = 1


@dataclass(frozen=True, kw_only=True)
class ConsumerPart:
    """A consumer of a problem, and where its weights are in the model.

    Attributes:
        consumer: The consumer.
        reader: Its layer.
        index: Which group of a grouped convolution it is.
        features: The numbers of its input features in the layer; features that other groups have removed are left out.
        is_measured: Whether its inputs were measured, which a repair requires.
    """

    consumer: UnitConsumer
    reader: Reader
    index: int
    features: torch.Tensor
    is_measured: bool


@dataclass(frozen=True, kw_only=True)
class UnitTask:
    """The problem of one group, and where its consumers are in the model."""

    group: UnitGroup
    problem: UnitProblem
    parts: Sequence[ConsumerPart]

    @property
    def blind(self) -> dict[str, str]:
        """Layer that cannot be repaired → the reason."""
        return {part.reader.name: part.reader.blind or NO_INPUTS for part in self.parts if not part.is_measured}


def read_statistics(statistics: InputStatistics) -> dict[str, LayerInputs]:
    """Return layer → its statistics, without layers that read only zeros; layers that read the same share memory.

    Raises:
        CalibrationError: See `InputStatistics.group_layers`.
    """
    found: dict[str, LayerInputs] = {}
    for names in statistics.group_layers(allow_zeros=True):
        norms, (means, _) = statistics.norms(names[0]), statistics.compute_moments(names[0])
        rows, gram = statistics.count_rows(names[0]), statistics.pop_gram(names[0])
        if bool(norms.any()):
            found |= dict.fromkeys(names, LayerInputs(norms=norms, means=means, gram=gram, rows=rows))
    return found


def build_task(
    group: UnitGroup,
    inputs: Mapping[str, LayerInputs],
    masks: UnitMasks,
    gradients: LossGradients,
    *,
    with_gram: bool,
    corrections: Mapping[str, Correction] = MappingProxyType({}),
) -> UnitTask:
    """Build the problem of one group.

    Args:
        group: The group.
        inputs: Layer → statistics of its inputs, for the layers that can be measured.
        masks: The units that are left.
        gradients: The gradients that were measured, if any.
        with_gram: Whether consumers need Gram matrices.
        corrections: Layer → what its repair adds to its outputs.
    """
    parts = []
    for reader in group.readers:
        weight_GRF = reader.read_matrix()
        known = inputs.get(reader.name) or _assume_inputs(weight_GRF, with_gram=with_gram)
        features = masks.find_features(reader)
        importance, correction = gradients.importance.get(reader.name), corrections.get(reader.name)
        for index, weight_RF in enumerate(weight_GRF):
            rows = slice(index * len(weight_RF), (index + 1) * len(weight_RF))
            consumer = UnitConsumer(
                name=reader.name,
                weight=weight_RF[:, features.to(weight_RF.device)],
                unit_of=reader.unit_of[features].to(weight_RF.device),
                norms=_select(known.norms[index], features),
                means=None if known.means is None else _select(known.means[index], features),
                gram=None if known.gram is None else _select_square(known.gram[index], features),
                rows=known.rows,
                has_bias=reader.bias is not None,
                importance=None if importance is None else importance[rows].to(weight_RF.device),
            )
            if correction is not None:
                products_RF = _select_columns(correction.products, features)
                consumer = replace(consumer, correction=products_RF, correction_mean=correction.mean)
            is_measured = reader.name in inputs
            parts.append(
                ConsumerPart(consumer=consumer, reader=reader, index=index, features=features, is_measured=is_measured)
            )
    problem = UnitProblem(
        name=group.name,
        rule=group.rule,
        consumers=[part.consumer for part in parts],
        scores=score_units(group),
        gradients=gradients.units.get(group.name),
    )
    return UnitTask(group=group, problem=problem, parts=parts)


def score_units(group: UnitGroup) -> torch.Tensor:
    """Return the score of each unit by the configured criterion, in float32, of shape (U,).

    Raises:
        ScoreError: A score is ``nan``.
    """
    pattern = group.pattern
    scores = AccumulatedScores(pattern, lambda layer: ParameterWeight(layer, pattern).canonical())
    stream = scores.stream(group.name, None)
    stream.refuse_nan()
    return torch.cat([torch.as_tensor(chunk).float().cpu() for chunk, _ in stream.read()])


def write_updates(task: UnitTask, updates: Sequence[ConsumerUpdate], masks: UnitMasks) -> dict[str, float]:
    """Write the new values of the consumers into the model, set the removed units to zero, and return the errors.

    Args:
        task: The task.
        updates: The new values of each of its parts.
        masks: The units that are left now.

    Returns:
        Layer whose inputs were measured → relative error of its outputs.
    """
    errors: dict[str, float] = {}
    for reader in task.group.readers:
        pairs = [pair for pair in zip(task.parts, updates, strict=True) if pair[0].reader is reader]
        before_GRF = reader.read_matrix()
        after_GRF = before_GRF.clone()
        lost = total = 0.0
        for part, update in pairs:
            after_GRF[part.index][:, part.features.to(after_GRF.device)] = update.weight.to(after_GRF)
            if update.bias_change is not None and reader.bias is not None:
                _add_to_bias(reader, part.index, update.bias_change)
            lost += _measure_energy(part.consumer, part.consumer.weight - update.weight, update.bias_change)
            total += _measure_energy(part.consumer, part.consumer.weight)
        view = reader.pattern.views[reader.name]
        before, after = (view.to_stored(array.reshape(view.canonical_shape)) for array in (before_GRF, after_GRF))
        write_weight(reader.weight.stored, after, before)
        if total > 0 and all(part.is_measured for part, _ in pairs):
            errors[reader.name] = lost / total
    for layer in task.group.layers:
        weight = ParameterWeight(layer, task.group.pattern)
        weight.mask = masks.mask_weight(task.group.pattern, layer)
        weight.apply_mask()
    return errors


def _assume_inputs(weight_GRF: torch.Tensor, *, with_gram: bool) -> LayerInputs:
    """Return the statistics of inputs that were not measured: all features count the same, and are uncorrelated."""
    groups, _, features = weight_GRF.shape
    gram = torch.eye(features, device=weight_GRF.device).expand(groups, -1, -1) if with_gram else None
    return LayerInputs(norms=torch.ones(groups, features, device=weight_GRF.device), gram=gram)


def _select(values_F: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return values_F if len(features) == len(values_F) else values_F[features.to(values_F.device)]


def _select_columns(values_RF: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return values_RF[:, features.to(values_RF.device)]


def _select_square(gram_FF: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    if len(features) == len(gram_FF):
        return gram_FF
    features = features.to(gram_FF.device)
    return gram_FF[features[:, None], features]


def _add_to_bias(reader: Reader, index: int, change_R: torch.Tensor) -> None:
    assert reader.bias is not None
    bias = reader.bias.detach()
    part = bias[index * len(change_R) : (index + 1) * len(change_R)]
    part.copy_(torch.where(change_R == 0, part, (part.float() + change_R).to(part)))


def _measure_energy(
    consumer: UnitConsumer, change_RF: torch.Tensor, bias_change_R: torch.Tensor | None = None
) -> float:
    """Return the squared norm of how much the outputs change, summed over tokens."""
    if consumer.gram is not None:
        energy_R = ((change_RF @ consumer.gram) * change_RF).sum(dim=1)
    else:
        energy_R = (change_RF * consumer.norms).square().sum(dim=1)
    if bias_change_R is not None and consumer.means is not None:
        mean_R = change_RF @ consumer.means
        energy_R = energy_R + consumer.rows * (bias_change_R.square() - 2 * bias_change_R * mean_R)
    return float(energy_R.clamp(min=0).sum())
