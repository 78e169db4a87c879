"""Smaller dense layers, for weights with whole channels of zeros."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from secateur.runtime.pytorch import ChannelConv2d, ChannelLinear


@pytest.mark.parametrize("outputs", [(), (0, 5), range(6)])
@pytest.mark.parametrize("inputs", [(), (1, 2, 7), range(8)])
@pytest.mark.parametrize("kind", ["linear", "without bias", "conv1d"])
def test_smaller_linear_layers_match_dense(kind: str, inputs: Sequence[int], outputs: Sequence[int]) -> None:
    torch.manual_seed(0)
    layer = transformers.pytorch_utils.Conv1D(6, 8) if kind == "conv1d" else nn.Linear(8, 6, bias=kind == "linear")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        matrix = layer.weight.T if kind == "conv1d" else layer.weight
        matrix[list(outputs)] = 0
        matrix[:, list(inputs)] = 0
    kept_outputs, kept_inputs = torch.ones(6, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    kept_outputs[list(outputs)], kept_inputs[list(inputs)] = False, False
    smaller = ChannelLinear(layer, kept_outputs, kept_inputs)
    given = torch.randn(2, 3, 8)
    with torch.no_grad():
        assert torch.allclose(smaller(given), layer(given), atol=1e-6)
    state = smaller.state_dict()
    assert state.keys() == layer.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())
    assert smaller.nbytes == 4 * (6 - len(outputs)) * (8 - len(inputs)) + 8 * (14 - len(outputs) - len(inputs))


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_transforms_of_smaller_layers_use_the_dense_weight(kind: str) -> None:
    torch.manual_seed(0)
    layer = transformers.pytorch_utils.Conv1D(6, 8) if kind == "conv1d" else nn.Linear(8, 6)
    kept = torch.arange(6) > 1
    with torch.no_grad():
        (layer.weight.T if kind == "conv1d" else layer.weight)[~kept] = 0
    smaller = ChannelLinear(layer, kept, torch.ones(8, dtype=torch.bool))
    assert (smaller.in_features, smaller.out_features) == (8, 6)
    given = torch.randn(3, 2, 8)
    with torch.no_grad():
        assert torch.allclose(torch.func.vmap(smaller)(given), layer(given), atol=1e-6)


@pytest.mark.parametrize("outputs", [(), (0, 5), range(6)])
@pytest.mark.parametrize("inputs", [(), (1, 2, 7), range(8)])
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"padding": "same", "dilation": 2},
        {"padding": (1, 2), "stride": 2, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
    ],
)
def test_smaller_convolutions_match_dense(
    options: dict[str, Any], inputs: Sequence[int], outputs: Sequence[int]
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 6, 3, **options)
    with torch.no_grad():
        layer.weight[list(outputs)] = 0
        layer.weight[:, list(inputs)] = 0
    kept_outputs, kept_inputs = torch.ones(6, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    kept_outputs[list(outputs)], kept_inputs[list(inputs)] = False, False
    smaller = ChannelConv2d(layer, kept_outputs, kept_inputs)
    given = torch.randn(2, 8, 9, 10)
    with torch.no_grad():
        assert torch.allclose(smaller(given), layer(given), atol=1e-5)
        assert torch.allclose(smaller(given[0]), layer(given[0]), atol=1e-5)
        last = given.contiguous(memory_format=torch.channels_last)
        assert torch.allclose(smaller(last), layer(last), atol=1e-5)
    state = smaller.state_dict()
    assert state.keys() == layer.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())
