"""Cost models tell what a really slimmed model costs."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import secateur
import tiny_transformers
from graph.probing import fill, run
from secateur._calls.pytorch.example_run import ExampleRun
from secateur.errors import ConfigError
from secateur.graph import Graph, trace
from secateur.slimming.pytorch.costs import ByteCost, CostModel, FlopCost, ParameterCost
from secateur.slimming.pytorch.costs.flops import FORMULAS, count_flops
from secateur.slimming.pytorch.costs.slim_copy import find_fixed_groups
from secateur.slimming.pytorch.depth.depth_plan import find_branches
from zoo import TOKENS, ZOO

FAMILIES = {"llama": TOKENS, "bert": TOKENS, "gpt2": TOKENS}

MODELS = [
    *["Perceptron", "Residual", "DenseNet", "Split", "SplitUnequally", "Depthwise", "DepthwiseMultiplier", "Grouped"],
    *["InvertedBottleneck", "UNet", "GroupedTransposed", "GroupNormalized", "Flattened", "PixelShuffled", "Shuffled"],
    *["Einsum", "Mixer", "GroupedQuery", "FusedAttention", "GatedFused", "StackedExperts", "TiedEmbeddings"],
    *["EmbeddedStream", "EncoderDecoder", "VisionTransformer", "Shared", *FAMILIES],
]
"""Names in the zoo, and families of transformers."""


def create(name: str) -> tuple[nn.Module, Any]:
    """Return a model with random weights in evaluation mode, and its inputs."""
    if name in ZOO:
        return ZOO[name].create(), ZOO[name].inputs
    torch.manual_seed(0)
    return getattr(tiny_transformers, name)().eval(), FAMILIES[name]


def find_group(graph: Graph, name: str) -> int:
    return [group.name for group in graph.groups].index(name)


def choose_widths(graph: Graph, share: float) -> dict[int, int]:
    """Return widths that exact groups can have, about a share of their units, and one less for every other group."""
    return {
        number: group.count_kept(round((1 - share) * group.units) + number % 2)
        for number, group in enumerate(graph.groups)
        if group.obstacle is None and group.inexact is None
    }


def slim(model: nn.Module, inputs: Any, graph: Graph, kept: Mapping[int, int]) -> nn.Module:
    """Return a copy without the last units of each part of each group."""
    model = copy.deepcopy(model)
    for number, count in kept.items():
        group = graph.groups[number]
        length, left = group.units // group.constraints.equal_parts, count // group.constraints.equal_parts
        fill(model, group, [unit for unit in range(group.units) if unit % length >= left], zeros=True)
    report = secateur.slim(model, example_inputs=inputs, graph=graph)
    assert all(report.groups[number].kept_units == count for number, count in kept.items())
    return model


def count_parameters(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def count_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def count_operations(model: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        run(model, inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
def test_costs_are_counted_as_in_the_slimmed_model(name: str) -> None:
    model, inputs = create(name)
    graph = trace(model, inputs)
    kept = choose_widths(graph, 0.45)
    slimmed = slim(model, inputs, graph, kept)
    for kind, count in ((ParameterCost, count_parameters), (ByteCost, count_bytes)):
        costs = kind(model, graph, inputs)
        assert (costs.dense, costs.estimate({})) == (count(model), count(model))
        assert costs.estimate(kept) == costs.measure(kept) == count(slimmed) < costs.dense
    flops = FlopCost(model, graph, inputs)
    assert (flops.dense, flops.estimate({})) == (count_operations(model, inputs), flops.dense)
    assert flops.estimate(kept) == flops.measure(kept) == count_operations(slimmed, inputs) < flops.dense


@pytest.mark.parametrize("name", ["gpt2", "llama", "Mixture"])
def test_whole_branches_are_counted_as_in_the_slimmed_model(name: str) -> None:
    """Without both of its branches, a whole block goes."""
    model, inputs = create(name)
    graph = trace(model, inputs)
    branches = [*find_branches(model, graph, ExampleRun(model, inputs))]
    kept = dict.fromkeys(branches[:2], 0) | {branches[2]: 2}
    slimmed = slim(model, inputs, graph, kept)
    counts = ((ParameterCost, count_parameters), (ByteCost, count_bytes), (FlopCost, count_operations))
    for kind, count in counts:
        costs = kind(model, graph, inputs)
        expected = count(slimmed, inputs) if kind is FlopCost else count(slimmed)
        assert costs.measure(kept) == expected <= costs.estimate(kept) < costs.dense


def test_a_group_that_is_no_branch_keeps_units() -> None:
    model, inputs = create("Perceptron")
    costs = ParameterCost(model, trace(model, inputs), inputs)
    number = find_group(costs.graph, "0")
    assert costs.estimate({number: 0}) == costs.dense - 6 * 8 - 8 - 8 * 10
    with pytest.raises(ConfigError, match="group '0' cannot keep 0 of 8 units, but 1"):
        costs.measure({number: 0})


@pytest.mark.parametrize("name", ["MultiHead", "GroupedQuery"])
def test_attention_is_counted_as_if_written_out(name: str) -> None:
    flops = [count_flops(ZOO[kind].create(), ZOO[kind].inputs) for kind in (name, f"{name}Eager")]
    assert flops[0] == flops[1]


def test_parameters_that_are_passed_to_modules() -> None:
    model, inputs = create("Speech")
    assert count_flops(model, inputs) == count_operations(model.requires_grad_(False), inputs)
    model.head.requires_grad_(True)
    count_flops(model, inputs)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(("name", "fixed"), [("Speech", ["query"]), ("MultiQuery", ["v"]), ("GroupedQuery", [])])
def test_groups_with_a_size_in_the_code_are_fixed(name: str, fixed: list[str]) -> None:
    model, inputs = create(name)
    graph = trace(model, inputs)
    reasons = find_fixed_groups(model, graph, choose_widths(graph, 0.5), inputs)
    assert [graph.groups[number].name for number in reasons] == fixed
    assert all("passes" in reason for reason in reasons.values())


def test_the_model_is_unchanged_by_measurements() -> None:
    model, inputs = create("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = copy.deepcopy(model.config.to_dict())
    costs = FlopCost(model.train(), trace(model, inputs), inputs)
    costs.measure(choose_widths(costs.graph, 0.5))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config


def test_widths_that_constraints_do_not_allow() -> None:
    model, inputs = create("Shuffled")
    costs = FlopCost(model, trace(model, inputs), inputs)
    group = costs.graph.groups[number := find_group(costs.graph, "1")]
    constraints = dataclasses.replace(group.constraints, multiple=4)
    groups = (*costs.graph.groups[:number], dataclasses.replace(group, constraints=constraints))
    costs.graph = Graph(groups=(*groups, *costs.graph.groups[number + 1 :]), sizes=costs.graph.sizes)
    with pytest.raises(ConfigError, match="group '1' cannot keep 3 of 8 units, but 4"):
        costs.measure({number: 3})


@pytest.mark.parametrize("name", ["DenseNet", "UNet", "llama"])
def test_tables_are_estimates_of_one_group_after_another(name: str) -> None:
    model, inputs = create(name)
    costs = ByteCost(model, trace(model, inputs), inputs)
    base = choose_widths(costs.graph, 0.5)
    for number, width in base.items():
        units = costs.graph.groups[number].units
        assert costs.tabulate(number, [units, width, 1]) == [costs.estimate({number: k}) for k in (units, width, 1)]
        assert costs.tabulate(number, [width], base) == CostModel.tabulate(costs, number, [width], base)
        assert costs.tabulate(number, [width], base) == [costs.estimate(base)]


def test_tied_parameters_count_once_and_buffers_only_as_bytes() -> None:
    model, inputs = create("TiedEmbeddings")
    model.double().register_buffer("steps", torch.zeros(5, dtype=torch.int16), persistent=False)
    graph = trace(model, inputs)
    parameters = 10 * 12 + (12 * 8 + 8) + (8 * 12 + 12) + 2 * 12
    assert ParameterCost(model, graph, inputs).dense == parameters
    assert ByteCost(model, graph, inputs).dense == 8 * parameters + 5 * 2


@pytest.mark.parametrize(
    ("kept", "message"),
    [({9: 1}, "there is no group 9"), ({1: -1}, "'0' must keep 0 to 8 units, found -1"), ({1: 9}, "found 9")],
)
def test_impossible_widths(kept: dict[int, int], message: str) -> None:
    model, inputs = create("Perceptron")
    costs = ParameterCost(model, trace(model, inputs), inputs)
    number = find_group(costs.graph, "0")
    kept = {number if key == 1 else key: value for key, value in kept.items()}
    with pytest.raises(ConfigError, match=message):
        costs.estimate(kept)


def test_pinned_groups_keep_all_units() -> None:
    model, inputs = create("Perceptron")
    costs = ParameterCost(model, trace(model, inputs), inputs)
    pinned = next(number for number, group in enumerate(costs.graph.groups) if group.obstacle is not None)
    assert costs.estimate({pinned: costs.graph.groups[pinned].units}) == costs.dense
    with pytest.raises(ConfigError, match=r"must keep all 6 units: .* constant size"):
        costs.tabulate(pinned, [1])
