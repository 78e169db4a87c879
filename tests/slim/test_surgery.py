"""Units are removed everywhere, exactly, or nothing changes."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import secateur
from secateur.errors import LayerError
from secateur.graph import AffineMap, Graph
from slim.graphs import CONSUMER, PER_CHANNEL, PRODUCER, Constraints, GraphBuilder, hidden


def zero(model: nn.Module, name: str, axis: int, indices: list[int]) -> None:
    with torch.no_grad():
        model.get_parameter(name).index_fill_(axis, torch.tensor(indices), 0)


def mlp() -> tuple[nn.Module, Graph, torch.Tensor]:
    """Neurons 1, 4 and 5 of eight are not read."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    zero(model, "2.weight", 1, [1, 4, 5])
    return model, hidden(model, "0", "2", 8), torch.randn(4, 6)


def read_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def everything(model: nn.Module) -> dict[str, Any]:
    """The bits, the objects and the attributes of a model."""
    return {
        "bits": {name: read_bytes(value) for name, value in model.state_dict().items()},
        "ids": {name: id(value) for name, value in model.state_dict(keep_vars=True).items()},
        "attributes": {
            name: {key: value for key, value in module.__dict__.items() if isinstance(value, int | tuple | str)}
            for name, module in model.named_modules()
        },
        "extra": {name: "_secateur_sizes" in module.__dict__ for name, module in model.named_modules()},
        "grads": {name: value.requires_grad for name, value in model.named_parameters()},
    }


def test_every_member_loses_the_units_that_nothing_reads() -> None:
    model, graph, inputs = mlp()
    dense, expected = copy.deepcopy(model), model(inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    kept = [0, 2, 3, 6, 7]
    assert torch.equal(model[0].weight, dense[0].weight[kept])
    assert torch.equal(model[0].bias, dense[0].bias[kept])
    assert torch.equal(model[2].weight, dense[2].weight[:, kept])
    assert (model[0].out_features, model[2].in_features, model[0].in_features) == (5, 5, 6)
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)
    (group,) = report.groups
    assert (group.units, group.zero_units, group.removed_units, group.reason) == (8, 3, 3, "")
    assert (report.weights_before, report.weights) == (83, 53)
    assert report.probe_difference == 0.0
    assert report.proof_difference <= 1e-5


def test_modes_random_numbers_and_gradients_are_left_alone() -> None:
    model, graph, inputs = mlp()
    model.add_module("drop", nn.Dropout(0.5))
    model[0].weight.requires_grad_(False)
    model[2].weight.grad = torch.arange(24.0).reshape(3, 8)
    model[1].eval()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    secateur.slim(model, example_inputs=inputs, graph=graph)
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in model] == [True, False, True, True]
    assert [weight.requires_grad for weight in model.parameters()] == [False, True, True, True]
    assert model[2].weight.grad[0].tolist() == [0.0, 2.0, 3.0, 6.0, 7.0]


def test_nothing_to_remove_leaves_the_same_objects() -> None:
    model, graph, inputs = mlp()
    with torch.no_grad():
        model[2].weight.fill_(1)
    before = everything(model)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert report.removed_units == 0
    assert everything(model) == before


def test_slimming_twice_works() -> None:
    model, graph, inputs = mlp()
    secateur.slim(model, example_inputs=inputs, graph=graph)
    zero(model, "2.weight", 1, [0])
    expected = model(inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=hidden(model, "0", "2", 5))
    assert report.removed_units == 1
    assert report.attributes == {"0": {"out_features": 4}, "2": {"in_features": 4}}
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)


