"""Units that can be reordered: any order within their rows leaves the outputs of the dense model as they are."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from secateur.graph.orders import FreeOrder
from secateur.graph.pytorch import trace_orders
from tiny_transformers import DECODER, family, inputs_of


class Mixer(nn.Module):
    """Attention whose heads are combined in several ways."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv, self.out, self.scale = nn.Linear(8, 48), nn.Linear(16, 8), nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind == "scaled":
            value = value * self.scale  # depends on the head only
        elif self.kind == "rotated":
            value = value * torch.linspace(0, 1, 4)  # depends on the channel of the head
        elif self.kind == "shifted":
            value = value.roll(1, -1)
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        heads = weights @ value
        if self.kind == "mirrored":
            heads = (heads + heads.flip(-1)).relu()
        output: torch.Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return output


def wide_llama() -> nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER | {"head_dim": 8})).eval()


def run(model: nn.Module, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return outputs if isinstance(outputs, torch.Tensor) else outputs[0]


def reorder(model: nn.Module, free: FreeOrder, order: Any) -> None:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for member in free.group.members:
            indices = member.index_map.indices()
            source = np.arange(member.shape[member.axis])
            source[indices] = indices[order]
            tensors[member.parameter].copy_(tensors[member.parameter].index_select(member.axis, torch.tensor(source)))


def shuffle(model: nn.Module, free: list[FreeOrder]) -> None:
    generator = np.random.default_rng(0)
    for item in free:
        order = np.arange(item.group.units)
        for row in item.rows:
            order[row] = generator.permutation(row)
        reorder(model, item, order)


def list_members(free: FreeOrder) -> list[tuple[str, int]]:
    return [(member.parameter, member.axis) for member in free.group.members]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "opt", "bert", "vit"])
def test_any_order_within_rows_leaves_the_outputs(name: str) -> None:
    model = family(name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) / 10)  # biases are zero otherwise
    (inputs,) = inputs_of(name, 1)
    expected = run(model, inputs)
    free = trace_orders(model, inputs)
    assert [item.group.kind for item in free][:4] == ["heads", "channels"] * 2
    assert {len(row) for item in free for row in item.rows if item.group.kind == "heads"} == {4}
    before = {name: value.clone() for name, value in model.named_parameters()}
    shuffle(model, free)
    changed = {name for name, value in model.named_parameters() if not torch.equal(before[name], value)}
    assert {name for item in free for name, _ in list_members(item)} == changed
    assert not any(part in name for name in changed for part in ("q_proj", "k_proj", "query", "key"))
    torch.testing.assert_close(run(model, inputs), expected, rtol=1e-5, atol=1e-5)


def test_query_heads_share_the_order_of_their_key_value_head() -> None:
    model = wide_llama()
    (inputs,) = inputs_of("llama", 1)
    heads = next(item for item in trace_orders(model, inputs) if item.group.kind == "heads")
    assert list_members(heads) == [
        ("model.layers.0.self_attn.v_proj.weight", 0),
        ("model.layers.0.self_attn.o_proj.weight", 1),
    ]
    values, outputs = (member.index_map.indices() for member in heads.group.members)
    assert values[:, 0].tolist() == list(range(16))
    # Units 0 to 7 are the channels of the first key/value head, which query heads 0 and 1 share.
    assert outputs.tolist() == [[unit, unit + 8] if unit < 8 else [unit + 8, unit + 16] for unit in range(16)]
    assert [row.tolist() for row in heads.rows] == [list(range(8)), list(range(8, 16))]
    expected = run(model, inputs)
    reorder(model, heads, np.arange(16)[::-1])  # across heads
    assert (run(model, inputs) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("kind", "rows"), [("plain", 4), ("scaled", 4), ("rotated", 0), ("shifted", 0), ("mirrored", 4)]
)
def test_channels_of_a_head_can_change_places_if_nothing_tells_them_apart(kind: str, rows: int) -> None:
    torch.manual_seed(0)
    model, x = Mixer(kind).eval(), torch.randn(2, 5, 8)
    free = [item for item in trace_orders(model, x) if ("out.weight", 1) in list_members(item)]
    assert sum(len(item.rows) for item in free) == rows
    expected = run(model, x)
    shuffle(model, free)
    torch.testing.assert_close(run(model, x), expected, rtol=1e-5, atol=1e-5)
    (plain,) = (item for item in trace_orders(Mixer("plain"), x) if item.group.kind == "heads")
    within_heads, across_heads = np.arange(16).reshape(4, 4)[:, [1, 0, 2, 3]].reshape(-1), np.arange(16)[::-1]
    reorder(model, plain, across_heads if rows else within_heads)
    assert (run(model, x) - expected).abs().max() > 1e-4


def test_outputs_of_the_model_keep_their_order() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    assert [item.group.name for item in trace_orders(model, torch.randn(3, 6))] == ["2"]
