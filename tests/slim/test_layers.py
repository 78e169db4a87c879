"""The attributes of layers follow from their new tensors, however these are stored."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import secateur
from secateur.errors import LayerError
from slim.graphs import CONSUMER, PER_CHANNEL, PRODUCER, GraphBuilder
from slim.test_surgery import everything, zero

IMAGE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).sin().reshape(2, 3, 6, 6)
VECTOR = torch.linspace(-1, 1, 3 * 4).sin().reshape(3, 4)


@pytest.mark.parametrize(
    ("norm", "gone", "expected"),
    [
        (nn.InstanceNorm2d(8), [1, 2], {"num_features": 6}),
        (nn.BatchNorm2d(8, affine=False), [1, 2], {"num_features": 6}),
        (nn.BatchNorm2d(8, affine=False, track_running_stats=False), [1, 2], {"num_features": 6}),
        (nn.GroupNorm(4, 8, affine=False), [2, 3], {"num_channels": 6, "num_groups": 3}),
        (nn.GroupNorm(4, 8), [2, 3], {"num_channels": 6, "num_groups": 3}),
    ],
)
def test_norms_follow_with_and_without_parameters(norm: nn.Module, gone: list[int], expected: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Conv2d(8, 2, 1)).eval()
    zero(model, "2.weight", 1, gone)
    outputs = model(IMAGE)
    report = secateur.slim(model, example_inputs=IMAGE)
    assert report.attributes["1"] == expected
    torch.testing.assert_close(model(IMAGE), outputs, rtol=0, atol=1e-5)
    assert not norm._forward_pre_hooks


@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, lambda layer: torch_prune.ln_structured(layer, "weight", 0.25, 2, 0)]
)
def test_weights_that_are_computed_before_each_call(wrap: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(4, 8, bias=False)), nn.ReLU(), nn.Linear(8, 2))
    zero(model, "2.weight", 1, [2, 3])
    outputs = model(VECTOR)
    secateur.slim(model, example_inputs=VECTOR)
    assert (model[0].out_features, model[2].in_features) == (6, 6)
    torch.testing.assert_close(model(VECTOR), outputs, rtol=0, atol=1e-5)


def test_masks_of_torch_show_which_units_are_not_read() -> None:
    """The mask is a consumer like the weight: a unit goes if nothing reads either."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    torch_prune.ln_structured(model[2], "weight", 0.25, 2, 1)
    outputs = model(VECTOR)
    assert secateur.slim(model, example_inputs=VECTOR).removed_units == 2
    assert (model[0].out_features, model[2].in_features) == (6, 6)
    torch.testing.assert_close(model(VECTOR), outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("gone", "groups"), [([0, 1], 3), ([0, 2, 4, 6], 4)])
def test_grouped_convolutions_lose_whole_groups_or_as_many_of_each(gone: list[int], groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1))
    builder = GraphBuilder(model)
    if groups == 3:
        units = 4
        members = [("0.weight", 0, PRODUCER), ("0.bias", 0, PER_CHANNEL), ("1.weight", 0, PER_CHANNEL)]
        builder.add("groups", units, *members, ("1.bias", 0, PER_CHANNEL), ("2.weight", 1, CONSUMER))
    else:
        members = [("1.weight", 0, PRODUCER), ("1.bias", 0, PER_CHANNEL), ("2.weight", 1, CONSUMER)]
        builder.add("outputs", 8, *members)
    zero(model, "2.weight", 1, gone)
    outputs = model(IMAGE)
    secateur.slim(model, example_inputs=IMAGE, graph=builder.build())
    assert (model[1].groups, model[1].out_channels) == (groups, 8 - len(gone))
    assert model[1].in_channels == 2 * groups
    torch.testing.assert_close(model(IMAGE), outputs, rtol=0, atol=1e-5)


def test_groups_of_different_sizes_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 2, 1))
    members = [("1.weight", 0, PRODUCER), ("1.bias", 0, PER_CHANNEL), ("2.weight", 1, CONSUMER)]
    zero(model, "2.weight", 1, [0, 1, 2])
    before = everything(model)
    graph = GraphBuilder(model).add("outputs", 8, *members).build()
    with pytest.raises(LayerError, match=r"'1': each of its 4 groups must lose all .* found losses of \[2, 1, 0, 0\]"):
        secateur.slim(model, example_inputs=IMAGE, graph=graph)
    assert everything(model) == before


def test_embeddings_and_bilinear_layers() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.pair = nn.Embedding(10, 6), nn.Bilinear(6, 4, 5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.pair(self.table(tokens), VECTOR)

    torch.manual_seed(0)
    model, tokens = Pairs(), torch.tensor([1, 2, 3])
    zero(model, "pair.weight", 1, [0, 5])
    outputs = model(tokens)
    graph = GraphBuilder(model).add("table", 6, ("table.weight", 1, PRODUCER), ("pair.weight", 1, CONSUMER)).build()
    secateur.slim(model, example_inputs=tokens, graph=graph)
    assert (model.table.embedding_dim, model.pair.in1_features, model.pair.in2_features) == (4, 4, 4)
    torch.testing.assert_close(model(tokens), outputs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    zero(model, "2.weight", 1, [2, 3])
    outputs = model(VECTOR.to(dtype))
    secateur.slim(model, example_inputs=VECTOR.to(dtype))
    assert model[0].weight.dtype == dtype
    torch.testing.assert_close(model(VECTOR.to(dtype)), outputs)
