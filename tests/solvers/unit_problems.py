"""Problems of removing units, with the inputs that their statistics are of, and exact losses by least squares.

Legend: N tokens, R rows (output channels), F input features, U units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from oneshot.problems import realistic_inputs, realistic_weight
from secateur.patterns.rounding import KeepRule
from secateur.solvers import UnitConsumer, UnitProblem

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a problem; of several consumers, each has as many features per unit as `widths` says."""

    units: int = 6
    widths: Sequence[int] = (1,)
    unused: int = 0
    rows: int = 5
    tokens: int = 60
    parts: int = 1
    has_bias: bool = False
    has_importance: bool = False


SHAPES = {
    "neurons": Shape(units=12),
    "heads": Shape(widths=(3,)),
    "several consumers": Shape(widths=(2, 1, 3), rows=3),
    "features without unit": Shape(widths=(2,), unused=3),
    "bias": Shape(widths=(2,), has_bias=True),
    "importance": Shape(widths=(1, 2), has_importance=True),
    "parts": Shape(units=12, widths=(2,), parts=3),
    "fewer tokens than features": Shape(units=10, widths=(2,), tokens=7),
}
"""Description → shape."""


@dataclass(frozen=True)
class Case:
    """A problem and the inputs of its consumers."""

    problem: UnitProblem
    inputs: Sequence[torch.Tensor]


def make_consumer(
    inputs_NF: torch.Tensor, weight_RF: torch.Tensor, unit_of_F: torch.Tensor, *, has_bias: bool = False
) -> UnitConsumer:
    return UnitConsumer(
        name="reader",
        weight=weight_RF,
        unit_of=unit_of_F,
        norms=inputs_NF.norm(dim=0),
        gram=inputs_NF.T @ inputs_NF,
        means=inputs_NF.mean(dim=0),
        rows=len(inputs_NF),
        has_bias=has_bias,
    )


def make_case(shape: Shape = Shape(), seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    consumers, inputs = [], []
    for number, width in enumerate(shape.widths):
        features = shape.units * width + shape.unused
        unit_of = torch.full((features,), -1)
        unit_of[: shape.units * width] = torch.arange(shape.units).repeat_interleave(width)
        # Features of a unit need not be next to each other.
        unit_of = unit_of[torch.randperm(features, generator=generator)]
        inputs_NF = realistic_inputs(shape.tokens, features + 2, seed + 100 * number)[:, :features]
        inputs_NF = inputs_NF + inputs_NF.std(dim=0) * torch.randn(features, generator=generator)
        weight_RF = realistic_weight(shape.rows, features, seed + 100 * number)
        consumer = make_consumer(inputs_NF, weight_RF, unit_of, has_bias=shape.has_bias)
        if shape.has_importance:
            object.__setattr__(consumer, "importance", torch.rand(shape.rows, generator=generator) + 0.1)
        consumers.append(consumer)
        inputs.append(inputs_NF)
    problem = UnitProblem(
        name="group",
        rule=KeepRule(units=shape.units, parts=shape.parts, step=shape.parts),
        consumers=consumers,
        scores=torch.rand(shape.units, generator=generator),
        gradients=torch.randn(20, shape.units, generator=generator),
    )
    return Case(problem, inputs)


@dataclass(frozen=True)
class Fit:
    """The best weights and change of the bias for a set of units, and what they lose."""

    weight: Floats
    bias_change: Floats
    loss: float


def fit(consumer: UnitConsumer, inputs_NF: torch.Tensor, keep_U: torch.Tensor, damping: float) -> Fit:
    """Fit the outputs of a consumer by dense least squares, with a row for the damping of each feature that stays."""
    X_NF, W_RF = inputs_NF.double().numpy(), consumer.weight.double().numpy()
    keep_F = consumer.mask_features(keep_U).numpy()
    centered_NF = X_NF - X_NF.mean(axis=0) if consumer.has_bias else X_NF
    strength_F = damping * np.square(centered_NF).sum(axis=0)
    lost_NR = X_NF[:, ~keep_F] @ W_RF[:, ~keep_F].T
    columns = [X_NF[:, keep_F], np.ones((len(X_NF), 1))] if consumer.has_bias else [X_NF[:, keep_F]]
    design_NS = np.hstack(columns)
    penalty_SS = np.diag(np.sqrt(strength_F[keep_F]))
    if consumer.has_bias:
        penalty_SS = np.hstack([penalty_SS, np.zeros((len(penalty_SS), 1))])
    target_NR = np.vstack([lost_NR, np.zeros((len(penalty_SS), len(W_RF)))])
    solution_SR = np.linalg.lstsq(np.vstack([design_NS, penalty_SS]), target_NR, rcond=None)[0]
    error_NR = np.vstack([design_NS, penalty_SS]) @ solution_SR - target_NR
    importance_R = np.ones(len(W_RF)) if consumer.importance is None else consumer.importance.double().numpy()
    removed_R = np.square(W_RF[:, ~keep_F]) @ strength_F[~keep_F]
    weight_RF = W_RF * keep_F
    weight_RF[:, keep_F] += solution_SR[: keep_F.sum()].T
    bias_R = solution_SR[-1] if consumer.has_bias else np.zeros(len(W_RF))
    return Fit(weight_RF, bias_R, float((np.square(error_NR).sum(axis=0) + removed_R) @ importance_R))


def compute_exact_loss(case: Case, keep_U: torch.Tensor, damping: float) -> float:
    """Return the least loss over the weights of all consumers without some units."""
    return sum(
        fit(consumer, inputs_NF, keep_U, damping).loss
        for consumer, inputs_NF in zip(case.problem.consumers, case.inputs, strict=True)
    )
