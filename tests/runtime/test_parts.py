"""What `compile` is made of, each by itself."""

import time

import pytest
import torch
import transformers
from torch import nn

from secateur.runtime.pytorch.channels import ChannelLinear
from secateur.runtime.pytorch.timing import medians


@pytest.mark.parametrize("outputs", [(), (0, 5)])
@pytest.mark.parametrize("inputs", [(), (1, 2, 7)])
@pytest.mark.parametrize("kind", ["linear", "without bias", "conv1d"])
def test_a_smaller_product_is_the_dense_one(kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
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


def test_medians_belong_to_their_calls() -> None:
    slow, fast = medians([lambda: time.sleep(0.004), lambda: None], torch.device("cpu"), 0.0)
    assert slow > 0.003 > fast
