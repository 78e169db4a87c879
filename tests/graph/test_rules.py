"""Each rule between a layer that produces channels and one that consumes them."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from graph.probing import describe, probe_all, prunable
from secateur.errors import ConfigError
from secateur.graph import RULES, Call, Graph, Tracer, register_rule, trace
from secateur.graph.grouping import build_graph
from secateur.graph.pytorch.recording import record_forward
from secateur.graph.pytorch.tracing import split_inputs
from secateur.graph.rules import run_rules

Operation = Callable[[torch.Tensor], torch.Tensor]

CHANNELS = 8


def write_image(x: torch.Tensor) -> torch.Tensor:
    written = x.clone()
    written[torch.tensor([0])] = x[torch.tensor([1])]
    return written


def write_channel(x: torch.Tensor) -> torch.Tensor:
    written = x.clone()
    written[:, torch.tensor([0])] = 0.0
    return written


OPERATIONS: dict[str, tuple[Operation, list[int]]] = {
    "clamp": (lambda x: x.clamp(-1, 1), [8]),
    "type": (lambda x: x.double().float(), [8]),
    "flip": (lambda x: x.flip(1), [8]),
    "flip positions": (lambda x: x.flip(2, 3), [8]),
    "roll": (lambda x: x.roll(1, 1), []),
    "roll positions": (lambda x: x.roll((1, 2), (2, 3)), [8]),
    "roll all": (lambda x: x.roll(3), []),
    "narrow": (lambda x: x.narrow(1, 2, 5), [5]),
    "slice from the end": (lambda x: x[:, -3:], [3]),
    "slice with a step": (lambda x: x[:, ::2], []),
    "select a position": (lambda x: x[:, :, 1, None], [8]),
    "select a channel": (lambda x: x[:, 3:4].expand(-1, 8, -1, -1), [1]),
    "scale by a channel": (lambda x: x * x[:, 4:5], [7]),
    "unbind": (lambda x: torch.stack(x.unbind(2), 2), [8]),
    "unbind channels": (lambda x: torch.stack(x.unbind(1), 1), []),
    "split": (lambda x: sum(x.split(4, 1)), [4]),
    "split with a rest": (lambda x: x.split(3, 1)[0] + 1, []),
    "split list": (lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), [8]),
    "split positions": (lambda x: torch.cat(x.split(2, 2), 2), [8]),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), [4]),
    "tensor split": (lambda x: torch.cat(x.tensor_split(4, 1), 1), [2]),
    "cat": (lambda x: torch.cat([x, x * 2], 1), [8]),
    "cat positions": (lambda x: torch.cat([x, x], 2), [8]),
    "cat a constant": (lambda x: torch.cat([x, torch.linspace(0, 1, 256).reshape(2, 8, 4, 4)], 1), [8]),
    "stack and sum": (lambda x: torch.stack([x, x.flip(2)]).sum(0), [8]),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), [8]),
    "repeat interleave": (lambda x: x.repeat_interleave(3, dim=1), [8]),
    "repeat interleave flat": (lambda x: x.repeat_interleave(2).reshape(4, 8, 4, 4), []),
    "repeat positions": (lambda x: x.repeat(1, 1, 2, 1), [8]),
    "expand": (lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).flatten(2, 3), [8]),
    "expand as": (lambda x: x.mean((2, 3), keepdim=True).expand_as(x), [8]),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), [8]),
    "pad channels": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 3)), [8]),
    "crop channels": (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), []),
    "pad circular": (lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), [8]),
    "reflect": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), [8]),
    "glu": (lambda x: F.glu(x, 1), [4]),
    "glu of positions": (lambda x: F.glu(x, 2), [8]),
    "softmax of positions": (lambda x: x.softmax(-1), [8]),
    "cumsum of positions": (lambda x: x.cumsum(2), [8]),
    "cummax of positions": (lambda x: x.cummax(2).values, [8]),
    "sort positions": (lambda x: x.sort(-1).values, [8]),
    "top positions": (lambda x: x.topk(2, -1).values, [8]),
    "kth position": (lambda x: x.kthvalue(2, -1).values[..., None], [8]),
    "sort channels": (lambda x: x.sort(1).values, []),
    "maximum": (lambda x: torch.maximum(x, x.flip(2)), [8]),
    "max over positions": (lambda x: x.max(-1, keepdim=True).values, [8]),
    "amax": (lambda x: x.amax((2, 3), keepdim=True), [8]),
    "norm over positions": (lambda x: x / x.norm(dim=(2, 3), keepdim=True), [8]),
    "variance over positions": (lambda x: x.var((2, 3), keepdim=True), [8]),
    "variance and mean": (lambda x: x - torch.var_mean(x, (2, 3), keepdim=True)[1], [8]),
    "mean over everything": (lambda x: x - x.mean(), []),
    "where": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), [8]),
    "masked fill": (lambda x: x.masked_fill(x < 0, 0.5), [8]),
    "new zeros": (lambda x: x + x.new_zeros(2, 8, 4, 4), [8]),
    "in place": (lambda x: x.mul_(2).relu_(), [8]),
    "copy": (lambda x: torch.empty_like(x).copy_(x), [8]),
    "write a position": (lambda x: x.index_copy(2, torch.tensor([0]), x[:, :, 1:2]), [8]),
    "write an image": (write_image, [8]),
    "write a channel": (write_channel, []),
    "add at positions": (lambda x: x.index_add(2, torch.tensor([0, 1]), x[:, :, 2:]), [8]),
    "index positions": (lambda x: x[:, :, torch.tensor([0, 2])], [8]),
    "index channels": (lambda x: x[:, torch.tensor([0, 2, 2])], []),
    "index by channels": (lambda x: x[:, :, x.mean((0, 2, 3)).long() % 4], []),
    "index separated": (lambda x: x[torch.tensor([0, 1]), :, torch.tensor([1, 1]), None], [8]),
    "index select": (lambda x: x.index_select(3, torch.tensor([0, 2])), [8]),
    "gather": (lambda x: x.gather(2, torch.zeros(2, 8, 1, 4, dtype=torch.int64)), []),
    "one hot": (lambda x: F.one_hot(x.argmax(1), 8).movedim(-1, 1).float(), []),
    "one hot of elements": (lambda x: F.one_hot((x > 0).long(), 2).float().sum(-1), []),
    "permute": (lambda x: x.permute(2, 3, 1, 0).permute(3, 2, 0, 1), [8]),
    "transpose": (lambda x: x.transpose(1, 2).transpose(2, 1), [8]),
    "transpose a vector": (lambda x: x.mean((0, 2, 3)).t()[None, :, None, None].expand(2, 8, 4, 4), [8]),
    "movedim": (lambda x: x.movedim(1, -1).movedim(3, 1), [8]),
    "squeeze": (lambda x: x.unsqueeze(2).squeeze(2), [8]),
    "view": (lambda x: x.view(2, 8, 16).view(2, 2, 4, 16).view(2, 8, 4, 4), [2]),
    "view as empty": (lambda x: torch.cat([x, x[:, :, :0].reshape(2, 8, 0, 4)], 2), []),
    "scale in heads": (lambda x: (x.view(2, 2, 4, 16) * torch.linspace(1, 2, 4)[:, None]).view(2, 8, 4, 4), [2]),
    "add crossed heads": (
        lambda x: (x.view(2, 4, 2, 4, 4) + x.view(2, 2, 4, 4, 4).permute(0, 3, 1, 2, 4)).reshape(2, 8, 4, 4),
        [],
    ),
    "view into positions": (lambda x: x.reshape(2, 4, 8, 4), [4]),
    "merge with the batch": (lambda x: x.reshape(16, 1, 4, 4).mul(2).reshape(2, 8, 4, 4), [8]),
    "windows": (lambda x: x.view(2, 8, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(8, 8, 2, 2), [8]),
    "pixel unshuffle": (lambda x: F.pixel_unshuffle(x, 2), [8]),
    "pixel shuffle": (lambda x: F.pixel_shuffle(x, 2), [2]),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 4), [2]),
    "average pool": (lambda x: F.avg_pool2d(x, 2), [8]),
    "max pool": (lambda x: F.max_pool2d(x, 2), [8]),
    "average pool of lines": (lambda x: F.avg_pool1d(x.flatten(2), 2)[..., None], [8]),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, 3), [8]),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), [8]),
    "matmul of positions": (lambda x: x @ x.transpose(2, 3), [8]),
    "einsum of channels": (lambda x: torch.einsum("bchw,bcvw->bchv", x, x), [8]),
    "einsum of some with all": (lambda x: torch.einsum("bchw,bvw->bchv", x, x.mean(1)), []),
    "einsum with an ellipsis": (lambda x: torch.einsum("b...,b...->b...", x, x), []),
    "outer": (lambda x: torch.outer(x[0, :, 0, 0], x[0, 0, 0]).expand(2, 4, 8, 4).transpose(1, 2), []),
    "batch norm": (lambda x: F.batch_norm(x, torch.zeros(8), torch.ones(8)), [8]),
    "batch norm of lines": (
        lambda x: F.batch_norm(x.transpose(1, 2), torch.zeros(4), torch.ones(4)).transpose(1, 2),
        [8],
    ),
    "batch norm by statistics": (
        lambda x: F.batch_norm(x.transpose(1, 2), None, None, training=True).transpose(1, 2),
        [],
    ),
    "instance norm": (F.instance_norm, [8]),
    "instance norm of lines": (lambda x: F.instance_norm(x.transpose(1, 2)).transpose(1, 2), []),
    "group norm": (lambda x: F.group_norm(x, 4), [4]),
    "group norm of lines": (lambda x: F.group_norm(x.transpose(1, 2), 2).transpose(1, 2), []),
    "group norm of images": (lambda x: F.group_norm(x.reshape(16, 1, 4, 4), 1).reshape(2, 8, 4, 4), [8]),
    "layer norm of several axes": (nn.LayerNorm([8, 4, 4]), []),
    "layer norm of each head": (lambda x: F.layer_norm(x.view(2, 2, 4, 16).mT, (4,)).mT.reshape(2, 8, 4, 4), [2]),
    "local response norm": (lambda x: F.local_response_norm(x, 3), []),
    "detach": (lambda x: x.detach().clone().contiguous(), [8]),
    "dropout": (lambda x: torch.native_dropout(x, 0.5, False)[0], [8]),
    "attention in groups": (lambda x: F.scaled_dot_product_attention(x, *x.chunk(2, 1), enable_gqa=True), []),
    "complex": (lambda x: torch.view_as_real(torch.fft.fft(x))[..., 0], []),
}


DECOMPOSED = {"einsum with an ellipsis", "repeat interleave flat", "tensor split"}
"""Operations of which an eager run records the parts, with which more is possible."""


class Between(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operation = operation
        self.first = nn.Conv2d(3, CHANNELS, 1)
        self.last = nn.Conv2d(operation(torch.rand(2, CHANNELS, 4, 4)).shape[1], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.operation(self.first(x)))


@cache
def graph_of(name: str) -> Graph:
    """The graph of a model with an operation, traced once for all tests."""
    return trace(Between(OPERATIONS[name][0]), INPUTS)


INPUTS = torch.linspace(-2, 2, 96).sin().reshape(2, 3, 4, 4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_between_two_convolutions(name: str) -> None:
    operation, expected = OPERATIONS[name]
    graph = graph_of(name)
    groups = [group for group in prunable(graph) if group.members[0].parameter.startswith("first")]
    assert sorted(group.units for group in groups) == [units for units in sorted(expected) if units > 1]
    assert probe_all(lambda: Between(operation), INPUTS, graph) < 1e-5


@pytest.mark.parametrize("name", sorted(OPERATIONS.keys() - DECOMPOSED))
def test_an_eager_run_finds_the_same(name: str) -> None:
    model = Between(OPERATIONS[name][0])
    program = record_forward(model, *split_inputs(model, INPUTS))
    assert describe(build_graph(run_rules(program), program.aliases)) == describe(graph_of(name))


def test_a_rule_of_ones_own() -> None:
    library = torch.library.Library("tests", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    assert [barrier.operation for barrier in trace(Between(torch.ops.tests.twice), INPUTS).barriers] == ["tests.twice"]

    @register_rule("tests.twice")
    def follow_twice(tracer: Tracer, call: Call) -> None:
        tracer.set_labels(call.output, tracer.get_labels(call["x"]))

    try:
        graph = trace(Between(torch.ops.tests.twice), INPUTS)
        assert [group.units for group in prunable(graph)] == [8]
        assert probe_all(lambda: Between(torch.ops.tests.twice), INPUTS, graph) < 1e-5
        with pytest.raises(ConfigError, match=r"name 'tests\.twice' is taken"):
            register_rule("tests.twice")(follow_twice)
    finally:
        del RULES["tests.twice"]


def test_what_a_rule_ignores_is_pinned() -> None:
    rule = RULES.pop("aten.relu")
    try:
        register_rule("aten.relu")(lambda _tracer, _call: None)
        (group,) = [group for group in trace(Between(torch.relu), INPUTS).groups if group.members[0].axis == 0][:1]
        assert group.reason == "aten.relu in the model's own code has a rule that ignores them"
    finally:
        RULES["aten.relu"] = rule


@pytest.mark.parametrize("middle", [nn.Conv1d(8, 6, 1), nn.Conv1d(8, 6, 2), nn.Linear(5, 5)], ids=["1", "2", "linear"])
def test_weight_norm(middle: nn.Module) -> None:
    """The outputs are exact; the norm is taken over the inputs, so that their removal is not."""
    model = nn.Sequential(
        nn.Conv1d(3, 8, 1), nn.utils.parametrizations.weight_norm(middle), nn.Flatten(), nn.LazyLinear(2)
    )
    model(torch.rand(2, 3, 5))
    graph = trace(model, torch.rand(2, 3, 5))
    exact = {member.parameter for group in prunable(graph) for member in group.members}
    inexact = {member.parameter for group in prunable(graph, inexact=True) for member in group.members}
    assert ("1.parametrizations.weight.original0" in exact) is isinstance(middle, nn.Conv1d)
    assert ("0.weight" in inexact) is isinstance(middle, nn.Conv1d)
    assert probe_all(lambda: copy.deepcopy(model), torch.rand(2, 3, 5), graph) < 1e-5
