"""Check the published methods that ``benchmarks/slim_quality.py`` compares with, against their formulas."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("_slim_reference")


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))


def make_branch(reference: Any, layers: nn.Sequential, units: int = 6) -> Any:
    return reference.Branch(kind="neurons", producers=(layers[0],), consumer=layers[2], units=units)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit(reference: Any, layers: nn.Sequential) -> None:
    branch = make_branch(reference, layers, units=3)
    first, last = layers[0].weight.detach(), layers[2].weight.detach()
    norms = [sum(float((w**2).sum()) for w in (first[2 * u : 2 * u + 2], last[:, 2 * u : 2 * u + 2])) for u in range(3)]
    removed = reference.select_by_magnitude(branch, 1)
    assert removed.tolist() == [norm == min(norms) for norm in norms]


def test_flap_removes_the_lowest_standardized_fluctuations_of_all_branches(
    reference: Any, layers: nn.Sequential
) -> None:
    wide = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
    branches = [
        reference.Branch(kind="heads", producers=(layers[0],), consumer=layers[2], units=3),
        reference.Branch(kind="neurons", producers=(wide[0],), consumer=wide[2], units=8),
    ]
    halves = torch.randn(50, 5).split(25)
    moments = reference.record_moments(branches, lambda: [model(half) for model in (layers, wide) for half in halves])

    scores = []
    for model, units, power in ((layers, 3, 2), (wide, 8, 1)):
        fluctuation = (model[:2](torch.cat(halves)).var(0) * model[2].weight.square().sum(0)) ** power
        standardized = (fluctuation - fluctuation.mean()) / fluctuation.std()
        scores += standardized.reshape(units, -1).mean(1).tolist()
    costs = [(30 + 6 + 24) / 3] * 3 + [
        (40 + 8 + 32) / 8
    ] * 8  # weights and bias of the first layer, weights of the second
    lowest = sorted(range(11), key=scores.__getitem__)[:4]

    masks = reference.select_by_flap(branches, moments, sum(costs[unit] for unit in lowest))
    assert torch.cat(masks).nonzero().flatten().tolist() == sorted(lowest)


def test_flap_keeps_the_mean_of_the_outputs(reference: Any, layers: nn.Sequential) -> None:
    branch, inputs = make_branch(reference, layers), torch.randn(50, 5)
    moments = reference.record_moments([branch], lambda: layers(inputs))
    before = layers(inputs).mean(0)
    removed = torch.tensor([True, False, True, False, False, True])
    reference.remove_units(branch, removed, moments[0])
    assert not layers[2].weight[:, removed].any()
    assert not layers[0].bias[removed].any()
    torch.testing.assert_close(layers(inputs).mean(0), before)


def test_a_batch_norm_takes_the_mean_of_what_a_convolution_loses(reference: Any) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)).eval()
    branch = reference.Branch(
        kind="channels", producers=(layers[0],), consumer=layers[2], units=3, norm=layers[3], positions=16
    )
    inputs = torch.full((2, 2, 6, 6), 0.7)  # constant, so that a channel's mean is all it has
    moments = reference.record_moments([branch], lambda: layers(inputs))
    before = layers(inputs)
    reference.remove_units(branch, torch.tensor([True, True, False]), moments[0])
    torch.testing.assert_close(layers(inputs), before)
    assert branch.cost == 16 * (2 * 3 + 3 + 3 * 4 * 9) / 3


@pytest.mark.parametrize(("add_bias", "has_bias"), [(True, True), (False, False)])
def test_a_bias_is_added_only_on_request(reference: Any, *, add_bias: bool, has_bias: bool) -> None:
    layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False))
    branch = make_branch(reference, layers)
    moments = reference.record_moments([branch], lambda: layers(torch.randn(9, 5)))
    reference.remove_units(branch, torch.arange(6) < 2, moments[0], add_bias=add_bias)
    assert (layers[2].bias is not None) is has_bias
