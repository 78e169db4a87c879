"""Test the refiners of layers that read pruned units."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from secateur.refiners import BiasCompensation, Ridge
from secateur.solvers import ConsumerUpdate, UnitConsumer
from solvers.unit_problems import SHAPES, fit, make_case


def cut(consumer: UnitConsumer, keep: torch.Tensor) -> ConsumerUpdate:
    return ConsumerUpdate(weight=consumer.weight * consumer.mask_features(keep))


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_fits_whatever_came_before(shape: str) -> None:
    case = make_case(SHAPES[shape])
    keep = torch.arange(case.problem.units) % 3 != 0
    for consumer, inputs in zip(case.problem.consumers, case.inputs, strict=True):
        expected = fit(consumer, inputs, keep, damping=0.05)
        before = cut(consumer, keep)
        for update in (before, replace(before, weight=3 * before.weight)):
            refined = Ridge(damping=0.05).refine_consumer(consumer, keep, update)
            scale = np.abs(expected.weight).max()
            np.testing.assert_allclose(refined.weight.numpy(), expected.weight, rtol=5e-3, atol=1e-3 * scale)
            assert (refined.bias_change is not None) == consumer.has_bias


def test_the_bias_replaces_the_mean_of_the_removed_units() -> None:
    case = make_case(SHAPES["bias"])
    [consumer], [inputs] = case.problem.consumers, case.inputs
    keep = torch.arange(case.problem.units) % 2 == 0
    update = BiasCompensation().refine_consumer(consumer, keep, cut(consumer, keep))
    removed = ~consumer.mask_features(keep)
    assert update.bias_change is not None
    torch.testing.assert_close(update.bias_change, consumer.weight[:, removed] @ inputs.mean(dim=0)[removed])
    assert torch.equal(update.weight, cut(consumer, keep).weight)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_mean_output_stays_the_same_if_kept_weights_changed(scale: float) -> None:
    case = make_case(SHAPES["bias"])
    [consumer], [inputs] = case.problem.consumers, case.inputs
    keep = torch.arange(case.problem.units) > 1
    changed = replace(cut(consumer, keep), weight=scale * cut(consumer, keep).weight, bias_change=torch.ones(5))
    update = BiasCompensation().refine_consumer(consumer, keep, changed)
    assert update.bias_change is not None
    outputs = (inputs @ update.weight.T + update.bias_change).mean(dim=0)
    torch.testing.assert_close(outputs, (inputs @ consumer.weight.T).mean(dim=0), rtol=1e-4, atol=1e-3)


def test_the_bias_of_ridge_is_the_one_that_compensates() -> None:
    [consumer] = make_case(SHAPES["bias"]).problem.consumers
    keep = torch.arange(6) > 1
    ridge = Ridge().refine_consumer(consumer, keep, cut(consumer, keep))
    both = BiasCompensation().refine_consumer(consumer, keep, ridge)
    assert ridge.bias_change is not None
    assert both.bias_change is not None
    torch.testing.assert_close(both.bias_change, ridge.bias_change, rtol=1e-4, atol=1e-4)


def test_layers_without_bias_or_means_are_not_compensated() -> None:
    [consumer] = make_case(SHAPES["bias"]).problem.consumers
    keep = torch.arange(6) > 1
    for other in (replace(consumer, has_bias=False), replace(consumer, means=None)):
        assert BiasCompensation().refine_consumer(other, keep, cut(consumer, keep)).bias_change is None