class ConvNet(nn.Module):
    """A convolution, a depthwise one, norms, and a classifier on flattened channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.scale = nn.PReLU(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.head = nn.Linear(4 * 8 * 8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.scale(self.depthwise(self.norm(self.first(images))))
        return self.head(torch.relu(self.up(hidden)).flatten(1))


def conv_net() -> tuple[nn.Module, Graph, torch.Tensor]:
    torch.manual_seed(0)
    model = ConvNet()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    builder = GraphBuilder(model).add(
        "first",
        6,
        ("first.weight", 0, PRODUCER),
        *((f"{name}", 0, PER_CHANNEL) for name in ("first.bias", "norm.weight", "norm.bias", "norm.running_mean")),
        *((f"{name}", 0, PER_CHANNEL) for name in ("norm.running_var", "depthwise.weight", "depthwise.bias")),
        ("scale.weight", 0, PER_CHANNEL),
        ("up.weight", 0, CONSUMER),
    )
    builder.add("up", 4, ("up.weight", 1, PRODUCER), ("up.bias", 0, PER_CHANNEL), ("head.weight", 1, CONSUMER))
    zero(model, "up.weight", 0, [0, 3])
    zero(model, "head.weight", 1, [*range(64, 128)])
    return model, builder.build(), torch.randn(2, 3, 4, 4)


def test_convolutions_norms_and_flattened_channels() -> None:
    model, graph, images = conv_net()
    expected = model.eval()(images)
    report = secateur.slim(model, example_inputs=images, graph=graph)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    assert [group.removed_units for group in report.groups] == [2, 1]
    assert (model.first.out_channels, model.norm.num_features, model.norm.running_var.shape[0]) == (4, 4, 4)
    assert (model.depthwise.in_channels, model.depthwise.out_channels, model.depthwise.groups) == (4, 4, 4)
    assert (model.scale.num_parameters, model.up.in_channels, model.up.out_channels) == (4, 4, 3)
    assert model.head.in_features == 192
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied.train()(images), model.train()(images))


def test_the_memory_format_stays() -> None:
    model, graph, images = conv_net()
    model = model.to(memory_format=torch.channels_last)
    secateur.slim(model, example_inputs=images, graph=graph)
    assert model.first.weight.is_contiguous(memory_format=torch.channels_last)
    assert not model.first.weight.is_contiguous()


class Tied(nn.Module):
    """A language model with tied embeddings, and the same perceptron twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 4)
        self.again = self.first
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.copy_of_second = nn.Linear(6, 4)
        self.copy_of_second.weight = self.second.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        stream = self.embedding(tokens)
        stream = stream + self.second(self.first(stream).relu())
        stream = stream + self.copy_of_second(self.again(stream).relu())
        return self.head(stream)


def test_ties_stay_tied() -> None:
    torch.manual_seed(0)
    model, tokens = Tied(), torch.arange(6).reshape(2, 3)
    members = [
        ("first.weight", 0, PRODUCER, None, ("again.weight",)),
        ("first.bias", 0, PER_CHANNEL),
        ("second.weight", 1, CONSUMER, None, ("copy_of_second.weight",)),
    ]
    zero(model, "second.weight", 1, [2, 3])
    expected = model(tokens)
    graph = GraphBuilder(model).add("hidden", 6, *members).build()
    secateur.slim(model, example_inputs=tokens, graph=graph)
    assert model.second.weight is model.copy_of_second.weight
    assert (model.second.in_features, model.copy_of_second.in_features) == (4, 4)
    assert model.again is model.first
    assert model.head.weight is model.embedding.weight
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-5)


# What cannot be removed, and why


