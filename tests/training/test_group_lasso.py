"""Group lasso, against its formula unit by unit."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from patterns import oracle
from patterns.cases import VIEWS, array_pattern, random_scores
from secateur.training.group_lasso import compute_shrinkage
from training.models import CONFIG, NeverRevived, begin, pruned_units

SPECS = ["1x1", "4x1", "1x4", "1xchannel", "channelx1"]


def brute_force(weight: oracle.Floats, unit_of: oracle.Labels, strength: float) -> oracle.Floats:
    """Each unit's proximal step by itself: w · max(0, 1 - strength · √size / ‖w‖)."""
    shrunk = np.zeros_like(weight)
    for unit in range(unit_of.max() + 1):
        members = unit_of == unit
        norm = math.sqrt((weight[members].astype(np.float64) ** 2).sum())
        threshold = strength * math.sqrt(members.sum())
        shrunk[members] = weight[members] * (1 - threshold / norm if norm > threshold else 0)
    return shrunk


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=10)
@given(strength=st.floats(0, 2), seed=st.integers(0, 9))
def test_shrinkage_is_the_proximal_step(spec: str, strength: float, seed: int) -> None:
    pattern, weights = array_pattern(spec), random_scores(seed=seed)
    for name, view in VIEWS.items():
        found = compute_shrinkage(pattern.units[name], {name: weights[name]}, strength)[name]
        unit_of = oracle.labels(spec, view.canonical_shape)
        assert ((found >= 0) & (found <= 1)).all()
        np.testing.assert_allclose(
            found * weights[name], brute_force(weights[name], unit_of, strength), rtol=1e-4, atol=1e-5
        )


def test_unit_of_zeros_stays_zero() -> None:
    pattern = array_pattern("4x1")
    weights = {name: np.zeros(view.shape, dtype=np.float32) for name, view in VIEWS.items()}
    factors = compute_shrinkage(pattern.units["fc"], weights, 0.0)["fc"]
    assert np.isfinite(factors).all()


def test_run_shrinks_by_the_learning_rate_of_the_group_until_the_end() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 2))
    groups: list[dict[str, Any]] = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1:].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.25)
    config = {**CONFIG, "end_step": 2, "target_sparsity": 0.0, "reg_type": "group_lasso", "reg_coeff": 0.1}
    secateur.prepare(model, {**config, "criterion": "magnitude"}, optimizer=optimizer)
    expected = [model[index].weight.detach().numpy().copy() for index in (0, 1)]
    for step in range(4):
        optimizer.step()
        for index, rate in ((0, 0.5), (1, 0.25)):
            weight = model[index].weight.detach().numpy()
            if step < 2:
                unit_of = oracle.labels("4x1", (8, 1, weight.shape[1]))[:, 0]
                expected[index] = brute_force(expected[index], unit_of, 0.1 * rate)
            np.testing.assert_allclose(weight, expected[index], rtol=1e-5, atol=1e-7)


def test_learning_rate_of_a_restored_optimizer_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    config = {**CONFIG, "criterion": "magnitude", "reg_type": "group_lasso", "reg_coeff": 0.1}
    secateur.prepare(model, config, optimizer=optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_counts_stay_exact_where_it_alone_makes_units_zero() -> None:
    trial = begin({**CONFIG, "criterion": "magnitude", "reg_type": "group_lasso", "reg_coeff": 100.0})
    trial.train(range(10), NeverRevived(trial.pruner))
    assert pruned_units(trial.pruner) == 192
    assert trial.pruner.finalize().is_complete


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_weights_is_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    config = {**CONFIG, "criterion": "magnitude", "reg_type": "group_lasso", "reg_coeff": 0.05}
    secateur.prepare(model, config, optimizer=optimizer)
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert model[0].weight.dtype == dtype
    assert model[0].weight.abs().sum() < before.abs().sum()