@pytest.mark.parametrize(
    ("zeros", "constraints", "kept"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], Constraints(), [0]),  # at least one stays, the one with the lowest index
        ([1, 4, 5], Constraints(multiple=4), [0, 1, 2, 3, 4, 5, 6, 7]),
        ([1, 2, 4, 5, 6], Constraints(multiple=4), [0, 1, 3, 7]),
        ([0, 1, 2, 4, 7], Constraints(equal_parts=2), [0, 3, 5, 6]),
        ([0, 1, 2], Constraints(minimum=7), [0, 1, 3, 4, 5, 6, 7]),
    ],
)
def test_constraints_keep_zero_units_and_never_remove_others(
    zeros: list[int], constraints: Constraints, kept: list[int]
) -> None:
    model, _, inputs = mlp()
    with torch.no_grad():
        model[2].weight.fill_(1)
    zero(model, "2.weight", 1, zeros)
    dense = copy.deepcopy(model)
    graph = hidden(model, "0", "2", 8, constraints=constraints)
    (group,) = secateur.slim(model, example_inputs=inputs, graph=graph).groups
    assert torch.equal(model[0].weight, dense[0].weight[kept])
    assert group.kept_units == len(kept)
    assert ("constraints" in group.reason) == (group.removed_units < len(zeros))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"reason": "aten.roll in 'x'"}, "aten.roll in 'x'"), ({"inexact": "LayerNorm 'n'"}, "not exact: LayerNorm 'n'")],
)
def test_groups_with_an_obstacle_stay(options: dict[str, str], reason: str) -> None:
    model, _, inputs = mlp()
    before = everything(model)
    report = secateur.slim(model, example_inputs=inputs, graph=hidden(model, "0", "2", 8, **options))
    assert report.groups[0].removed_units == 0
    assert reason in report.groups[0].reason
    assert everything(model) == before


def test_a_group_without_readers_stays() -> None:
    model, _, inputs = mlp()
    graph = GraphBuilder(model).add("rows", 8, ("0.weight", 0, PRODUCER)).build()
    (group,) = secateur.slim(model, example_inputs=inputs, graph=graph).groups
    assert (group.zero_units, group.removed_units) == (0, 0)
    assert "no parameter reads its units" in group.reason


def test_inexact_groups_go_when_allowed_and_the_difference_is_reported() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    zero(model, "2.weight", 1, [1, 4])
    extra = [("1.weight", 0, PER_CHANNEL), ("1.bias", 0, PER_CHANNEL)]
    graph, inputs = hidden(model, "0", "2", 8, *extra, inexact="statistics"), torch.randn(2, 6)
    expected = model(inputs).detach()
    report = secateur.slim(model, example_inputs=inputs, graph=graph, allow_inexact=True)
    change = (model(inputs).detach() - expected).abs().max() / max(1.0, float(expected.abs().max()))
    assert report.inexact_difference == pytest.approx(float(change), rel=1e-5)
    assert report.inexact_difference > 1e-3
    assert report.proof_difference == report.probe_difference == 0.0
    assert model[1].normalized_shape == (6,)
    assert "not exact changed the outputs by" in str(report)


def test_uniform_widths_keep_zero_units_of_narrower_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 8) if number % 2 == 0 else nn.Linear(8, 4) for number in range(4)))
    zero(model, "1.weight", 1, [0, 1, 2])
    zero(model, "3.weight", 1, [4])
    builder = GraphBuilder(model)
    for first in (0, 2):
        members = (f"{first}.weight", 0, PRODUCER), (f"{first}.bias", 0, PER_CHANNEL)
        builder.add(str(first), 8, *members, (f"{first + 1}.weight", 1, CONSUMER))
    inputs = torch.randn(2, 4)
    other = copy.deepcopy(model)
    report = secateur.slim(model, example_inputs=inputs, graph=builder.build(), mode="uniform")
    assert [group.removed_units for group in report.groups] == [1, 1]
    assert "equal widths" in report.groups[0].reason
    report = secateur.slim(other, example_inputs=inputs, graph=builder.build())
    assert [group.removed_units for group in report.groups] == [3, 1]


# Graphs that are wrong: the probe or the proof fails, names the group, and nothing changes


def spoil_missing_reader() -> tuple[nn.Module, Graph, torch.Tensor]:
    """The columns of the third layer read the same units."""
    torch.manual_seed(0)

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            units = self.up(inputs)
            return self.left(units) + self.right(units)

    model = Fork()
    zero(model, "left.weight", 1, [1])
    return model, hidden(model, "up", "left", 8), torch.randn(2, 6)


def spoil_offset() -> tuple[nn.Module, Graph, torch.Tensor]:
    """Unit u is read by column u, and not by column u + 1."""
    model, _, inputs = mlp()
    members = [("0.weight", 0, PRODUCER, AffineMap(units=7)), ("0.bias", 0, PER_CHANNEL, AffineMap(units=7))]
    consumer = ("2.weight", 1, CONSUMER, AffineMap(units=7, offset=1))
    return model, GraphBuilder(model).add("hidden", 7, *members, consumer).build(), inputs


def spoil_missing_bias() -> tuple[nn.Module, Graph, torch.Tensor]:
    model, _, inputs = mlp()
    members = [("0.weight", 0, PRODUCER), ("2.weight", 1, CONSUMER)]
    return model, GraphBuilder(model).add("hidden", 8, *members).build(), inputs


def spoil_axis() -> tuple[nn.Module, Graph, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    zero(model, "2.weight", 1, [1])
    members = [("0.weight", 1, PRODUCER), ("0.bias", 0, PER_CHANNEL), ("2.weight", 1, CONSUMER)]
    return model, GraphBuilder(model).add("hidden", 8, *members).build(), torch.randn(2, 8)


def spoil_norm() -> tuple[nn.Module, Graph, torch.Tensor]:
    """Statistics over the units are not exact, and the graph does not say so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    zero(model, "2.weight", 1, [1])
    extra = [("1.weight", 0, PER_CHANNEL), ("1.bias", 0, PER_CHANNEL)]
    return model, hidden(model, "0", "2", 8, *extra), torch.randn(2, 6)


BY_PROBE = "units that nothing should read change the outputs"
BY_PROOF = "the model without the removed units fails"


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (spoil_missing_reader, BY_PROBE),
        (spoil_offset, BY_PROBE),
        (spoil_axis, BY_PROBE),
        (spoil_norm, BY_PROBE),
        (spoil_missing_bias, BY_PROOF),
    ],
)
def test_a_wrong_graph_changes_nothing(spoil: Callable[[], tuple[nn.Module, Graph, torch.Tensor]], check: str) -> None:
    model, graph, inputs = spoil()
    before = everything(model)
    with pytest.raises(LayerError, match=rf"group 'hidden': {check}.*Nothing was removed"):
        secateur.slim(model, example_inputs=inputs, graph=graph)
    assert everything(model) == before


@pytest.mark.parametrize("wrong", range(4))
def test_the_wrong_group_is_named(wrong: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)))
    builder = GraphBuilder(model)
    for number in range(4):
        zero(model, f"{number + 1}.weight", 1, [1, 2])
        offset = AffineMap(units=7, offset=int(number == wrong))
        members = [(f"{number}.weight", 0, PRODUCER, offset), (f"{number}.bias", 0, PER_CHANNEL, offset)]
        builder.add(f"group {number}", 7, *members, (f"{number + 1}.weight", 1, CONSUMER, AffineMap(units=7)))
    before = everything(model)
    with pytest.raises(LayerError, match=f"group 'group {wrong}'"):
        secateur.slim(model, example_inputs=torch.randn(2, 8), graph=builder.build())
    assert everything(model) == before


def test_a_graph_of_another_model_is_refused() -> None:
    model, graph, inputs = mlp()
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
    with pytest.raises(LayerError, match=r"'0.weight' must have shape \(8, 6\), found shape \(9, 6\)"):
        secateur.slim(other, example_inputs=inputs, graph=graph)
    del model


def test_an_interrupt_while_proving_changes_nothing() -> None:
    model, graph, inputs = mlp()
    before = everything(model)

    def interrupt(layer: nn.Module, _: Any) -> None:
        if layer.out_features == 5:
            raise KeyboardInterrupt

    hook = model[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        secateur.slim(model, example_inputs=inputs, graph=graph)
    hook.remove()
    assert everything(model) == before


# Numbers in code


class Attention(nn.Module):
    """Attention whose code has the number of heads as an attribute, unlike the size of a head."""

    def __init__(self, heads: int = 4, size: int = 3) -> None:
        super().__init__()
        self.depth = heads  # the same number, with another meaning
        self.count = heads
        self.size = size
        self.qkv = nn.Linear(10, 3 * heads * size)
        self.out = nn.Linear(heads * size, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        batch, length, _ = inputs.shape
        qkv = self.qkv(inputs).view(batch, length, 3, self.count, self.size).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv) / self.depth
        return self.out(mixed.transpose(1, 2).flatten(2))


class Hardcoded(Attention):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        batch, length, _ = inputs.shape
        qkv = self.qkv(inputs).view(batch, length, 3, 2 + 2, self.size).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv)
        return self.out(mixed.transpose(1, 2).flatten(2))


class TupleAttention(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.count = self.depth = None
        self.sizes = (3, 4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        batch, length, _ = inputs.shape
        qkv = self.qkv(inputs).view(batch, length, *self.sizes).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*qkv)
        return self.out(mixed.transpose(1, 2).flatten(2))


def attention_graph(model: nn.Module, prefix: str = "") -> Graph:
    rows = [AffineMap(units=4, width=3, offset=part * 12) for part in range(3)]
    members = [(f"{prefix}qkv.weight", 0, PRODUCER, index_map) for index_map in rows]
    members += [(f"{prefix}qkv.bias", 0, PER_CHANNEL, index_map) for index_map in rows]
    members.append((f"{prefix}out.weight", 1, CONSUMER))
    builder = GraphBuilder(model).add("heads", 4, *members, kind="heads")
    return builder.use_size(prefix.rstrip("."), "aten.view", 4).build()


@pytest.mark.parametrize("kind", [Attention, TupleAttention])
def test_the_attribute_with_the_number_of_heads_is_found(kind: type[Attention]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind())
    zero(model, "0.out.weight", 1, [3, 4, 5])
    inputs = torch.randn(2, 5, 10)
    expected = model(inputs)
    report = secateur.slim(model, example_inputs=inputs, graph=attention_graph(model, "0."))
    torch.testing.assert_close(model(inputs), expected, rtol=0, atol=1e-5)
    assert report.attributes["0"] == ({"count": 3} if kind is Attention else {"sizes": (3, 3, 3)})
    assert model[0].qkv.out_features == 27


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ({"depth": 7, "count": 7}, "no attribute of the module contains that number"),
        ({}, "changing the attributes that contain it does not help"),
    ],
)
def test_a_number_without_a_fitting_attribute_keeps_the_group(
    numbers: dict[str, int], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Hardcoded())
    vars(model[0]).update(numbers)
    zero(model, "0.out.weight", 1, [3, 4, 5])
    before = everything(model)
    report = secateur.slim(model, example_inputs=torch.randn(2, 5, 10), graph=attention_graph(model, "0."))
    assert everything(model) == before
    (row,) = [group for group in report.groups if group.name == "heads"]
    assert (row.zero_units, row.removed_units) == (1, 0)
    assert row.reason == f"the code of '0' passes 4 to aten.view, which must become 3, and {reason}"
    assert caplog.messages == [
        f"Zero units stay in 'heads': {row.reason}. To remove them, take the number from an attribute of the module, "
        f"or from the shape of a tensor."
    ]


class Block(nn.Module):
    def __init__(self, **attributes: int) -> None:
        super().__init__()
        self.__dict__.update(attributes)
        self.up, self.mid, self.down = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.down(self.mid(self.up(inputs).relu()).relu())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"intermediate_size": 8, "unrelated": 8}, {"intermediate_size": 7, "unrelated": 8}),
        ({"hidden_dim": 8}, {"hidden_dim": 7}),
        ({"hidden_dim": 8, "inner_dim": 8}, {"hidden_dim": 8, "inner_dim": 7}),  # the width of the model, by chance
        ({"mlp_dim": 7, "ffn_dim": 8}, {"mlp_dim": 6, "ffn_dim": 7}),  # each once, although 8 becomes 7 and 7 becomes 6
    ],
)
def test_descriptive_attributes_follow(before: dict[str, int], after: dict[str, int]) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(Block(**before)), torch.randn(2, 6)
    zero(model, "0.mid.weight", 1, [0])
    zero(model, "0.down.weight", 1, [0])
    builder = GraphBuilder(model)
    for first, second, units in (("up", "mid", 8), ("mid", "down", 7)):
        members = (f"0.{first}.weight", 0, PRODUCER), (f"0.{first}.bias", 0, PER_CHANNEL)
        builder.add(first, units, *members, (f"0.{second}.weight", 1, CONSUMER))
    secateur.slim(model, example_inputs=inputs, graph=builder.build())
    assert {name: getattr(model[0], name) for name in before} == after


# The result is an ordinary model


def test_the_report() -> None:
    model, graph, inputs = mlp()
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    text = str(report)
    assert "Removed 3 units: 83 parameters before, 53 after (-36.1%)." in text
    assert "hidden" in text
    assert report.to_dict()["groups"][0]["removed_units"] == 3
    assert report.to_dict()["attributes"] == {"0": {"out_features": 5}, "2": {"in_features": 5}}
    assert "<table" in report._repr_html_()
    assert np.isclose(report.removed_share, 30 / 83)


def test_the_result_can_be_exported_compiled_and_pruned() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    zero(model, "2.weight", 1, [*range(16)])
    inputs = torch.randn(4, 16)
    secateur.slim(model, example_inputs=inputs, graph=hidden(model, "0", "2", 32))
    expected = model(inputs)
    exported = torch.export.export(model, (inputs,), strict=False).module()
    torch.testing.assert_close(exported(inputs), expected)
    torch.testing.assert_close(torch.compile(model, backend="eager")(inputs), expected)
    report = secateur.prune(model, {"pattern": "4x1", "target_sparsity": 0.5})
    assert report.sparsity == 0.5
    expected = model(inputs)
    compiled, _ = secateur.runtime.compile(model.eval(), inputs)
    torch.testing.assert_close(compiled(inputs), expected, rtol=1e-5, atol=1e-5)


def test_models_that_amplify_rounding_get_a_greater_tolerance() -> None:
    class Chaotic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.mix = nn.Linear(8, 400), nn.Linear(400, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.down(self.up(x).relu())
            for _ in range(5):
                x = torch.sin(8 * self.mix(x))
            return x

    torch.manual_seed(0)
    model, inputs = Chaotic(), torch.rand(64, 8)
    with torch.no_grad():
        model.down.weight[:, ::2] = 0
        masked = model(inputs)
    assert secateur.slim(model, example_inputs=inputs).removed_units == 200
    assert (model(inputs) - masked).abs().max() > 1e-5


def test_who_holds_an_old_parameter_sees_what_stayed() -> None:
    """The dense weight is freed, so that the model is never in memory twice; it is not left without values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    zero(model, "2.weight", 1, [1, 2])
    old = model[0].weight
    secateur.slim(model, example_inputs=torch.randn(2, 4))
    assert model[0].weight is not old
    assert torch.equal(old, model[0].weight)
    assert old.data_ptr() == model[0].weight.data_ptr()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_failure_gives_back_the_dense_weights(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)).to(memory_format=memory_format)
    zero(model, "1.weight", 1, [1, 2])
    tensors, before = dict(model.named_parameters()), everything(model)
    graph = secateur.graph.trace(model, torch.randn(2, 3, 8, 8))
    (group,) = [group for group in graph.groups if group.obstacle is None]
    without = dataclasses.replace(group, members=tuple(m for m in group.members if m.parameter != "0.bias"))
    wrong = dataclasses.replace(graph, groups=(without,))
    with pytest.raises(LayerError, match="Nothing was removed"):
        secateur.slim(model, example_inputs=torch.randn(2, 3, 8, 8), graph=wrong)
    assert everything(model) == before
    assert all(model.get_parameter(name) is tensor for name, tensor in tensors.items())
    assert model[0].weight.is_contiguous(memory_format=memory_format)
